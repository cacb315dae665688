"""Mounts that have no place in any directory tree: a descriptor is all that there is of one.

The kernel ends such a mount with the last descriptor of it or of something in it, also when the process is killed. So nothing
of it is ever left behind.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
"""The same on every architecture. Linux 5.2."""
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 0x1, 0x1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_READ_ONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME = 0x1, 0x2, 0x4, 0x8, 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def mount_nowhere(kind: str, device: Path, *, options: Mapping[str, str], read_only: bool) -> int:
    """Mount a file system nowhere; without devices, setuid programs, and programs at all.

    Args:
        kind: of file system, as ``ext4``.
        options: of that file system.
        read_only: nothing is written to it but what a mount does.

    Returns:
        A descriptor of its root, which the caller closes.

    Raises:
        OSError: as the kernel says.
    """
    context = _call(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in {"source": str(device), **options}.items():
            _call(_SYS_FSCONFIG, context, _SET_STRING, key.encode(), value.encode(), 0)
        if read_only:
            _call(_SYS_FSCONFIG, context, _SET_FLAG, b"ro", None, 0)
        _call(_SYS_FSCONFIG, context, _CREATE, None, None, 0)
        attributes = (_READ_ONLY if read_only else 0) | _NOSUID | _NODEV | _NOEXEC | _NOATIME
        mount = _call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)
    try:  # the mount's own descriptor only names it (O_PATH)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def _call(number: int, *arguments: int | bytes | None) -> int:
    wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
