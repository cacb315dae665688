"""What the cluster knows: its records in the store, and what this node remembers of them."""
