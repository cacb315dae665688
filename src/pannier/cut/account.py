"""Whether the trace told everything: the events of a device against the kernel's own statistics of it. No I/O.

The statistics count the sectors of completed writes and discards. An event is recorded an instant before its
sectors are counted. So at any moment the events stamped before it have as many sectors as were counted, but
for what is between the two just then. Equality is asked for, again and again for some milliseconds: a lost event
is never made up for by others' events.
"""

from __future__ import annotations

_TIMES = 3
"""So often in a row the same base is asked for, in some microseconds each."""


class Account:
    """The sectors of one device, told and counted.

    A comparison is :meth:`open`, the clock, the statistics, a drain, :meth:`missing`, in this order. It needs a base: see
    :meth:`found_base`.
    """

    def __init__(self) -> None:
        self._told = 0
        """By events older than the moment of the last :meth:`open`."""
        self._later: list[tuple[int, int]] = []
        """Events since then: when, and how many sectors."""
        self._is_open = False
        self._base = 0
        """What the statistics had counted when nothing had been told."""
        self._agreed = 0
        """How often in a row this base was found."""

    def open(self) -> None:
        """A moment will be looked at that is later than all that was noted."""
        self._settle()
        self._is_open = True

    def close(self) -> None:
        """No moment is looked at any more."""
        self._settle()
        self._is_open = False

    def note(self, at_ns: int, sectors: int) -> None:
        """An event told of sectors."""
        if self._is_open:
            self._later.append((at_ns, sectors))
        else:
            self._told += sectors

    def missing(self, clock_ns: int, counted: int) -> int:
        """Sectors that were counted and not told by events stamped until a moment; less than 0 if more were told."""
        return counted - self._base - self._until(clock_ns)

    def found_base(self, clock_ns: int, counted: int) -> bool:
        """Take the statistics at a moment as those with which this account begins; whether they are believed.

        What completes at that very moment makes a wrong base. It differs from the next one, and if it does not, then
        it never matches later on: it costs a doubt, and hides nothing.

        Args:
            clock_ns: read before the statistics.
        """
        base = counted - self._until(clock_ns)
        self._agreed = self._agreed + 1 if base == self._base else 1
        self._base = base
        return self._agreed >= _TIMES

    def _until(self, clock_ns: int) -> int:
        return self._told + sum(sectors for at, sectors in self._later if at <= clock_ns)

    def _settle(self) -> None:
        self._told += sum(sectors for _, sectors in self._later)
        self._later.clear()
