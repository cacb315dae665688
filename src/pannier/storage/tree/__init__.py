"""A tree of files as a stream."""
