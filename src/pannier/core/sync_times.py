"""How long the last groups of sync calls took, and what made them durable. Values; nothing here looks at a clock."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MOST_GROUPS = 100
"""So many groups of a volume are remembered: enough for a median, and some 20 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncTimes:
    """What one group of sync calls waited for, in seconds.

    Attributes:
        local: for this node's own disk.
        turn: for the group before, or a generation that was just made.
        cut: for a record, or a generation, with all that was written.
        copies: for the slowest of the awaited copies: the way there, and its journal or disk.
        generation: why a generation made it durable; empty where a record did.
    """

    local: float
    turn: float
    cut: float
    copies: float
    generation: str = ""

    @property
    def total(self) -> float:
        """All of it."""
        return self.local + self.turn + self.cut + self.copies


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the worst of several times, in seconds."""

    median: float
    worst: float


def spread(times: Iterable[float]) -> Spread | None:
    """None of no times."""
    known = list(times)
    return Spread(statistics.median(known), max(known)) if known else None


@dataclass(slots=True)
class LastGroups:
    """The last groups of a volume, at most :data:`MOST_GROUPS`."""

    _times: deque[SyncTimes] = field(default_factory=lambda: deque(maxlen=MOST_GROUPS))

    def note(self, times: SyncTimes) -> None:
        """A group was made durable."""
        self._times.append(times)

    def __len__(self) -> int:
        return len(self._times)

    def by_generation(self) -> int:
        """How many of them a generation made durable."""
        return sum(bool(each.generation) for each in self._times)

    def last_reason(self) -> str:
        """Why the last of those was; empty where none was."""
        return next((each.generation for each in reversed(self._times) if each.generation), "")

    def spread(self, part: Callable[[SyncTimes], float]) -> Spread | None:
        """Of one part of the times; None where no group is known."""
        return spread(map(part, self._times))
