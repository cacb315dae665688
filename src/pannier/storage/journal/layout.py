"""How the journal's file is divided, and the heads of the file and its segments as bytes: docs/journal.md. Pure.

All numbers are big-endian. Everything begins at a multiple of BLOCK_BYTES: so a write that a power cut tears never
touches what was confirmed before it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from pannier.core.errors import Corrupt
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
DIGEST_BYTES = 16
"""Of each head: more than chance, or somebody who does not know the journal's identity, can hit."""

_SUPER = struct.Struct(">8sH6x16sQQ")
_SEGMENT = struct.Struct(">8sH6xQQ")
_SUPER_MAGIC, _SEGMENT_MAGIC = b"PNJOURNL", b"PNJSEGMT"


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


def whole_blocks(count: int) -> int:
    """A number of bytes, rounded up to blocks."""
    return -(-count // BLOCK_BYTES) * BLOCK_BYTES


def superblock(geometry: Geometry) -> bytes:
    """Both copies of the superblock."""
    packed = _SUPER.pack(
        _SUPER_MAGIC, VERSION, geometry.identity, geometry.segments, geometry.segment_bytes
    )
    return (packed + digest(b"", packed)).ljust(BLOCK_BYTES, b"\0") * 2


def read_superblock(content: bytes, *, what: str) -> Geometry:
    """What either copy says.

    Raises:
        NewerFormat: a newer version made the journal. Corrupt: neither copy can be read.
    """
    for at in (0, BLOCK_BYTES):
        packed = content[at : at + _SUPER.size]
        written = content[at + _SUPER.size : at + _SUPER.size + DIGEST_BYTES]
        if packed.startswith(_SUPER_MAGIC) and written == digest(b"", packed):
            _, version, identity, segments, segment_bytes = _SUPER.unpack(packed)
            if version > VERSION:
                raise newer_format(what, version, known=VERSION)
            return Geometry(identity=identity, segments=segments, segment_bytes=segment_bytes)
    raise Corrupt(f"{what} has no superblock that can be read", remedy=UNREADABLE_REMEDY)


UNREADABLE_REMEDY = (
    "if the file is lost for good, move it away and restart pannierd here: the copies on this node take nothing over until "
    "each has a generation that its holder has made after that"
)


def segment_head(identity: bytes, head: SegmentHead) -> bytes:
    """The first block of a segment."""
    packed = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, head.number, head.previous_end)
    return (packed + digest(identity, packed)).ljust(BLOCK_BYTES, b"\0")


def read_segment_head(identity: bytes, block: bytes, *, what: str) -> SegmentHead | None:
    """What a segment's first block says; None if it is not one of this journal.

    Raises:
        NewerFormat: a newer version wrote it.
    """
    packed = block[: _SEGMENT.size]
    if block[_SEGMENT.size : _SEGMENT.size + DIGEST_BYTES] != digest(identity, packed):
        return None
    magic, version, number, previous_end = _SEGMENT.unpack(packed)
    if magic != _SEGMENT_MAGIC:
        return None
    if version > VERSION:
        raise newer_format(what, version, known=VERSION)
    return SegmentHead(number=number, previous_end=previous_end)


def digest(identity: bytes, *parts: bytes) -> bytes:
    """What proves that bytes were written to the journal of this identity."""
    made = hashlib.blake2b(key=identity, digest_size=DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.digest()
