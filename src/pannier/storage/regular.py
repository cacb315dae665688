"""Opening a regular file, and refusing anything else that has its name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def opened_regular(
    name: str | bytes | Path, flags: int = os.O_RDONLY, *, place: int | None = None
) -> Iterator[int]:
    """A descriptor of the regular file ``name``, which is relative to the directory ``place``.

    A link, a device, a FIFO or a socket is never opened: opening a device may already have an effect.

    Raises:
        OSError: as the kernel says; EINVAL where it is not a regular file.
    """
    seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(name))
        fd = os.open(f"/proc/self/fd/{seen}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(seen)
    try:
        yield fd
    finally:
        os.close(fd)


def is_real_directory(path: Path) -> bool:
    """Whether ``path`` is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
