"""The flags of single mounts: whether device nodes and setuid programs in them work.

They belong to a mount and not to its file system: a bind mount takes those of the mount that it
was made of, and may then have others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
"""The same on every architecture. The last one is the youngest: Linux 5.12."""
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_NO_AUTOMOUNT = 0x800
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_NOSUID, _NODEV = 0x2, 0x4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Attributes(ctypes.Structure):
    """``struct mount_attr``."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def takes_no_writes(path: Path) -> bool:
    """Whether the file system or the mount at a path is read-only; False where nothing is."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return False


def forbid_devices_and_setuid(mountpoint: Path) -> None:
    """Set ``nodev`` and ``nosuid`` on the mount at ``mountpoint``; what else it has stays.

    Raises:
        OSError: as the kernel says.
    """
    with _closing(os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        _change(fd, _Attributes(set=_NODEV | _NOSUID))


def bind(source: Path, target: Path, *, allow_devices_and_setuid: bool) -> None:
    """Bind mount ``source`` at ``target``, in one step: nobody sees it with other flags.

    Args:
        source: a directory.
        target: a directory.
        allow_devices_and_setuid: clear ``nodev`` and ``nosuid``, which else come from ``source``.

    Raises:
        OSError: as the kernel says.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    with _closing(_call(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)) as tree:
        if allow_devices_and_setuid:
            _change(tree, _Attributes(clear=_NODEV | _NOSUID))
        _call(
            _SYS_MOVE_MOUNT,
            tree,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            _MOVE_MOUNT_F_EMPTY_PATH,
        )


def _change(fd: int, attributes: _Attributes) -> None:
    size = ctypes.sizeof(attributes)
    _call(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)


def _call(number: int, *arguments: object) -> int:
    wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
