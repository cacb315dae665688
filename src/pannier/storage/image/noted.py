"""What the holder of a volume remembers of its records: see :mod:`pannier.core.set_back`.

::

    POOL/images/VOLUME/noted      two blocks of 4 KiB, written in turn

A block is overwritten in place and past the page cache. So whatever flushes the disk makes it durable, and a write
that a power cut tears leaves the other block.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

from pannier.core.line import LinePlace
from pannier.core.set_back import MOST_RUNS, Noted, noting
from pannier.host.files import draft_of
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.image.nocow import make_empty

NOTED = "noted"
_MAGIC = b"PNRN"
_HEAD = struct.Struct(">4sHHQI4x")
_ONE = struct.Struct(">QQQ8s")
_VERSION = 1
_SLOTS = 2

assert _HEAD.size + MOST_RUNS * _ONE.size <= BLOCK_BYTES


class NotedRuns:
    """The notes of one volume. Methods block; any thread may call them.

    Raises:
        OSError: the disk refused something.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / NOTED
        self._lock = threading.Lock()
        self._known: tuple[int, tuple[Noted, ...]] | None = None
        self._file: _Blocks | None = None
        """Open from the first note on: each sync call makes one."""

    def runs(self) -> tuple[Noted, ...]:
        """What is remembered; nothing where there is no note, or none that is whole."""
        with self._lock:
            return self._read()[1]

    def note(self, place: LinePlace) -> None:
        """Remember a record. It is written on return, and durable with the next flush of the disk."""
        with self._lock:
            count, runs = self._read()
            runs = noting(runs, place)
            if count == 0:
                self._make()
            if self._file is None:
                self._file = _Blocks(self._path)
            self._file.write((count + 1) % _SLOTS, pack(count + 1, runs))
            self._known = count + 1, runs

    def close(self) -> None:
        """Close the file, until the next note; a second call does nothing."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _read(self) -> tuple[int, tuple[Noted, ...]]:
        if self._known is None:
            try:
                content = self._path.read_bytes()
            except FileNotFoundError:
                content = b""
            blocks = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
            self._known = max(map(parse, blocks), key=lambda found: found[0], default=(0, ()))
        return self._known

    def _make(self) -> None:
        draft = draft_of(self._path)
        draft.unlink(missing_ok=True)
        make_empty(draft)
        with open(draft, "r+b", buffering=0) as file:
            file.write(bytes(_SLOTS * BLOCK_BYTES))
            os.fsync(file.fileno())
        draft.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class _Blocks:
    """A file of blocks, open for writing past the page cache. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._block = mmap.mmap(-1, BLOCK_BYTES)

    def write(self, slot: int, block: bytes) -> None:
        """Write a block in the place of another.

        Raises:
            OSError: the disk refused it.
        """
        self._block[:] = block
        if os.pwrite(self._fd, self._block, slot * BLOCK_BYTES) != BLOCK_BYTES:
            raise OSError(errno.EIO, "a block was written in part")

    def close(self) -> None:
        os.close(self._fd)
        self._block.close()


def pack(count: int, runs: Sequence[Noted]) -> bytes:
    """A block: the ``count``-th note that was written."""
    body = b"".join(
        _ONE.pack(one.epoch, one.number, one.began, bytes.fromhex(one.run)) for one in runs
    )
    check = zlib.crc32(body, zlib.crc32(_HEAD.pack(_MAGIC, _VERSION, len(runs), count, 0)))
    head = _HEAD.pack(_MAGIC, _VERSION, len(runs), count, check)
    return (head + body).ljust(BLOCK_BYTES, b"\0")


def parse(block: bytes) -> tuple[int, tuple[Noted, ...]]:
    """Which note a block has, and what; (0, ()) if it has none that is whole."""
    if len(block) < BLOCK_BYTES:
        return 0, ()
    magic, version, length, count, check = _HEAD.unpack_from(block)
    if magic != _MAGIC or version != _VERSION or length > MOST_RUNS:
        return 0, ()
    body = block[_HEAD.size : _HEAD.size + length * _ONE.size]
    if zlib.crc32(body, zlib.crc32(_HEAD.pack(magic, version, length, count, 0))) != check:
        return 0, ()
    runs = (
        Noted(epoch=epoch, run=run.hex(), number=number, began=began)
        for epoch, number, began, run in _ONE.iter_unpack(body)
    )
    return count, tuple(runs)
