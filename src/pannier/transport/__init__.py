"""Generations and records between nodes, over mutual TLS."""
