"""Frames on their way to the disk. One thread at a time uses this; the index has a lock of its own."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock

from pannier.core.errors import JournalFull, StorageError
from pannier.core.line import Buffer
from pannier.core.size import format_size
from pannier.storage.journal.file import Medium, aligned
from pannier.storage.journal.format import (
    Frame,
    FrameHead,
    FrameKind,
    Region,
    content_of,
    frame_head,
    head_bytes,
    loss_content,
    moved_content,
    read_frame,
)
from pannier.storage.journal.index import Index, LiveRecord, Loss
from pannier.storage.journal.layout import (
    BLOCK_BYTES,
    Geometry,
    SegmentHead,
    segment_head,
    whole_blocks,
)
from pannier.storage.journal.recovery import Recovered
from pannier.storage.journal.room import largest_frame, most_live


class Writer:
    """The end of a journal that is written.

    What is put is durable after the next :meth:`sync`. The methods raise OSError as the disk does; nothing may be put after that.

    Args:
        lock: of the index.
    """

    def __init__(
        self, medium: Medium, geometry: Geometry, recovered: Recovered, index: Index, lock: Lock
    ) -> None:
        self._medium = medium
        self._geometry = geometry
        self._index = index
        self._lock = lock
        self._number = recovered.number
        self._end = recovered.end
        self._synced = recovered.synced
        self._moved = recovered.moved
        self._closed = recovered.closed
        self._arrival = max((each.frame.head.arrival for each in recovered.frames), default=0)
        self._previous_end = recovered.previous_end
        self._staged = memoryview(mmap.mmap(-1, largest_frame(geometry)))
        self._used = 0
        self._after_sync: list[Callable[[], None]] = []

    @property
    def next_arrival(self) -> int:
        """Of the next frame that is put."""
        return self._arrival + 1

    def take_up(self, stale: Sequence[int]) -> None:
        """Go on after an end that may be torn, or may not be durable.

        What came after the last flush that is known is written again: the kernel tells the error of a flush once,
        and that may have been to an earlier process. What is left of a torn tail is overwritten, so that it never looks like
        the end of what is written from now on.
        """
        start = self._geometry.start(self._number)
        if self._end > self._synced:
            kept = self._medium.read(start + self._synced, self._end - self._synced)
            self._medium.write(start + self._synced, aligned(kept))
        for at in stale:
            self._medium.write(start + at, aligned(bytes(BLOCK_BYTES)))
        self.sync()

    def put(self, head: FrameHead, content: Sequence[Buffer]) -> tuple[int, Frame]:
        """Put a frame after all others. Its arrival and ``synced`` are set here.

        Returns:
            The number of the segment, and the frame.

        Raises:
            JournalFull: there is no room.
        """
        length = frame_bytes(head, content)
        self.free_oldest()
        for _ in range(2 * self._geometry.segments):
            if self._end + length <= self._geometry.end:
                return self._put(replace(head, arrival=self.next_arrival), content)
            self._check_progress()
            self._begin_segment()
        raise StorageError("the journal finds no room, although little of it is needed")

    def put_closed(self) -> None:
        """Say that all that was put is all there is. There is always a place for it: nothing else is put there."""
        if not self._closed:
            self._put(FrameHead(kind=FrameKind.CLOSED, arrival=self.next_arrival, synced=0), [])

    def put_losses(self) -> None:
        """Note the losses that were found and are not noted yet."""
        with self._lock:
            losses = self._index.losses_in(None)
        for loss in losses:
            noted = _noted_at(loss, *self.put(*_noted(loss, self.next_arrival)))
            self._after_sync.append(partial(self._index.relocate_loss, noted))

    def sync(self) -> None:
        """Make all durable that was put, and let the index know what was moved."""
        self._flush()
        self._medium.sync()
        self._synced = self._end
        with self._lock:
            for each in self._after_sync:
                each()
        self._after_sync.clear()

    def free_oldest(self) -> None:
        """Move what lives in the segment that will be overwritten next, if that is still to be done.

        Raises:
            JournalFull: it does not fit, which needs damage to come about.
        """
        if self._moved:
            return
        oldest = self._number + 1 - self._geometry.segments
        with self._lock:
            records, losses = self._index.records_in(oldest), self._index.losses_in(oldest)
        needed = (
            sum(each.bytes for each in records) + sum(each.bytes for each in losses) + BLOCK_BYTES
        )
        if self._end + needed > self._geometry.end:
            raise JournalFull(
                f"{format_size(needed)} of the journal are to be moved, and do not fit",
                remedy="generations of its volumes make room",
            )
        for loss in losses:
            noted = _noted_at(loss, *self._put(*_noted(loss, loss.arrival)))
            self._after_sync.append(partial(self._index.relocate_loss, noted))
        for record in records:
            self._move(record)
        moved = FrameHead(kind=FrameKind.MOVED, arrival=self.next_arrival, synced=0)
        self._put(moved, [moved_content(self._previous_end)])
        self._moved = True

    def read(self, record: LiveRecord) -> memoryview | None:
        """The content of a record that is on the disk; None if it is not there as it was written. Any thread may."""
        frame = record.frame
        start = self._geometry.start(record.number)
        content = self._medium.read(start + frame.at, record.bytes)
        there = read_frame(
            self._geometry.identity, record.number, frame.at, content, start=frame.at
        )
        return content_of(frame, content, start=frame.at) if there == frame else None

    def _check_progress(self) -> None:
        """After a restart more may live than is let in, until generations settle it: another segment would not help."""
        with self._lock:
            live = self._index.live_bytes
        if live > most_live(self._geometry):
            raise JournalFull(
                f"the journal has {format_size(live)} of records that are needed",
                remedy="generations of its volumes make room",
            )

    def _begin_segment(self) -> None:
        """Begin the next segment. Its head is durable before any frame: who finds a frame knows that there was a head."""
        self.sync()
        head = SegmentHead(number=self._number + 1, previous_end=self._end)
        block = aligned(segment_head(self._geometry.identity, head))
        self._medium.write(self._geometry.start(head.number), block)
        self._medium.sync()
        self._previous_end = head.previous_end
        self._number = head.number
        self._end = self._synced = BLOCK_BYTES
        self._moved = False
        self.free_oldest()

    def _move(self, record: LiveRecord) -> None:
        content = self.read(record)
        if content is not None:
            number, frame = self._put(record.frame.head, [content])
            moved = LiveRecord(number=number, frame=frame)
            self._after_sync.append(partial(self._index.relocate, moved))
            return
        where = Region(number=record.number, start=record.frame.at, end=record.frame.end)
        lost = Loss(region=where, place=record.place, volumes=frozenset([record.place.volume]))
        noted = _noted_at(lost, *self._put(*_noted(lost, self.next_arrival)))
        self._after_sync.append(partial(self._index.lose, record, noted))

    def _put(self, head: FrameHead, content: Sequence[Buffer]) -> tuple[int, Frame]:
        head = replace(head, synced=self._synced)
        first = frame_head(self._geometry.identity, self._number, self._end, head, content)
        frame = read_frame(self._geometry.identity, self._number, self._end, first, start=self._end)
        assert frame is not None
        self._stage([first, *content], frame.end - frame.at)
        self._end = frame.end
        self._closed = head.kind is FrameKind.CLOSED
        self._arrival = max(self._arrival, head.arrival)
        return self._number, frame

    def _stage(self, pieces: Sequence[Buffer], length: int) -> None:
        if self._used + length > len(self._staged):
            self._flush()
        if length > len(self._staged):  # a loss that concerns very many volumes
            self._staged = memoryview(mmap.mmap(-1, length))
        at = self._used
        self._used += length
        for piece in pieces:
            self._staged[at : at + len(piece)] = piece
            at += len(piece)
        self._staged[at : self._used] = bytes(self._used - at)

    def _flush(self) -> None:
        """Write what is staged; it ends where the next frame begins."""
        if self._used:
            start = self._geometry.start(self._number) + self._end - self._used
            self._medium.write(start, self._staged[: self._used])
            self._used = 0


def frame_bytes(head: FrameHead, content: Sequence[Buffer]) -> int:
    """What a frame takes."""
    return whole_blocks(head_bytes(head) + sum(len(piece) for piece in content))


def _noted(loss: Loss, arrival: int) -> tuple[FrameHead, list[Buffer]]:
    head = FrameHead(
        kind=FrameKind.LOSS,
        arrival=arrival,
        synced=0,
        volume=loss.place.volume if loss.place else "",
        place=loss.place,
    )
    return head, [loss_content(loss.region, loss.volumes)]


def _noted_at(loss: Loss, number: int, frame: Frame) -> Loss:
    return replace(loss, number=number, arrival=frame.head.arrival, bytes=frame.end - frame.at)
