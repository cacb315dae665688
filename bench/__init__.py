"""What Pannier costs: each figure against its reference, measured in the same run, on a lab."""
