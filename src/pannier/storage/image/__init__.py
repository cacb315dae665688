"""Volumes as images: an ext4 in one file of the pool, attached to a loop device while it is used."""
