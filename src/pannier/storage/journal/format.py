"""The frames of a journal as bytes, described in docs/journal.md. Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from pannier.core.errors import InvalidInput
from pannier.core.generation import Generation
from pannier.core.line import Buffer, LinePlace
from pannier.storage.journal.layout import BLOCK_BYTES, DIGEST_BYTES, digest, whole_blocks

_FRAME = struct.Struct(">BBHIIQIQQQQ")
_REGION = struct.Struct(">QII")
_END = struct.Struct(">I")
_FRAME_MAGIC = b"PNJF"
_MOST_TEXT = 255


class FrameKind(IntEnum):
    """What a frame is.

    RECORD: a record of a line. LOSS: volumes that may lack a record. DROP: of this volume nothing counts that came before.
    MENDED: of this volume no loss counts that was found before. MOVED: all that lived in the oldest segment is before this
    frame. CLOSED: the journal was closed in order.
    """

    RECORD = 1
    LOSS = 2
    DROP = 3
    MENDED = 4
    MOVED = 5
    CLOSED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHead:
    """What a frame says before its content.

    Attributes:
        arrival: counts the frames that came; a frame that is moved keeps it.
        synced: everything in this segment up to here, in bytes from its start, was durable when this was written.
        place: of the record, or of the record that is lost.
    """

    kind: FrameKind
    arrival: int
    synced: int
    volume: str = ""
    place: LinePlace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame that was found.

    Attributes:
        at: where it begins in its segment; content_at: where its content does; end: where the next one may begin.
    """

    at: int
    head: FrameHead
    content_at: int
    content_bytes: int
    check: int

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return whole_blocks(self.content_at + self.content_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a segment, from a byte to another one."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What of a segment is no whole frame. ``frame`` is known if only the content is not what it should be."""

    start: int
    end: int
    frame: Frame | None


# -- frames ---------------------------------------------------------------------------------------------


def frame_head(
    identity: bytes, number: int, at: int, head: FrameHead, content: Iterable[Buffer]
) -> bytes:
    """The bytes of a frame before its content.

    Args:
        number, at: the segment, and where in it the frame begins.

    Raises:
        InvalidInput: a name is too long.
    """
    check = count = 0
    for piece in content:
        check = zlib.crc32(piece, check)
        count += len(piece)
    place = head.place
    names = (head.volume, place.run if place else "", str(place.generation) if place else "")
    texts = b"".join(text_bytes(name) for name in names)
    packed = _FRAME.pack(
        head.kind,
        place is not None,
        len(texts),
        count,
        check,
        head.arrival,
        head.synced,
        place.epoch if place else 0,
        place.number if place else 0,
        place.included if place else 0,
        place.acknowledged if place else 0,
    )
    return _FRAME_MAGIC + _frame_digest(identity, number, at, packed + texts) + packed + texts


def head_bytes(head: FrameHead) -> int:
    """How long :func:`frame_head` is."""
    names = [head.volume, "", ""]
    if head.place:
        names[1:] = head.place.run, str(head.place.generation)
    return _HEAD_BYTES + sum(1 + len(name.encode()) for name in names)


_HEAD_BYTES = len(_FRAME_MAGIC) + DIGEST_BYTES + _FRAME.size


def read_frame(
    identity: bytes, number: int, at: int, segment: bytes, *, start: int = 0
) -> Frame | None:
    """The frame that begins at a place; None if there is none. Its content is not looked at.

    Args:
        segment: bytes of the segment, from its byte ``start`` on, with the frame's head.
    """
    begin = at - start
    fixed = segment[begin : begin + _HEAD_BYTES]
    if len(fixed) < _HEAD_BYTES or not fixed.startswith(_FRAME_MAGIC):
        return None
    texts_length = int.from_bytes(fixed[-_FRAME.size :][2:4], "big")
    packed = segment[begin + _HEAD_BYTES - _FRAME.size : begin + _HEAD_BYTES + texts_length]
    written = fixed[len(_FRAME_MAGIC) : len(_FRAME_MAGIC) + DIGEST_BYTES]
    if written != _frame_digest(identity, number, at, packed):
        return None
    kind, placed, _, count, check, arrival, synced, *numbers = _FRAME.unpack_from(packed)
    volume, run, generation = texts(packed[_FRAME.size :])
    place = None
    if placed:
        epoch, counted, included, acknowledged = numbers
        place = LinePlace(
            volume=volume,
            epoch=epoch,
            run=run,
            number=counted,
            generation=Generation.parse(generation),
            included=included,
            acknowledged=acknowledged,
        )
    return Frame(
        at=at,
        head=FrameHead(
            kind=FrameKind(kind), arrival=arrival, synced=synced, volume=volume, place=place
        ),
        content_at=at + _HEAD_BYTES + texts_length,
        content_bytes=count,
        check=check,
    )


def content_of(frame: Frame, segment: bytes, *, start: int = 0) -> memoryview | None:
    """A frame's content; None if it is not what was written."""
    begin = frame.content_at - start
    content = memoryview(segment)[begin : begin + frame.content_bytes]
    whole = len(content) == frame.content_bytes and zlib.crc32(content) == frame.check
    return content if whole else None


def scan(identity: bytes, number: int, segment: bytes) -> Iterator[Frame | Gap]:
    """All that is in a segment, from the first frame to the segment's end, without a space between."""
    at = BLOCK_BYTES
    while at < len(segment):
        frame = read_frame(identity, number, at, segment)
        if frame is None:
            end = _next_frame(identity, number, at + BLOCK_BYTES, segment)
            yield Gap(start=at, end=end, frame=None)
            at = end
            continue
        whole = content_of(frame, segment) is not None
        yield frame if whole else Gap(start=at, end=frame.end, frame=frame)
        at = frame.end


def _next_frame(identity: bytes, number: int, at: int, segment: bytes) -> int:
    while (at := segment.find(_FRAME_MAGIC, at)) >= 0:
        if at % BLOCK_BYTES == 0 and read_frame(identity, number, at, segment):
            return at
        at += 1
    return len(segment)


# -- contents of frames that are no records --------------------------------------------------------------


def loss_content(region: Region, volumes: Iterable[str]) -> bytes:
    """Where the damage is that a LOSS tells of, and which volumes it may concern."""
    names = b"".join(text_bytes(volume) for volume in sorted(volumes))
    return _REGION.pack(region.number, region.start, region.end) + names


def read_loss(content: Buffer) -> tuple[Region, frozenset[str]]:
    """See :func:`loss_content`."""
    number, start, end = _REGION.unpack_from(content)
    names = texts(bytes(content[_REGION.size :]))
    return Region(number=number, start=start, end=end), frozenset(names)


def moved_content(previous_end: int) -> bytes:
    """A MOVED repeats what its segment's head says."""
    return _END.pack(previous_end)


def read_moved(content: Buffer) -> int:
    """See :func:`moved_content`."""
    return int(_END.unpack(content)[0])


def text_bytes(text: str) -> bytes:
    """A text after its length.

    Raises:
        InvalidInput: it is too long.
    """
    encoded = text.encode()
    if len(encoded) > _MOST_TEXT:
        raise InvalidInput(
            f"{text[:40]!r}... has {len(encoded)} bytes, at most {_MOST_TEXT} are kept"
        )
    return bytes([len(encoded)]) + encoded


def texts(encoded: bytes) -> list[str]:
    """Texts that stand one after the other."""
    found, at = [], 0
    while at < len(encoded):
        end = at + 1 + encoded[at]
        found.append(encoded[at + 1 : end].decode())
        at = end
    return found


def _frame_digest(identity: bytes, number: int, at: int, packed: bytes) -> bytes:
    return digest(identity, struct.pack(">QI", number, at), packed)
