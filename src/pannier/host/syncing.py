"""System calls that bring what was written to the disk and that Python does not have."""

from __future__ import annotations

import ctypes
import os

_SYNC_FILE_RANGE_WRITE = 2
_START = ctypes.c_int64(0)
"""As an offset; as a length it means all of the file."""

_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(fd: int) -> None:
    """Call syncfs: bring everything that was written to the file system of ``fd`` to its disk.

    Raises:
        OSError: something was refused since this open file was last told, by this call or an earlier one.
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def start_writing(fd: int) -> None:
    """Begin to write out what was written to a file, and do not wait. What goes wrong is told by the next sync call."""
    _libc.sync_file_range(fd, _START, _START, _SYNC_FILE_RANGE_WRITE)
