"""A volume's line: what its holder wrote since a generation, as numbered records.

A record holds what was written to an image between two cuts. It is sent to the copies, and they keep it in
their journals, until they have a generation that was made after it. A record says after which generation it was
made, and how many records that one has: so a copy knows whether it has everything before the record.

A holder that begins anew (a mount, a restart) begins another run, with a generation. Records of one run never
follow those of another.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pannier.core.errors import Corrupt, InvalidInput
from pannier.core.generation import Generation

MOST_BYTES = 4 << 20
"""Content of one record at most. What a cut has beyond that goes with a generation: a record is kept in memory by
both ends, and a copy's journal keeps it whole."""

BLOCK_BYTES = 4096
"""What is written begins and ends at multiples of this: the block of the file systems in images."""
LARGEST_IMAGE = 1 << 60
"""What a file system in an image may have, and what a file's offset can name."""
_MAGIC = b"PNRR"
_VERSION = 1
_HEAD = struct.Struct(">4sHHIQQQQQQI")
_RANGE = struct.Struct(">QQB7x")
_DATA, _ZERO = 1, 2
_MOST_TEXT = 200

Buffer = bytes | bytearray | memoryview


class OnTop(StrEnum):
    """What an epoch begins with, beyond its base.

    NOTHING: the former holder gave the volume away, and the base has everything. ALL: each record on top of the base that was
    confirmed; where one may be missing, the epoch does not begin. WHAT_IS_HERE: of those, the ones before the first that is
    missing; a person has accepted the loss of the rest.
    """

    NOTHING = "nothing"
    ALL = "all"
    WHAT_IS_HERE = "what-is-here"


@dataclass(frozen=True, slots=True)
class Zeros:
    """A range of zeros, in bytes."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes at a place."""

    start: int
    content: Buffer

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.content)


