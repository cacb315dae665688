"""Whether a group's record is sent before the local sync has ended."""

from __future__ import annotations

from dataclasses import dataclass

MOST_WITHOUT = 64
"""After so many groups at most it is tried again: a volume's use changes, and one try costs one record."""


@dataclass(slots=True)
class Overlap:
    """Remembers, for one volume, whether a record that is sent ahead is enough.

    A record is sent ahead when this node's disk has taken what was written, and has still to flush it. So copies and
    this disk work at the same time. If the local sync writes more after that, such as the journal of the file system, there
    is a second record, and the first one was in vain. Neither is ever wrong: each is a state that this disk was in.
    """

    _left: int = 0
    """So many groups do without."""
    _next: int = 1
    """So many more will, if the next try is in vain."""

    def due(self) -> bool:
        """Whether the next group tries it; called once for each."""
        self._left -= 1
        return self._left < 0

    def tried(self, *, enough: bool) -> None:
        """Whether nothing was written after the record that was sent ahead."""
        if enough:
            self._left, self._next = 0, 1
        else:
            self._left, self._next = self._next, min(2 * self._next, MOST_WITHOUT)
