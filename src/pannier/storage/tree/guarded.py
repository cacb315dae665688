"""Files that a user has guarded with chattr: immutable ones, and ones that only grow. Not even root can remove or link them."""

from __future__ import annotations

import errno
import os
import stat

from pannier.host.ioctls import control
from pannier.storage.regular import path_of, seen

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_GUARDS = 0x10 | 0x20  # FS_IMMUTABLE_FL and FS_APPEND_FL


def unguard(name: str, *, place: int) -> None:
    """Let what has this name in a directory be removed: a file or a directory, and the directory that it is in.

    Only for what is being removed itself.

    Args:
        place: the directory, open for reading.

    Raises:
        OSError: as the kernel says.
    """
    _clear(place)
    with seen(name, place=place) as found:
        kind = os.fstat(found).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            opened = os.open(path_of(found), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _clear(opened)
            finally:
                os.close(opened)


def _clear(fd: int) -> None:
    block = bytearray(8)
    try:
        control(fd, _GETFLAGS, block)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return  # a file system without such flags: something else is in the way, and is told
        raise
    flags = int.from_bytes(block, "little")
    if flags & _GUARDS:
        control(fd, _SETFLAGS, (flags & ~_GUARDS).to_bytes(8, "little"))
