"""Backups off-site: targets, and what is put there and brought back, by restic."""
