"""Opening a regular file, and refusing anything else that has its name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def seen(name: str | bytes | Path, *, place: int | None = None) -> Iterator[int]:
    """A descriptor that stands for what has this name, a link too, and opens nothing (O_PATH).

    Raises:
        OSError: as the kernel says.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        yield fd
    finally:
        os.close(fd)


def path_of(fd: int) -> str:
    """A path to exactly what a descriptor stands for, for calls that take no descriptor; they must follow it."""
    return f"/proc/self/fd/{fd}"


@contextmanager
def opened_seen(fd: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The regular file that :func:`seen` gave, opened.

    A link, a device, a FIFO or a socket is never opened: opening a device may already have an effect.

    Raises:
        OSError: as the kernel says; EINVAL where it is not a regular file.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    file = os.open(path_of(fd), flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def opened_regular(
    name: str | bytes | Path, flags: int = os.O_RDONLY, *, place: int | None = None
) -> Iterator[int]:
    """A descriptor of the regular file ``name``, which is relative to the directory ``place``.

    Raises:
        OSError: see :func:`seen` and :func:`opened_seen`.
    """
    with seen(name, place=place) as found, opened_seen(found, flags) as file:
        yield file


def is_real_directory(path: Path) -> bool:
    """Whether ``path`` is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
