"""For how long something that should give a sign has given none, as far as somebody has looked."""

from __future__ import annotations


class Silence:
    """Adds up the time between looks. A machine that is stopped meanwhile, or has no processor for whoever looks, hears
    no sign either: so one look counts for little, however late it comes.

    Args:
        now: seconds on any clock, here and at each look.
        longest: so many seconds count for one look at most.
    """

    def __init__(self, now: float, *, longest: float) -> None:
        self._at = now
        self._longest = longest
        self.seconds = 0.0
        """Since the last sign."""

    def look(self, now: float) -> None:
        """There was no sign until now."""
        self.seconds += min(max(now - self._at, 0.0), self._longest)
        self._at = now

    def end(self, now: float) -> None:
        """There was a sign."""
        self.seconds, self._at = 0.0, now
