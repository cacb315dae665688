"""Sets of bytes of an image as spans, and contents on top of each other. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pannier.core.line import Data, Range, Zeros

BLOCK_BYTES = 4096
"""Spans begin and end at multiples of it: direct I/O needs that, and a record has such ranges."""

Span = tuple[int, int]
"""Start and end, in bytes."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to: sorted, disjoint, aligned spans.

    Attributes:
        plain: was written, so it is to be read.
        hollow: was discarded or zeroed and not written: it may be holes of the file.
    """

    plain: tuple[Span, ...] = ()
    hollow: tuple[Span, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plain or self.hollow)

    @property
    def plain_bytes(self) -> int:
        return sum(end - start for start, end in self.plain)

    @property
    def count(self) -> int:
        """How many spans it has."""
        return len(self.plain) + len(self.hollow)

    def __or__(self, other: Written) -> Written:
        return written([*self.plain, *other.plain], [*self.hollow, *other.hollow])


def written(plain: Iterable[Span], hollow: Iterable[Span]) -> Written:
    """What was written to, by spans in any order that may overlap.

    Writes count more than discards, whatever their order: what is read is right, where a hole is only guessed.
    """
    read = merged(plain)
    return Written(tuple(read), tuple(without(merged(hollow), read)))


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans sorted, aligned and joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        start, end = start // BLOCK_BYTES * BLOCK_BYTES, -(-end // BLOCK_BYTES) * BLOCK_BYTES
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def without(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """What of some spans is not in others. Both are sorted and disjoint."""
    left: list[Span] = []
    k = 0
    for start, end in spans:
        while k < len(taken) and taken[k][1] <= start:
            k += 1
        j = k
        while j < len(taken) and taken[j][0] < end:
            if taken[j][0] > start:
                left.append((start, taken[j][0]))
            start = taken[j][1]
            j += 1
        if start < end:
            left.append((start, end))
    return left


def overlay(older: Sequence[Range], newer: Sequence[Range]) -> tuple[Range, ...]:
    """Both contents, sorted and disjoint; where both have something, the newer one. Nothing is copied."""
    if not older:
        return tuple(newer)
    taken = [(one.start, one.end) for one in newer]
    kept: list[Range] = []
    for one in older:
        kept.extend(_part(one, *left) for left in without([(one.start, one.end)], taken))
    return tuple(sorted([*kept, *newer], key=lambda one: one.start))


def _part(one: Range, start: int, end: int) -> Range:
    match one:
        case Zeros():
            return Zeros(start, end)
        case Data(at, content):
            return Data(start, memoryview(content)[start - at : end - at])
