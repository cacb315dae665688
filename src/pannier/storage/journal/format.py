"""The journal's file as bytes, described in docs/journal.md. Pure.

All numbers are big-endian. Everything begins at a multiple of BLOCK_BYTES: so a write that a power cut tears never
touches what was confirmed before it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from pannier.core.errors import Corrupt, InvalidInput
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Place
from pannier.core.record import newer_format

VERSION = 1
BLOCK_BYTES = 4096
"""Direct I/O of the pool wants this alignment, and no disk writes a smaller piece than it halfway twice."""
SUPER_BYTES = 2 * BLOCK_BYTES
"""Before the first segment: the superblock and its second copy."""
SEGMENT_BYTES = 16 << 20
"""A segment holds three of the largest records, and is freed as a whole: larger ones would be freed later."""
FEWEST_SEGMENTS = 4
"""One that is written, one that is free for what is moved, and two with records."""

_SUPER = struct.Struct(">8sH6x16sQQ")
_SEGMENT = struct.Struct(">8sH6xQQ")
_FRAME = struct.Struct(">BBHIIQIQQQQ")
_REGION = struct.Struct(">QII")
_END = struct.Struct(">I")
_SUPER_MAGIC, _SEGMENT_MAGIC, _FRAME_MAGIC = b"PNJOURNL", b"PNJSEGMT", b"PNJF"
_DIGEST_BYTES = 16
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
class Geometry:
    """How a journal's file is divided.

    Attributes:
        identity: 16 bytes, chosen at random when it was made; the key of all its digests.
        segments: how many there are, each of ``segment_bytes``.
    """

    identity: bytes
    segments: int
    segment_bytes: int

    def start(self, number: int) -> int:
        """Where a segment begins in the file. Its number counts all segments ever begun, from 1 on."""
        return SUPER_BYTES + number % self.segments * self.segment_bytes

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return SUPER_BYTES + self.segments * self.segment_bytes

    @property
    def end(self) -> int:
        """Where the frames of a segment end at most: the last block is for a CLOSED."""
        return self.segment_bytes - BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHead:
    """The first block of a segment.

    Attributes:
        previous_end: where the frames of the segment before it end, in bytes from its start; all of them were durable.
    """

    number: int
    previous_end: int


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
    place: Place | None = None


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


def whole_blocks(count: int) -> int:
    """A number of bytes, rounded up to blocks."""
    return -(-count // BLOCK_BYTES) * BLOCK_BYTES


# -- heads of the file and of segments ------------------------------------------------------------------


def superblock(geometry: Geometry) -> bytes:
    """Both copies of the superblock."""
    packed = _SUPER.pack(
        _SUPER_MAGIC, VERSION, geometry.identity, geometry.segments, geometry.segment_bytes
    )
    return (packed + _digest(b"", packed)).ljust(BLOCK_BYTES, b"\0") * 2


def read_superblock(content: bytes, *, what: str) -> Geometry:
    """What either copy says.

    Raises:
        NewerFormat: a newer version made the journal. Corrupt: neither copy can be read.
    """
    for at in (0, BLOCK_BYTES):
        packed = content[at : at + _SUPER.size]
        digest = content[at + _SUPER.size : at + _SUPER.size + _DIGEST_BYTES]
        if packed.startswith(_SUPER_MAGIC) and digest == _digest(b"", packed):
            _, version, identity, segments, segment_bytes = _SUPER.unpack(packed)
            if version > VERSION:
                raise newer_format(what, version, known=VERSION)
            return Geometry(identity=identity, segments=segments, segment_bytes=segment_bytes)
    raise Corrupt(f"{what} has no superblock that can be read", remedy=UNREADABLE_REMEDY)


UNREADABLE_REMEDY = (
    "move the file away and restart pannierd on this node: its copies then count as incomplete until "
    "they have a new generation"
)


def segment_head(identity: bytes, head: SegmentHead) -> bytes:
    """The first block of a segment."""
    packed = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, head.number, head.previous_end)
    return (packed + _digest(identity, packed)).ljust(BLOCK_BYTES, b"\0")


def read_segment_head(identity: bytes, block: bytes, *, what: str) -> SegmentHead | None:
    """What a segment's first block says; None if it is not one of this journal.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    packed = block[: _SEGMENT.size]
    if block[_SEGMENT.size : _SEGMENT.size + _DIGEST_BYTES] != _digest(identity, packed):
        return None
    magic, version, number, previous_end = _SEGMENT.unpack(packed)
    if magic != _SEGMENT_MAGIC:
        return None
    if version > VERSION:
        raise newer_format(what, version, known=VERSION)
    return SegmentHead(number=number, previous_end=previous_end)


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


_HEAD_BYTES = len(_FRAME_MAGIC) + _DIGEST_BYTES + _FRAME.size


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
    digest = fixed[len(_FRAME_MAGIC) : len(_FRAME_MAGIC) + _DIGEST_BYTES]
    if digest != _frame_digest(identity, number, at, packed):
        return None
    kind, placed, _, count, check, arrival, synced, *numbers = _FRAME.unpack_from(packed)
    volume, run, generation = texts(packed[_FRAME.size :])
    place = None
    if placed:
        epoch, counted, included, acknowledged = numbers
        place = Place(
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
    return _digest(identity, struct.pack(">QI", number, at), packed)


def _digest(identity: bytes, *parts: bytes) -> bytes:
    made = hashlib.blake2b(key=identity, digest_size=_DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.digest()
