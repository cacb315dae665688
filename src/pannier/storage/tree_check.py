"""Reading a tree to the last byte, so that the file system compares it with its checksums."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pannier.core.errors import Corrupt

CHUNK_BYTES = 1 << 20
BYTES_PER_SECOND = 100 << 20
"""So much of the disk's time is left to those who use volumes."""


class Stopped(Exception):
    """Nobody waits for the outcome any more."""


def check_tree(tree: Path, *, of: str, stop: threading.Event) -> None:
    """Read every file of ``tree`` from the disk, not from memory, at BYTES_PER_SECOND at most.

    Args:
        of: what the tree is, for the error.
        stop: set where nobody waits any more.

    Raises:
        Corrupt: something does not have the bytes, or the names, that were written; Stopped.
    """
    buffer = bytearray(CHUNK_BYTES)
    path = tree
    try:
        for path in _files(tree):
            _read(path, buffer, stop)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        where = Path(error.filename or path).relative_to(tree)
        raise Corrupt(
            f"{of} is damaged: {where} cannot be read as it was written",
            remedy="see `dmesg` on that node, and replace its disk if it happens again",
        ) from error


def _files(tree: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(tree, onerror=fail):
        for name in names:
            yield Path(folder, name)


def _read(path: Path, buffer: bytearray, stop: threading.Event) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket: nothing to read
            return
        raise
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while True:
            if stop.is_set():
                raise Stopped
            began = time.monotonic()
            got = os.preadv(fd, [buffer], at)
            if got == 0:
                break
            at += got
            stop.wait(max(0.0, got / BYTES_PER_SECOND - (time.monotonic() - began)))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        if error.errno != errno.ESPIPE:  # a pipe or a device
            raise
    finally:
        os.close(fd)
