"""Making changes survive a power cut, on any file system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem_of(path: Path) -> None:
    """Make everything written to the file system of ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file's content: after a power cut it is the old one or the new one, whole."""
    draft = path.with_name(f".new-{path.name}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


def keep_private(directory: Path) -> None:
    """Let nobody but the directory's owner in, also where it was made with other permissions."""
    if directory.stat().st_mode & 0o7777 != 0o700:
        directory.chmod(0o700)
