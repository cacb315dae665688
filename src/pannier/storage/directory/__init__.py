"""Volumes in plain directories."""
