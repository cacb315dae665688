"""The checksums of a received image: one for each block, in a file beside it.

A pool keeps none of an image, so a copy keeps those of the bytes as they came. The file is in the
generation's subvolume: a snapshot has the sums of its own bytes. What a node held itself has none, since
the kernel writes there: the file is removed before an image is used, and begins anew, with what is
received from then on.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isal.isal_zlib import crc32

from pannier.host.files import punch_hole
from pannier.storage.blocks import BLOCK_BYTES

SUMS = "sums"
_UNKNOWN = 0
_BYTES = 4


def sum_of(block: memoryview) -> int:
    """The checksum of a block; never the one that stands for "not known"."""
    return crc32(block) or 1


class Sums:
    """The sums of an image, by block.

    Args:
        fd: the open file; None where there is none, and nothing is known.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def known(self, start: int, end: int) -> array[int]:
        """The sums of the blocks from a byte to another one, of whole blocks; 0 is not known."""
        count = (end - start) // BLOCK_BYTES
        found = b""
        if self._fd is not None:
            found = os.pread(self._fd, count * _BYTES, start // BLOCK_BYTES * _BYTES)
        return array("I", found.ljust(count * _BYTES, b"\0"))

    def keep(self, start: int, content: memoryview) -> None:
        """Note the sums of bytes that were received, of whole blocks."""
        assert self._fd is not None
        blocks = range(0, len(content), BLOCK_BYTES)
        sums = array("I", (sum_of(content[at : at + BLOCK_BYTES]) for at in blocks))
        os.pwrite(self._fd, sums.tobytes(), start // BLOCK_BYTES * _BYTES)

    def sync(self) -> None:
        """Make what was noted durable."""
        assert self._fd is not None
        os.fdatasync(self._fd)

    def forget(self, start: int, end: int) -> None:
        """Note that there is nothing on the disk from a byte to another one: it reads as zeros."""
        assert self._fd is not None
        first, last = (at // BLOCK_BYTES * _BYTES for at in (start, end))
        punch_hole(self._fd, first, last - first)


@contextmanager
def sums_of(tree: Path) -> Iterator[Sums]:
    """The sums of a generation, to compare with."""
    try:
        fd = os.open(tree / SUMS, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield Sums(None)
        return
    try:
        yield Sums(fd)
    finally:
        os.close(fd)


@contextmanager
def sums_into(tree: Path) -> Iterator[Sums]:
    """The sums of what is being received."""
    fd = os.open(tree / SUMS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield Sums(fd)
    finally:
        os.close(fd)
