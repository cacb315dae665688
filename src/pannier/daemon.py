"""``pannierd``: the only place that wires adapters to protocols."""
