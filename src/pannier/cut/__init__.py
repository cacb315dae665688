"""What was written to a volume's loop device since the last cut, told by the kernel's block trace."""
