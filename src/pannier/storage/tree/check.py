"""Reading a tree to the last byte, so that the file system compares it with its checksums."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from pannier.storage.regular import opened_seen
from pannier.storage.slow_reading import DAMAGE, SlowReader, damaged
from pannier.storage.tree.walk import everything


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
    try:
        for path, found, status in everything(tree):
            if stat.S_ISREG(status.st_mode):
                _read(path, found, reader)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise damaged(of, error.filename) from error


def _read(path: str, found: int, reader: SlowReader) -> None:
    try:
        with opened_seen(found, os.O_RDONLY | os.O_NOATIME) as file:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            at = 0
            while got := len(reader.read(file, at)):
                at += got
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
