"""Reading an image to the last byte, and comparing it with the checksums of its bytes as they came."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pannier.core.errors import StorageError
from pannier.storage.base import Reading
from pannier.storage.blocks import BLOCK_BYTES, Piece
from pannier.storage.image.extents import extents
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.sums import Sums, sum_of, sums_of
from pannier.storage.slow_reading import CHUNK_BYTES, DAMAGE, SlowReader, damaged

MOST_DAMAGED = 1024
"""Damaged blocks that are told one by one: with more (4 MiB) the disk has lost more than blocks."""
MOST_PIECES = 1 << 18
"""In one answer, which is in memory: 16 TiB in pieces of 64 MiB. Another node says how large the pieces are."""
_ZEROS = bytes(BLOCK_BYTES)
_ZEROS_SUM = sum_of(memoryview(_ZEROS))
_DIGEST_BYTES = 16
_PIECE_DIGEST_BYTES = 8


class _Block(NamedTuple):
    """A block that lies in an extent.

    Attributes:
        start: where it begins.
        sum: of what was read; None if it cannot be read.
        known: the sum that was stored when it came; 0 if there is none.
        zero: whether all of its bytes are.
    """

    start: int
    sum: int | None
    known: int
    zero: bool

    @property
    def damaged(self) -> bool:
        return self.sum is None or self.known not in (0, self.sum)


def check_image(tree: Path, of: str, stop: threading.Event) -> Reading:
    """Read the image of a snapshot from the disk, not from memory. Holes are not read.

    Args:
        of: what it is, for the error.
        stop: set when nobody waits any more.

    Raises:
        Corrupt: more than MOST_DAMAGED blocks cannot be read, or are not what was received.
        ReadingStopped: ``stop`` was set.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    proved, bad = True, list[int]()
    size = (tree / IMAGE).stat().st_size
    digest.update(size.to_bytes(8, "big"))
    for block in _blocks(tree, 0, None, SlowReader(stop)):
        if block.damaged:
            bad.append(block.start)
            if len(bad) > MOST_DAMAGED:
                raise damaged(of, f"more than {MOST_DAMAGED} blocks, {_where(bad[0])} the first,")
        proved &= block.known != 0
        _add(digest, block)
    return Reading(proved=proved and not bad, digest=digest.hexdigest(), damaged=tuple(bad))


def pieces_of(
    tree: Path, of: str, stop: threading.Event, *, start: int, end: int | None, piece_bytes: int
) -> tuple[Piece, ...]:
    """What an image has, piece by piece, from ``start`` to ``end``; None is its own end.

    Raises:
        Corrupt: a block cannot be read. ReadingStopped: ``stop`` was set.
        StorageError: there are more pieces than any node asks for.
    """
    found: list[Piece] = []
    with closing(_blocks(tree, start, end, SlowReader(stop))) as blocks:
        for number, group in groupby(blocks, key=lambda block: block.start // piece_bytes):
            if len(found) == MOST_PIECES:
                raise StorageError(
                    f"{of} has more than {MOST_PIECES} pieces of {piece_bytes} bytes there",
                    remedy="check that both nodes run the same version",
                )
            found.append(_piece(of, number * piece_bytes, group))
    return tuple(found)


def _piece(of: str, start: int, blocks: Iterable[_Block]) -> Piece:
    digest = hashlib.blake2b(digest_size=_PIECE_DIGEST_BYTES)
    proved, zero = True, True
    for block in blocks:
        if block.sum is None:
            raise damaged(of, _where(block.start))
        proved &= block.known == block.sum
        zero &= block.zero
        _add(digest, block)
    return Piece(start=start, digest="" if zero else digest.hexdigest(), proved=proved)


def _add(digest: hashlib.blake2b, block: _Block) -> None:
    """Zeros count as a hole does: a copy may have the one where another has the other."""
    if block.sum is not None and not block.zero:
        digest.update(block.start.to_bytes(8, "big") + block.sum.to_bytes(4, "big"))


def _blocks(
    tree: Path, start: int, end: int | None, reader: SlowReader
) -> Generator[_Block, None, None]:
    fd = os.open(tree / IMAGE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        end = size if end is None else min(end, size)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with sums_of(tree) as sums:
            for extent in extents(fd):
                first, last = max(extent.start, start), min(extent.end, end)
                for at in range(first, last, CHUNK_BYTES):
                    yield from _chunk(reader, fd, at, min(CHUNK_BYTES, last - at), sums)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _chunk(reader: SlowReader, fd: int, at: int, length: int, sums: Sums) -> Iterator[_Block]:
    content = _read(reader, fd, at, length)
    if content is None and length > BLOCK_BYTES:  # one of its blocks, or several
        for start in range(at, at + length, BLOCK_BYTES):
            yield from _chunk(reader, fd, start, BLOCK_BYTES, sums)
        return
    for number, known in enumerate(sums.known(at, at + length)):
        start = number * BLOCK_BYTES
        if content is None:
            yield _Block(at, None, known, zero=False)
            continue
        block = content[start : start + BLOCK_BYTES]
        found = sum_of(block)
        zero = found == _ZEROS_SUM and bytes(block) == _ZEROS
        yield _Block(at + start, found, known, zero)


def _read(reader: SlowReader, fd: int, at: int, length: int) -> memoryview | None:
    """Some bytes; None if not all of them can be read. The kernel gives what is before a bad block."""
    try:
        content = reader.read(fd, at, length)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return None
    return content if len(content) == length else None


def _where(at: int) -> str:
    return f"the image's block at {at}"
