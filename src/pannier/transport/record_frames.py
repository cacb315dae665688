"""The language of records: frames on a connection that carries records of all volumes.

A frame is one byte of kind, four bytes of length, eight bytes of request number (big endian) and that many
bytes::

    sender                      receiver
    RECORD    ------------->               a volume's name, and a record as ``core.line.encode`` made it
              <-------------    TAKEN      it is durable there (or FAILED)
    KEEPALIVE <------------>    KEEPALIVE  nothing: this end is alive and has nothing to say

The sender numbers its records from 1 on and waits for no answer before it sends the next one. Answers come in any
order. FAILED holds why, as JSON; with number 0 it is the end of the conversation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from pannier.core.errors import InvalidInput, PannierError
from pannier.core.line import MOST_BYTES, Buffer
from pannier.core.volume import check_name
from pannier.transport.frames import Failed

RECORDS_PROTOCOL = "pannier-records/1"
"""The ALPN name, on the port of the transport of generations. An older node does not select it."""

HEAD = struct.Struct(">BIQ")
RECORD_BYTES = MOST_BYTES + (1 << 20)
"""Longest body of a RECORD: a whole record, and the names and the table of ranges before its content."""
FAILED_BYTES = 64 * 1024
"""Longest body of a FAILED: a message and a remedy of 4,000 characters each, in JSON."""
JOINED_BYTES = 16 * 1024
"""Pieces are joined until they have this much: TLS makes at least one packet of each, and none is larger."""


class RecordKind(IntEnum):
    """What a frame holds."""

    RECORD = 0
    TAKEN = 1
    FAILED = 2
    KEEPALIVE = 3


_LIMITS = {
    RecordKind.RECORD: RECORD_BYTES,
    RecordKind.TAKEN: 0,
    RecordKind.FAILED: FAILED_BYTES,
    RecordKind.KEEPALIVE: 0,
}


@dataclass(frozen=True, slots=True)
class RecordHead:
    """The head of a frame. ``length`` is that of the body, in bytes."""

    kind: RecordKind
    length: int
    number: int


QUIET_FRAME = HEAD.pack(RecordKind.KEEPALIVE, 0, 0)


def parse_head(head: Buffer) -> RecordHead:
    """The head of the frame that follows.

    Raises:
        InvalidInput: no such frame, or a longer one than is allowed.
    """
    kind, length, number = HEAD.unpack(head)
    try:
        known = RecordKind(kind)
    except ValueError:
        known = None
    if known is None or length > _LIMITS[known]:
        raise InvalidInput(
            f"the other side sent a frame of records of kind {kind} with {length} bytes",
            remedy="check that both nodes run the same version",
        )
    return RecordHead(known, length, number)


def join(pieces: Iterable[Buffer]) -> list[Buffer]:
    """The same bytes in fewer pieces: small neighbours are copied together, large ones stay as they are."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > JOINED_BYTES and small:
            joined.append(b"".join(small))
            small, size = [], 0
        small.append(piece)
        size += len(piece)
    if small:
        joined.append(b"".join(small) if len(small) > 1 else small[0])
    return joined


def record_frame(number: int, volume_name: str, pieces: Sequence[Buffer]) -> list[Buffer]:
    """A RECORD in pieces.

    Args:
        pieces: the encoded record.

    Raises:
        InvalidInput: the record is longer than one may be, or this cannot be a volume's name.
    """
    name = check_name(volume_name).encode()
    length = 1 + len(name) + sum(map(len, pieces))
    if length > RECORD_BYTES:
        raise InvalidInput(
            f"a record of volume {volume_name} has {length} bytes, and {RECORD_BYTES} at most can be sent",
            remedy="send a generation instead",
        )
    head = HEAD.pack(RecordKind.RECORD, length, number) + bytes([len(name)]) + name
    return join([head, *pieces])


def split_record(body: memoryview) -> tuple[str, memoryview]:
    """The volume's name and the encoded record in the body of a RECORD. Nothing is copied.

    Raises:
        InvalidInput: it is not the body of one.
    """
    end = 1 + (body[0] if body else 0)
    try:
        name = check_name(str(body[1:end], "ascii"))
    except UnicodeDecodeError:
        name = None
    if name is None or end > len(body):
        raise InvalidInput(
            "the other side sent a record of a volume whose name cannot be read",
            remedy="check that both nodes run the same version",
        )
    return name, body[end:]


def taken_frame(number: int) -> bytes:
    """A TAKEN."""
    return HEAD.pack(RecordKind.TAKEN, 0, number)


def failed_frame(number: int, error: PannierError) -> bytes:
    """A FAILED."""
    body = msgspec.json.encode(Failed.of(error))
    return HEAD.pack(RecordKind.FAILED, len(body), number) + body


def parse_failed(body: Buffer, *, peer: str) -> PannierError:
    """The error in the body of a FAILED, as its own class; ``peer`` is who reported it.

    Raises:
        InvalidInput: there is none in it.
    """
    try:
        return msgspec.json.decode(body, type=Failed).error(peer=peer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"{peer} reported a failure that cannot be read",
            remedy="check that both nodes run the same version",
        ) from error
