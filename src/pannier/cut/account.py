"""Whether the trace told everything: the events of a device against the kernel's own statistics of it. No I/O.

The statistics count the sectors of completed writes and discards. An event is recorded an instant before its
sectors are counted. So at any moment the events stamped before it have as many sectors as were counted, but
for what is between the two just then. Equality is asked for, again and again for some milliseconds: a lost event
is never made up for by others' events.
"""

from __future__ import annotations


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
        self._is_based = False

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

    def found_base(self, clock_ns: int, counted: int, after_ns: int) -> bool:
        """Take the statistics at a moment as those with which this account begins, if nothing completed just then.

        Twice the same must be found, since what is recorded and not yet counted cannot be seen. A base that was
        wrong nevertheless never matches: it costs a doubt and hides nothing.

        Args:
            clock_ns: read before the statistics.
            after_ns: read after them.
        """
        base, was_calm = (
            counted - self._until(clock_ns),
            self._until(clock_ns) == self._until(after_ns),
        )
        is_twice = self._is_based and base == self._base
        self._base, self._is_based = base, was_calm
        return is_twice and was_calm

    def _until(self, clock_ns: int) -> int:
        return self._told + sum(sectors for at, sectors in self._later if at <= clock_ns)

    def _settle(self) -> None:
        self._told += sum(sectors for _, sectors in self._later)
        self._later.clear()
