"""This node's use cases, put together for the edges."""
