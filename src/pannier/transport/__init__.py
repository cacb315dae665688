"""Generations between nodes over mutual TLS."""
