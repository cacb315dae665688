"""The rounds of a cut: until what was read is a state that a disk could be in after a power cut.

The volume is written to while it is read. Whatever was written after a flush may be in a cut only together with
all that this flush covered. A round is, in this order: the number of completed flushes, the trace, the reading of
what it told, the number of flushes again. A cut is whole

- when the number is the same. What was written after a flush is issued after that flush was counted. If it was seen,
  the flush was counted before the trace was drained, so all that it covered was told by then, and read.
- when nothing was told. Then all was read before this round. Each flush that something read depends on was counted by
  then, so all that it covered was told by now; and that was nothing.

No I/O here: :class:`Source` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pannier.core.line import Range
from pannier.cut.doubt import Doubtful, DoubtKind
from pannier.cut.spans import Written, overlay

ROUNDS = 8
"""At most. Each further one reads only what came during the one before, so a volume that needs as many is written to
about as fast as it can be read."""


class Source(Protocol):
    """What a cut is made from. Each method may raise :class:`Doubtful`."""

    def drain(self) -> tuple[int, Written]:
        """Count the completed flushes, then drain the trace: the number, and what is new."""
        ...

    def read(self, what: Written) -> Sequence[Range]:
        """The present content of some spans, sorted and disjoint."""
        ...

    def flushes(self) -> int:
        """The number of completed flushes."""
        ...


def gather(source: Source) -> tuple[Range, ...]:
    """All that was written, as it was at a moment when a power cut could have left it so: sorted and disjoint.

    Raises:
        Doubtful: that moment did not come within :data:`ROUNDS`, or the source has a doubt.
    """
    content: tuple[Range, ...] = ()
    for _ in range(ROUNDS):
        before, new = source.drain()
        if not new:
            return content
        content = overlay(content, source.read(new))
        if source.flushes() == before:
            return content
    raise Doubtful(DoubtKind.RESTLESS, f"in each of {ROUNDS} rounds a flush completed")