Range = Data | Zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlace:
    """Where a record stands in its line.

    Attributes:
        volume: the volume's id.
        epoch: of the holder that made it.
        run: 16 hex digits, chosen at random for each run.
        number: counts the records of a run, from 1 on.
        generation: the newest one that was made before it, whole on the holder's disk.
        included: how many records of the run that generation has.
        acknowledged: the highest number whose sync calls were answered before the newest one began. It is noted on
            the holder's disk: see :mod:`pannier.core.set_back`.
    """

    volume: str
    epoch: int
    run: str
    number: int
    generation: Generation
    included: int
    acknowledged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRecord:
    """What was written between two cuts.

    Attributes:
        size: of the image, in bytes.
        ranges: ascending and disjoint; starts and lengths are multiples of 4 KiB.
    """

    place: LinePlace
    size: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What was written to an image since the cut before it. See :class:`LineRecord`."""

    size: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What of a copy's records is to be put on top of a generation.

    Attributes:
        places: of the records, in their order.
        lacks: what does not follow them, and so is missing between; empty where nothing is.
    """

    places: tuple[LinePlace, ...]
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What was written since the last cut cannot be told, or is too much for a record: a generation has it."""

    reason: str
    remedy: str = ""
    """What a person can do; empty where it passes by itself."""
    too_much: bool = False
    """All can be told, and nothing was lost."""


def new_run() -> str:
    """The identity of a run that begins."""
    return secrets.token_hex(8)


def follows(place: LinePlace, *, last: LinePlace | None, newest: Generation | None) -> bool:
    """Whether a copy has everything before a record, so that it may keep and confirm it.

    Args:
        last: of the newest record that the copy keeps of this volume.
        newest: the copy's newest generation.
    """
    after_record = last is not None and (last.run, last.epoch, last.number) == (
        place.run,
        place.epoch,
        place.number - 1,
    )
    return after_record or (newest == place.generation and place.number == place.included + 1)


def tail(places: Sequence[LinePlace], base: Generation) -> Tail:
    """What of a copy's records, in the order in which they came, is to be put on top of a generation.

    There may be newer generations, which arrived while the copy was just taking the volume over, and records that
    need those. Nothing of that was confirmed.
    """
    found: list[LinePlace] = []
    for place in places:
        before = found[-1] if found else None
        if is_settled(place, base):
            continue
        if not follows(place, last=before, newest=None if before else base):
            if place.generation.number > base.number:
                break
            lacks = (
                f"record {place.number} of run {place.run} is here, and not what is between it and "
                + (f"record {before.number}" if before else f"generation {base}")
            )
            return Tail(places=tuple(found), lacks=lacks)
        found.append(place)
    return Tail(places=tuple(found))


def is_settled(place: LinePlace, newest: Generation) -> bool:
    """Whether a generation that a copy has durably makes a record of no use."""
    return place.generation.number < newest.number


def encode(record: LineRecord) -> list[Buffer]:
    """A record as pieces of one string of bytes, as it is sent and kept. The first piece has all but the content."""
    place = record.place
    texts = [text.encode() for text in (place.volume, place.run, str(place.generation))]
    if any(len(text) > _MOST_TEXT for text in texts):
        raise InvalidInput(f"the names of a record of volume {place.volume[:40]} are too long")
    content: list[Buffer] = []
    table = bytearray()
    for one in record.ranges:
        match one:
            case Data(start, data):
                table += _RANGE.pack(start, len(data), _DATA)
                content.append(data)
            case Zeros(start, end):
                table += _RANGE.pack(start, end - start, _ZERO)
    names = b"".join(bytes([len(text)]) + text for text in texts)
    body = names + bytes(table)
    total = sum(len(data) for data in content)
    head = _HEAD.pack(
        _MAGIC,
        _VERSION,
        len(names),
        len(record.ranges),
        total,
        place.epoch,
        place.number,
        place.included,
        place.acknowledged,
        record.size,
        0,
    )
    check = zlib.crc32(body, zlib.crc32(head))
    for data in content:
        check = zlib.crc32(data, check)
    return [head[:-4] + struct.pack(">I", check) + body, *content]


def decode(encoded: Buffer) -> LineRecord:
    """A record from its bytes; its content is not copied.

    Raises:
        Corrupt: these are not the bytes of one whole record.
    """
    whole = memoryview(encoded)
    try:
        return _decode(whole)
    except (struct.error, IndexError, UnicodeDecodeError, InvalidInput) as error:
        raise Corrupt(f"a record of {len(whole)} bytes cannot be read: {error}") from error


def _decode(whole: memoryview) -> LineRecord:
    magic, version, names, count, total, epoch, number, included, acknowledged, size, check = (
        _HEAD.unpack_from(whole)
    )
    table = _HEAD.size + names
    content = table + count * _RANGE.size
    if magic != _MAGIC or version != _VERSION or len(whole) != content + total:
        raise Corrupt(f"{len(whole)} bytes are not one record of version {_VERSION}")
    if size > LARGEST_IMAGE:
        raise Corrupt(f"a record is of an image of {size} bytes")
    head = bytes(whole[: _HEAD.size - 4]) + bytes(4)
    if zlib.crc32(whole[_HEAD.size :], zlib.crc32(head)) != check:
        raise Corrupt(f"a record of {len(whole)} bytes is damaged")
    texts, at = [], _HEAD.size
    for _ in range(3):
        length = whole[at]
        texts.append(bytes(whole[at + 1 : at + 1 + length]).decode())
        at += 1 + length
    ranges: list[Range] = []
    before = 0
    for index in range(count):
        start, length, kind = _RANGE.unpack_from(whole, table + index * _RANGE.size)
        end = start + length
        if not before <= start < end <= size or start % BLOCK_BYTES or length % BLOCK_BYTES:
            raise Corrupt(f"a record has a range from {start} to {end} in an image of {size} bytes")
        before = end
        if kind == _DATA:
            ranges.append(Data(start, whole[content : content + length]))
            content += length
        else:
            ranges.append(Zeros(start, start + length))
    if at != table or content != len(whole):
        raise Corrupt(f"the parts of a record of {len(whole)} bytes do not fit together")
    volume, run, generation = texts
    place = LinePlace(
        volume=volume,
        epoch=epoch,
        run=run,
        number=number,
        generation=Generation.parse(generation),
        included=included,
        acknowledged=acknowledged,
    )
    return LineRecord(place=place, size=size, ranges=tuple(ranges))
