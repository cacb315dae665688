"""The file of an image: without copy-on-write, and never read through the page cache while it is live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pannier.core.errors import Corrupt, StorageError
from pannier.host.ioctls import control
from pannier.storage.image import ext4

IMAGE = "image"
_NOCOW, _GETFLAGS, _SETFLAGS = 0x00800000, 0x80086601, 0x40086602


def make_empty(image: Path) -> None:
    """Make an empty file without copy-on-write: that can be set only as long as it is empty."""
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        control(fd, _SETFLAGS, (_flags(fd) | _NOCOW).to_bytes(8, "little"))
    finally:
        os.close(fd)


def is_nocow(fd: int) -> bool:
    """Whether an open file has no copy-on-write.

    Raises:
        OSError: the file system does not tell.
    """
    return bool(_flags(fd) & _NOCOW)


def check(image: Path) -> int:
    """Make sure that an image can be attached without losing data.

    Returns how many errors its file system has counted.

    Raises:
        Corrupt: it is none of ours. StorageError: it has copy-on-write.
    """
    with _opened(image) as fd:
        if not is_nocow(fd):
            raise StorageError(
                f"{image} has copy-on-write: sync calls on it may not reach the disk",
                remedy="take the volume's copy on another node; see chattr(1), attribute C",
            )
        found = ext4.superblock(ext4.first_block(fd)[1024:2048])
        if found.size > os.fstat(fd).st_size:
            raise Corrupt(
                f"{image} is smaller than the file system in it",
                remedy="take the volume's copy on another node",
            )
        return found.errors


def filesystem_bytes(image: Path) -> int:
    """The size of the file system in an image.

    Raises:
        Corrupt: it has none of ours.
    """
    with _opened(image) as fd:
        return ext4.superblock(ext4.first_block(fd)[1024:2048]).size


def _flags(fd: int) -> int:
    block = bytearray(8)
    control(fd, _GETFLAGS, block)
    return int.from_bytes(block, "little")


@contextmanager
def _opened(image: Path) -> Iterator[int]:
    # What a peer sent may be a link or a device; and pages of a live image must never be cached.
    fd = os.open(image, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
