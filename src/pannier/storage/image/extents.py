"""Where a file's bytes lie on the pool, and in what two snapshots of one image differ.

Two read-only snapshots that share a piece of the disk have the same bytes there, however each came
about. So the difference needs no history: it is every range whose place on the disk is another one.
Too much is harmless, too little would lose data. A balance of the pool moves extents while they are
listed; it leaves them their transaction, so a place counts as shared only if what lies there in each was written before
the older of the two was made. Either may be the base.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pannier.core.errors import Corrupt

_SEARCH_V2 = 3 << 30 | 112 << 16 | 0x94 << 8 | 17
_KEY = struct.Struct("<QQQQQQQIII36x")
_ITEM = struct.Struct("<Q4xIQ8x5sQ8xQQ")
"""Of what is found: its place in the file, its size, and an extent that lies on the disk."""
_ITEM_AT, _ITEM_END = 16, 85
"""Where that is in an entry of the answer. What is before it is the same for all of a file, or of a leaf of the tree."""
_SIZE, _FORM = slice(12, 16), slice(32, 37)
_EXTENT_SIZE = (53).to_bytes(4, "little")
_EXTENT_DATA = 108
_REGULAR, _PREALLOCATED = b"\0\0\0\0\1", b"\0\0\0\0\2"
_FORMS = (_REGULAR, _PREALLOCATED)
"""Compression, encryption, two bytes of another encoding, and the kind."""
_BUFFER_BYTES = 256 << 10
"""For what one call finds, some 3,000 extents. A larger one is made for each call and hardly ever filled."""
_ON_DISK, _PIECE = slice(37, 53), struct.Struct("<QQ")
"""Where that has the place and the length of the piece of the disk of which the file has some, or all."""
_LAST = 2**64 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of a file that lies in one piece on the disk.

    Attributes:
        start, end: bytes of the file.
        place: of its first byte, in btrfs' own addresses.
        written: the transaction in which it was written.
    """

    start: int
    end: int
    place: int
    written: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file from ``start`` to ``end``; ``zero`` if all of them are zero."""

    start: int
    end: int
    zero: bool


def extents(file: int) -> tuple[Extent, ...]:
    """The extents of an open file on btrfs, in order; what is in none reads as zeros.

    The file must not change meanwhile: it is one of a read-only snapshot. The buffer of the system
    call is large, and Python's own ``ioctl`` would keep the interpreter's lock with it.

    Raises:
        OSError: the kernel refused.
        Corrupt: it has an extent that an image cannot have, such as a compressed one.
    """
    return tuple(_lying(_items(file)))


def on_disk(file: int) -> frozenset[bytes]:
    """What an open file has of the disk, piece by piece, for :func:`disk_bytes`. A piece stays as long as any file has any of it.

    One that is just written may have others a moment later.

    Raises:
        OSError, Corrupt: as :func:`extents`.
    """
    return frozenset(item[_ON_DISK] for item in _items(file))


def disk_bytes(pieces: Iterable[bytes]) -> int:
    """How many bytes they are, all together."""
    return sum(length for place, length in map(_PIECE.unpack, pieces) if place)


def unshared(newer: int, base: int, *, made: int) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    """The extents of two open files but for those that both have, which is nearly all: what :func:`difference`
    says is the same.

    Args:
        made: as :func:`difference` has it.

    Raises:
        OSError, Corrupt: as :func:`extents`.
    """
    ours, theirs = _items(newer), _items(base)
    both = {item for item in set(ours).intersection(theirs) if _ITEM.unpack(item)[2] <= made}
    rests = ([item for item in items if item not in both] for items in (ours, theirs))
    first, second = (tuple(_lying(rest)) for rest in rests)
    return first, second


def _items(file: int) -> list[bytes]:
    """The extents of an open file as the kernel gives them."""
    inode, first, found = os.fstat(file).st_ino, 0, list[bytes]()
    block = ctypes.create_string_buffer(_KEY.size + 8 + _BUFFER_BYTES)
    while True:
        key = (0, inode, inode, first, _LAST, 0, _LAST, _EXTENT_DATA, _EXTENT_DATA, 2**32 - 1)
        _KEY.pack_into(block, 0, *key)
        struct.pack_into("<Q", block, _KEY.size, _BUFFER_BYTES)
        if _libc.ioctl(file, _SEARCH_V2, block):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        (count,) = struct.unpack_from("<I", block, 64)
        if not count:
            return found
        # Each takes the same room: one that does not is of a kind that no image has.
        content = memoryview(block)[_KEY.size + 8 :][: count * _ITEM_END].tobytes()
        for at in range(0, len(content) - _ITEM_END + 1, _ITEM_END):
            item = content[at + _ITEM_AT : at + _ITEM_END]
            if item[_SIZE] != _EXTENT_SIZE or item[_FORM] not in _FORMS:
                raise Corrupt(
                    f"the image has an extent of another kind at {_ITEM.unpack(item)[0]}: it is none of ours",
                    remedy="take the volume's copy on another node",
                )
            found.append(item)
        first = _ITEM.unpack(found[-1])[0] + 1


def _lying(items: Iterable[bytes]) -> Iterator[Extent]:
    """Those that have bytes on the disk."""
    for start, _size, written, form, place, offset, length in map(_ITEM.unpack, items):
        if place and form == _REGULAR:
            yield Extent(start, start + length, place + offset, written)


def difference(
    newer: Iterable[Extent], size: int, base: Iterable[Extent] = (), *, made: int = 0
) -> tuple[Range, ...]:
    """The ranges in which a snapshot may differ from another one, in order, none touching the next
    of its kind.

    Args:
        newer: extents of the snapshot.
        size: of its file, in bytes.
        base: extents of the other one; none is a file that was never written.
        made: the last transaction in which the older of the two was written.
    """
    found: list[Range] = []
    theirs = _Cursor(base)
    for start, end, extent in _covered(newer, size):
        at = start
        while at < end:
            other, until = theirs.at(at)
            until = min(until, end)
            if extent is None:
                if other is not None:
                    _add(found, Range(at, until, zero=True))
            elif not _shared(extent, other, at, made):
                _add(found, Range(at, until, zero=False))
            at = until
    return tuple(found)


def _shared(extent: Extent, other: Extent | None, at: int, made: int) -> bool:
    return (
        other is not None
        and max(extent.written, other.written) <= made
        and extent.place - extent.start == other.place - other.start
    )


def _covered(extents: Iterable[Extent], size: int) -> Iterator[tuple[int, int, Extent | None]]:
    """The whole of a file, piece by piece: what lies in an extent, and what in none."""
    at = 0
    for extent in extents:
        if extent.start >= size:
            break
        if at < extent.start:
            yield at, extent.start, None
        at = min(extent.end, size)
        yield extent.start, at, extent
    if at < size:
        yield at, size, None


class _Cursor:
    """Finds the extents of ascending places."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._rest = iter(extents)
        self._next = next(self._rest, None)

    def at(self, place: int) -> tuple[Extent | None, int]:
        """The extent there or None, and where that ends."""
        while self._next is not None and self._next.end <= place:
            self._next = next(self._rest, None)
        if self._next is None:
            return None, _LAST
        if place < self._next.start:
            return None, self._next.start
        return self._next, self._next.end


def _add(found: list[Range], new: Range) -> None:
    if found and found[-1].end == new.start and found[-1].zero == new.zero:
        found[-1] = Range(found[-1].start, new.end, new.zero)
    else:
        found.append(new)
