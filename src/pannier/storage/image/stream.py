"""A generation of an image as a stream: a header, records of ranges, an end.

Each record has a checksum over itself and all before it: a flipped bit, a missing record and one in
another place are found at the record in which they show. The header names the generation and the base
by their identities, so that a difference is never applied to another base with the same number.

Records are in order. So a stream that broke has brought, up to its last sound record, all that belongs before
that record's end. The next stream may begin there: its header says so, in a format of its own, and is sent only to
who has asked for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from isal.isal_zlib import crc32

from pannier.core.errors import Corrupt
from pannier.core.line import LARGEST_IMAGE, Buffer, Data, Zeros

_MAGIC = b"PannierI"
_WHOLE, _REST = 1, 2
"""Formats: from the first byte on, and from a position on, which follows the header."""
_HEADER = struct.Struct(">8sHxxxxxxQ16s16s")
_POSITION = struct.Struct(">Q")
_RECORD = struct.Struct(">BxxxxxxxQQ")
_CHECKSUM = struct.Struct(">I")
_DATA, _ZERO, _END = 1, 2, 3
RECORD_BYTES = 1 << 20
"""Data of one record at most: what a receiver holds in memory."""
_NOTHING = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeader:
    """What a stream brings.

    Attributes:
        size: of the image, in bytes.
        identity: of the generation, hex.
        base: identity of the generation that it is the difference to; None if it is whole.
        position: nothing before this byte is in it: the receiver has that.
    """

    size: int
    identity: str
    base: str | None
    position: int = 0


class Encoder:
    """Makes the pieces of a stream, in order."""

    def __init__(self) -> None:
        self._sum = 0

    def header(self, header: StreamHeader) -> bytes:
        """The stream's first piece."""
        base = bytes.fromhex(header.base) if header.base else _NOTHING
        identity = bytes.fromhex(header.identity)
        format = _REST if header.position else _WHOLE
        head = _HEADER.pack(_MAGIC, format, header.size, identity, base)
        return self._summed(head + (_POSITION.pack(header.position) if header.position else b""))

    def record(self, record: Zeros | Data) -> tuple[bytes, Buffer]:
        """The two pieces of a record: ours, then its bytes."""
        match record:
            case Zeros(start, end):
                return self._summed(_RECORD.pack(_ZERO, start, end - start)), b""
            case Data(start, content):
                head = _RECORD.pack(_DATA, start, len(content))
                return self._summed(head, content), content

    def end(self) -> bytes:
        """The stream's last piece."""
        return self._summed(_RECORD.pack(_END, 0, 0))

    def _summed(self, head: bytes, content: Buffer = b"") -> bytes:
        self._sum = crc32(content, crc32(head, self._sum))
        return head + _CHECKSUM.pack(self._sum)


def decode(
    read: Callable[[int], Buffer], *, what: str
) -> tuple[StreamHeader, Iterator[Zeros | Data]]:
    """Read a stream.

    Args:
        read: the next bytes, exactly so many; fewer only at the end. What is given for a record's data is
            used before the next are read.
        what: what it should be, for errors: "generation 1.2 of volume v".

    Returns:
        The header, and the records as they come. The records end only after a sound end.

    Raises:
        Corrupt: it is damaged, cut short or something else; the records raise it, too.
    """
    decoder = _Decoder(read, what)
    return decoder.header(), decoder.records()


class _Decoder:
    def __init__(self, read: Callable[[int], Buffer], what: str) -> None:
        self._read = read
        self._what = what
        self._sum = 0
        self._size = 0
        self._position = 0

    def header(self) -> StreamHeader:
        head = self._exactly(_HEADER.size)
        magic, format, size, identity, base = _HEADER.unpack(head)
        if magic != _MAGIC:
            raise Corrupt(
                f"the stream of {self._what} is of something else", remedy="send it again"
            )
        if format not in (_WHOLE, _REST):
            raise Corrupt(
                f"the stream of {self._what} has the format {format}, the newest known is {_REST}",
                remedy="update Pannier on this node first",
            )
        rest = self._exactly(_POSITION.size) if format == _REST else b""
        self._compare(self._exactly(_CHECKSUM.size), head, rest)
        if size > LARGEST_IMAGE:
            raise self._damaged()
        self._size = size
        self._position = _POSITION.unpack(rest)[0] if rest else 0
        return StreamHeader(
            size=size,
            identity=identity.hex(),
            base=base.hex() if base != _NOTHING else None,
            position=self._position,
        )

    def records(self) -> Iterator[Zeros | Data]:
        while True:
            head = self._exactly(_RECORD.size)
            kind, start, length = _RECORD.unpack(head)
            if kind == _DATA and length > RECORD_BYTES:
                raise self._damaged()
            # The checksum comes before the bytes, so that the head is written in one piece.
            expected = self._exactly(_CHECKSUM.size)
            content = self._exactly(length) if kind == _DATA else b""
            self._compare(expected, head, content)
            if kind != _END and not self._position <= start <= start + length <= self._size:
                raise self._damaged()
            self._position = start + length
            if kind == _DATA:
                yield Data(start, content)
            elif kind == _ZERO:
                yield Zeros(start, start + length)
            elif kind == _END and not self._read(1):
                return
            else:
                raise self._damaged()

    def _compare(self, expected: Buffer, head: Buffer, content: Buffer) -> None:
        self._sum = crc32(content, crc32(head, self._sum))
        if _CHECKSUM.pack(self._sum) != expected:
            raise self._damaged()

    def _exactly(self, count: int) -> Buffer:
        found = self._read(count)
        if len(found) < count:
            raise Corrupt(f"the stream of {self._what} was cut short", remedy="send it again")
        return found

    def _damaged(self) -> Corrupt:
        return Corrupt(f"the stream of {self._what} was damaged on its way", remedy="send it again")
