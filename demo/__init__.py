"""The main job, played on real machines: ``python -m demo``."""
