"""How a volume changes hands: hand-over, takeover, recovery, and the promises in between."""
