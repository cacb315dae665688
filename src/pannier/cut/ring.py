"""The kernel's ring of trace events, as bytes: sub-buffers and the events in them. No I/O.

A ring is read as whole sub-buffers. Each begins with a time and the number of its bytes in use; then events
follow, each with a header of 32 bits: 5 bits of kind or length, 27 bits of nanoseconds since the event before.
``events/header_page`` and the event's ``format`` say where the fields are.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pannier.core.errors import Unavailable

SECTOR_BYTES = 512
"""The kernel counts in these, whatever the device's own sectors are."""

_FIELD = re.compile(r"field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);")
_EVENT_HEADER = struct.Struct("=I")
_LENGTH_OF_DATA, _PADDING, _TIME_EXTEND, _TIME_STAMP = 0, 29, 30, 31
_DELTA_BITS = 27
_STAMP_BITS = 59
"""A whole time has as many bits; the upper ones are those of the time before."""
_MISSED, _FLAGS = 1 << 31, 3 << 30
"""Of a sub-buffer's bytes in use: events are missing before it; all flags."""
_WORD = 4


class TraceEvent(NamedTuple):
    """A completed write, discard or zeroing. (Of these there are many: a tuple.)

    Attributes:
        device: the kernel's own number of it, see :func:`kernel_number`.
        at_ns: CLOCK_MONOTONIC.
        start: in bytes.
        end: in bytes.
        may_be_hole: it was no plain write, so its range may be a hole of the file now.
        refused: the device says that it failed.
    """

    device: int
    at_ns: int
    start: int
    end: int
    may_be_hole: bool
    refused: bool = False

    @property
    def sectors(self) -> int:
        return (self.end - self.start) // SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields are.

    Attributes:
        page_bytes: of a sub-buffer.
        data: offset of a sub-buffer's first event.
        page_head: its time, and its bytes in use.
        event_id: of the event that is looked for.
        body: of that event: the id, then device, sector, sectors, kind and error, in the order of ``order``.
        order: places of device, sector, sectors, kind and error in what ``body`` unpacks.
    """

    page_bytes: int
    data: int
    page_head: struct.Struct
    event_id: int
    body: struct.Struct
    order: tuple[int, int, int, int, int]


def layout(header_page: str, event_format: str) -> Layout:
    """The layout that the kernel describes.

    Args:
        header_page: the text of ``events/header_page``.
        event_format: the text of ``format`` of ``block_rq_complete``.

    Raises:
        Unavailable: a field is not there, or not as large as it must be.
    """
    if sys.byteorder != "little":  # the bits of an event's header are in another order then
        raise Unavailable("the block trace of big-endian machines cannot be read")
    page, event = _fields(header_page), _fields(event_format)
    found = re.search(r"^ID: (\d+)", event_format, re.MULTILINE)
    try:
        # The bytes in use are a machine word, of which the lower 32 bits matter.
        head, _ = _structure({"timestamp": page["timestamp"], "commit": (page["commit"][0], 4)})
        names = ("dev", "sector", "nr_sector", "rwbs", "error")
        wanted = {name: event[name] for name in names}
        if found is None or wanted["dev"][1] != 4 or wanted["sector"][1] != 8:
            raise KeyError("ID, dev, sector")
        body, order = _structure({"common_type": event["common_type"], **wanted})
        data, size = page["data"]
    except KeyError as error:
        raise Unavailable(
            f"this kernel's block trace is not as expected: {error} is missing or of another size",
            remedy="volumes are replicated by generations here; report the kernel's version",
        ) from error
    first, second, third, fourth, fifth = (order.index(name) for name in names)
    return Layout(
        page_bytes=data + size,
        data=data,
        page_head=head,
        event_id=int(found[1]),
        body=body,
        order=(first, second, third, fourth, fifth),
    )


def _fields(text: str) -> dict[str, tuple[int, int]]:
    """Offset and size by name; the first of a name counts."""
    found: dict[str, tuple[int, int]] = {}
    for name, offset, size in _FIELD.findall(text):
        found.setdefault(name, (int(offset), int(size)))
    return found


def _structure(fields: Mapping[str, tuple[int, int]]) -> tuple[struct.Struct, list[str]]:
    """A structure with these fields and gaps between them, and their names in its order."""
    codes = {2: "H", 4: "I", 8: "Q"}
    text, at, names = "=", 0, sorted(fields, key=lambda name: fields[name][0])
    for name in names:
        offset, size = fields[name]
        text += f"{offset - at}x" + (f"{size}s" if name == "rwbs" else codes[size])
        at = offset + size
    return struct.Struct(text), names


def kernel_number(device: int) -> int:
    """What the kernel calls a device in a trace. It is not what stat(2) calls it.

    Args:
        device: a ``dev_t`` as stat(2) gives it.
    """
    major = (device >> 8 & 0xFFF) | (device >> 32 & ~0xFFF)
    minor = (device & 0xFF) | (device >> 12 & ~0xFF)
    return major << 20 | minor & 0xFFFFF


def parse(page: bytes, where: Layout) -> tuple[list[TraceEvent], bool]:
    """The events of a sub-buffer, in the ring's order, and whether events are missing before them.

    Raises:
        ValueError: these are not the bytes of a sub-buffer.
    """
    try:
        return _parse(page, where)
    except struct.error as error:
        raise ValueError(f"a sub-buffer of {len(page)} bytes cannot be read: {error}") from error


def _parse(page: bytes, where: Layout) -> tuple[list[TraceEvent], bool]:
    now, used = where.page_head.unpack_from(page)
    found: list[TraceEvent] = []
    at, end = where.data, where.data + (used & ~_FLAGS)
    if end > len(page):
        raise ValueError(f"a sub-buffer of {len(page)} bytes says that it uses {end}")
    while at < end:
        (header,) = _EVENT_HEADER.unpack_from(page, at)
        kind, delta = header & 31, header >> 5
        if 0 < kind < _PADDING:
            now += delta
            body, at = at + _WORD, at + _WORD + kind * _WORD
        else:
            (word,) = (
                _EVENT_HEADER.unpack_from(page, at + _WORD) if kind != _PADDING or delta else (0,)
            )
            if kind == _PADDING:
                if not delta:  # to the end
                    break
                at += _WORD + word  # an event that was taken back
                continue
            if kind == _TIME_EXTEND:
                now += word << _DELTA_BITS | delta
                at += 2 * _WORD
                continue
            if kind == _TIME_STAMP:
                now = now >> _STAMP_BITS << _STAMP_BITS | word << _DELTA_BITS | delta
                at += 2 * _WORD
                continue
            now += delta
            body, at = at + 2 * _WORD, at + _WORD + word
        if event := _event(page, body, now, where):
            found.append(event)
    return found, bool(used & _MISSED)


def _event(page: bytes, body: int, now: int, where: Layout) -> TraceEvent | None:
    """An event of ours, or None: another one, a read, or one without a range (a flush)."""
    if int.from_bytes(page[body : body + 2], "little") != where.event_id:
        return None
    values = where.body.unpack_from(page, body)
    device, sector, sectors, kind, error = (values[place] for place in where.order)
    what = kind.lstrip(b"F")  # F before the operation: a flush goes before it
    if not sectors or what[:1] == b"R":
        return None
    start = sector * SECTOR_BYTES
    may_be_hole = what[:1] != b"W" or what[:2] == b"WZ"
    return TraceEvent(device, now, start, start + sectors * SECTOR_BYTES, may_be_hole, error != 0)
