"""What the API promises: views, operations, peers and the bodies of requests."""
