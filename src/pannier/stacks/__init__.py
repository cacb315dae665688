"""Ready stacks for Docker Swarm: which there are, what they need, and how they are deployed."""
