"""Volumes on a btrfs pool."""
