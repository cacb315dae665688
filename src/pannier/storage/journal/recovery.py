"""What a journal that is opened holds: which frames count, where its torn tail begins, and what is damaged. Pure.

A torn tail is what came after the last flush: nothing of it was confirmed. Each frame says up to where the journal was durable when
it was written. So what cannot be read before such a place is damage, and what cannot be read after the last one is a torn tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pannier.core.errors import Corrupt
from pannier.storage.journal.format import Frame, FrameKind, Gap, Region, read_moved, scan
from pannier.storage.journal.layout import BLOCK_BYTES, UNREADABLE_REMEDY, Geometry, SegmentHead

Read = Callable[[int], bytes]
"""Reads a whole segment, by its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A frame that counts.

    Attributes:
        number: of its segment.
        content: of a frame that is no record.
    """

    number: int
    frame: Frame
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A part of the journal that was durable, and cannot be read.

    Attributes:
        frame: what it held, where that is known.
    """

    region: Region
    frame: Frame | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What is in a journal.

    Attributes:
        number: of the newest segment.
        synced: up to where that one was certainly durable, in bytes from its start.
        end: where its next frame begins; what is between may not be durable yet.
        stale: where heads of frames are after that, which must go.
        moved: whether nothing is needed any more of the segment that will be overwritten next.
        previous_end: where the segment before the newest one ends.
        closed: whether it was closed in order.
        frames: in the order in which they were written.
    """

    number: int
    synced: int
    end: int
    stale: tuple[int, ...]
    moved: bool
    previous_end: int
    closed: bool
    frames: tuple[Found, ...]
    damaged: tuple[Damaged, ...]


def recover(geometry: Geometry, heads: Sequence[SegmentHead | None], read: Read) -> Recovered:
    """Judge what is in a journal.

    Args:
        heads: of all segments in the order of the file; None for one that cannot be read or was never written.

    Raises:
        Corrupt: no segment can be read.
    """
    numbers = [
        head.number
        for at, head in enumerate(heads)
        if head and head.number % geometry.segments == at
    ]
    if not numbers:
        raise Corrupt("no segment of the journal can be read", remedy=UNREADABLE_REMEDY)
    last = _newest(geometry, max(numbers), heads, read)
    synced, end = last.synced, last.tail()
    frames, damaged = [last.found(end)], [last.damaged(min(end, synced))]
    moved = any(found.frame.head.kind is FrameKind.MOVED for found in frames[0])
    oldest = last.number - geometry.segments + (2 if moved else 1)
    following, previous_end = last, last.previous_end or 0
    for number in range(last.number - 1, max(0, oldest - 1), -1):
        segment = _segment(geometry, number, heads, read)
        until = following.previous_end
        if until is None:
            until = segment.synced
            previous_end = until if following is last else previous_end
            lost = Region(number=following.number, start=0, end=BLOCK_BYTES)
            damaged.append([Damaged(region=lost, frame=None)])
        frames.append(segment.found(until))
        damaged.append(segment.damaged(until))
        following = segment
        following.content = b""  # there may be many
    return Recovered(
        number=last.number,
        synced=synced,
        end=end,
        stale=tuple(sorted(frame.at for frame in last.authentic if frame.at >= end)),
        moved=moved,
        previous_end=previous_end,
        closed=bool(frames[0]) and frames[0][-1].frame.head.kind is FrameKind.CLOSED,
        frames=tuple(found for each in reversed(frames) for found in each),
        damaged=tuple(one for each in reversed(damaged) for one in each),
    )


@dataclass(slots=True)
class _Segment:
    """One segment as it was found. ``previous_end`` is None where that is lost."""

    number: int
    frames: list[Frame]
    gaps: list[Gap]
    previous_end: int | None
    content: bytes

    @property
    def authentic(self) -> list[Frame]:
        """All frames whose heads are right."""
        return self.frames + [gap.frame for gap in self.gaps if gap.frame]

    @property
    def synced(self) -> int:
        """Up to where it was durable, as its frames say."""
        return max((frame.head.synced for frame in self.authentic), default=BLOCK_BYTES)

    def tail(self) -> int:
        """Where it goes on, if it is the newest: what begins after the last flush and is not whole is torn.

        A gap across that place may be both damaged and torn.
        """
        torn = (max(gap.start, self.synced) for gap in self.gaps if gap.end > self.synced)
        return min(torn, default=max((frame.end for frame in self.frames), default=BLOCK_BYTES))

    def found(self, end: int) -> list[Found]:
        """The frames before a place."""
        return [
            Found(number=self.number, frame=frame, content=self._content(frame))
            for frame in self.frames
            if frame.at < end
        ]

    def damaged(self, end: int) -> list[Damaged]:
        """The gaps before a place."""
        return [
            Damaged(
                region=Region(number=self.number, start=gap.start, end=min(gap.end, end)),
                frame=gap.frame,
            )
            for gap in self.gaps
            if gap.start < end
        ]

    def _content(self, frame: Frame) -> bytes:
        if frame.head.kind is FrameKind.RECORD:
            return b""
        return self.content[frame.content_at : frame.content_at + frame.content_bytes]


def _newest(
    geometry: Geometry, number: int, heads: Sequence[SegmentHead | None], read: Read
) -> _Segment:
    """The newest segment, also if its head is damaged: no frame is written before the head is durable."""
    newest = _segment(geometry, number, heads, read)
    while (after := _segment(geometry, newest.number + 1, heads, read)).authentic:
        newest = after
    return newest


def _segment(
    geometry: Geometry, number: int, heads: Sequence[SegmentHead | None], read: Read
) -> _Segment:
    content = read(number)
    parts = list(scan(geometry.identity, number, content))
    frames = [part for part in parts if isinstance(part, Frame)]
    head = heads[number % geometry.segments]
    previous_end = head.previous_end if head and head.number == number else None
    for frame in frames:
        if frame.head.kind is FrameKind.MOVED and previous_end is None:
            previous_end = read_moved(content[frame.content_at :][: frame.content_bytes])
    return _Segment(
        number=number,
        frames=frames,
        gaps=[part for part in parts if isinstance(part, Gap)],
        previous_end=previous_end,
        content=content,
    )
