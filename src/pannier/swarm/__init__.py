"""Swarm's side: services that move with their volumes, labels, evacuation."""
