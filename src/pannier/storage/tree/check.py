"""Reading a tree to the last byte, so that the file system compares it with its checksums."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from pannier.storage.slow_reading import DAMAGE, SlowReader, damaged


def check_tree(tree: Path, of: str, stop: threading.Event) -> None:
    """Read every file of ``tree`` from the disk, not from memory.

    Args:
        of: what the tree is, for the error.
        stop: set when nobody waits any more.

    Raises:
        Corrupt: a file or directory cannot be read as it was written.
        ReadingStopped: ``stop`` was set.
    """
    reader = SlowReader(stop)
    path = tree
    try:
        for path in _files(tree):
            _read(path, reader)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        where = Path(error.filename or path).relative_to(tree)
        raise damaged(of, str(where)) from error


def _files(tree: Path) -> Iterator[Path]:
    """Regular files only: a container may have made a device, and opening one may have an effect."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(tree, onerror=fail):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _read(path: Path, reader: SlowReader) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while got := len(reader.read(fd, at)):
            at += got
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
