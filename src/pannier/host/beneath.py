"""Opening what is in a directory, whoever else writes there: nothing leads out of it."""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # on every architecture; the C library has no function for it. Linux 5.6.
_HOW = struct.Struct("=QQQ")
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """A descriptor of ``path``, which is relative to the open directory.

    Args:
        path: of fewer than 4096 bytes. No part of it may be a symbolic link, not even the last one, except with
            O_PATH and O_NOFOLLOW: these open the link itself.
        flags: as for ``os.open``; O_CLOEXEC is added.

    Raises:
        OSError: as the kernel says; ELOOP at a symbolic link, EXDEV where the path leaves the directory.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    fd = int(
        _libc.syscall(_OPENAT2, directory, ctypes.c_char_p(path), how, ctypes.c_size_t(_HOW.size))
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return fd
