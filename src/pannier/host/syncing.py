"""System calls that bring what was written to the disk and that Python does not have."""

from __future__ import annotations

import ctypes
import os

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_ALL = 0
"""As a length: to the end of the file."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def sync_file_system(fd: int) -> None:
    """Call syncfs: bring everything that was written to the file system of ``fd`` to its disk.

    Raises:
        OSError: something was refused since this open file was last told, by this call or an earlier one.
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def start_writing(fd: int, start: int = 0, length: int = _ALL) -> None:
    """Begin to write out what was written to a file, and do not wait. What goes wrong is told by the next sync call."""
    _libc.sync_file_range(fd, start, length, _WRITE)


def write_out(fd: int) -> None:
    """Give the disk all bytes that were written to a file, and wait. It has them in its cache at least; where they
    belong is not durable before a sync call or a commit.

    Raises:
        OSError: the disk refused something since this open file was last told.
    """
    if _libc.sync_file_range(fd, 0, _ALL, _WAIT_BEFORE | _WRITE | _WAIT_AFTER):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
