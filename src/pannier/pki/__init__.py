"""Cluster CA, identities of nodes and users, TLS contexts, join tokens."""
