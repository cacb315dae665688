"""Reading a tree to the last byte, so that the file system compares it with its checksums."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pannier.core.errors import Corrupt

CHUNK_BYTES = 1 << 20
BYTES_PER_SECOND = 100 << 20
"""The limit for reading, since others use the disk too."""
_DAMAGE = (errno.EIO, errno.EUCLEAN)


class CheckStopped(Exception):
    """Nobody waits for the outcome any more."""


def check_tree(tree: Path, *, of: str, stop: threading.Event) -> None:
    """Read every file of ``tree`` from the disk, not from memory, at BYTES_PER_SECOND at most.

    Args:
        of: what the tree is, for the error.
        stop: set when nobody waits any more.

    Raises:
        Corrupt: a file or directory cannot be read as it was written.
        CheckStopped: ``stop`` was set.
    """
    buffer = bytearray(CHUNK_BYTES)
    path = tree
    try:
        for path in _files(tree):
            _read(path, buffer, stop)
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        where = Path(error.filename or path).relative_to(tree)
        raise Corrupt(
            f"{of} is damaged: {where} cannot be read as it was written",
            remedy="see `dmesg` on that node, and replace its disk if it happens again",
        ) from error


def _files(tree: Path) -> Iterator[Path]:
    """Regular files only: a container may have made a device, and opening one may have an effect."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(tree, onerror=fail):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _read(path: Path, buffer: bytearray, stop: threading.Event) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at, got = 0, 1
        while got:
            if stop.is_set():
                raise CheckStopped
            began = time.monotonic()
            got = os.preadv(fd, [buffer], at)
            at += got
            stop.wait(max(0.0, got / BYTES_PER_SECOND - (time.monotonic() - began)))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
