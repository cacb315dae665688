"""Whether it is worth trying again what may be in vain."""

from __future__ import annotations

from dataclasses import dataclass

MOST_WITHOUT = 64
"""After so many groups of sync calls at most it is tried again: a volume's use changes, and a try costs one group little."""


@dataclass(slots=True)
class Worthwhile:
    """Remembers how the last tries went: what was in vain is tried ever more seldom.

    For one volume and one thing that may save its sync calls time: to send a record before this node's disk has flushed, or to
    wait for callers that come again at once.
    """

    _left: int = 0
    """So many groups do without."""
    _next: int = 1
    """So many more will, if the next try is in vain."""

    def due(self) -> bool:
        """Whether the next group tries it; called once for each."""
        self._left -= 1
        return self._left < 0

    def tried(self, *, useful: bool) -> None:
        """How a try went."""
        if useful:
            self._left, self._next = 0, 1
        else:
            self._left, self._next = self._next, min(2 * self._next, MOST_WITHOUT)
