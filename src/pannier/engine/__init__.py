"""The Docker engine: what the agent asks of it."""
