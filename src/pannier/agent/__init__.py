"""What runs on each node: custody of the local data, hand-overs, presence and upkeep."""
