"""The flags that chattr sets on files and directories, and that no program for copying knows."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pannier.core.errors import StorageError
from pannier.host.ioctls import control
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.regular import path_of, seen
from pannier.storage.tree.rsync import changed
from pannier.storage.tree.walk import everything, open_directory

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_KEPT = 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x10000
"""S, i, a, d, A and D: what the kernel does with a file. The others say how a file system stores it."""
_WITHOUT_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a file system says that has none."""


def copy_flags(source: Path, target: Path) -> None:
    """Give everything in a tree the flags that it has in another one with the same files. Blocks.

    Afterwards not even root can change some of them.

    Raises:
        Conflict: the trees do not have the same files any more.
        StorageError: a flag cannot be read or set.
    """
    with told_as_storage_error(f"copy the flags of {source}"):
        try:
            _copy(source, target)
        except FileNotFoundError as error:
            raise changed(source, str(error.filename)) from error


def _copy(source: Path, target: Path) -> None:
    for path, found, status in everything(source):
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            continue
        if wanted := _flags(found):
            place, _, name = path.rpartition("/")
            with open_directory(target, place) as directory, seen(name, place=directory) as one:
                _set(one, wanted, path)
    with seen(source) as top, seen(target) as new:
        if wanted := _flags(top):
            _set(new, wanted, ".")


def _flags(found: int) -> int:
    fd = os.open(path_of(found), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _read(fd) & _KEPT
    except OSError as error:
        if error.errno in _WITHOUT_FLAGS:
            return 0
        raise
    finally:
        os.close(fd)


def _read(fd: int) -> int:
    block = bytearray(8)
    control(fd, _GETFLAGS, block)
    return int.from_bytes(block, "little")


def _set(found: int, wanted: int, path: str) -> None:
    fd = os.open(path_of(found), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        control(fd, _SETFLAGS, (_read(fd) & ~_KEPT | wanted).to_bytes(8, "little"))
        if _read(fd) & _KEPT != wanted:
            raise StorageError(
                f"the flags of {path} cannot be set: the new volume's file system does not keep them",
                remedy="take them off: chattr -iaAdDS",
            )
    finally:
        os.close(fd)
