"""A caller's open file, borrowed for a moment.

The kernel tells an error of writing once for each *open file description*. So a call is told what the disk said only
if its own one is synced: pidfd_getfd(2) gives that. Where it is not to be had, the file is opened anew. A caller may close
its descriptor at any time, and the number may name another file by now: what is borrowed is compared with what the
descriptor was when the call came in. That the thread is the same one is known as long as its call still waits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pannier.barrier.calls import SyncCall
from pannier.barrier.reach import fdinfo, open_file

_PIDFD_GETFD = 438
"""The number of the system call, the same on every architecture."""
_PIDFD_THREAD = os.O_EXCL
"""A pidfd of a thread; since Linux 6.9."""
_NO_PROCESS = frozenset((errno.EINVAL, errno.ENOENT))
"""The number is that of a thread which is not its process's first one."""
_NO_WAY = frozenset((errno.EPERM, errno.ENOSYS, errno.EINVAL))
"""The kernel, or a security module as Yama, gives no descriptor away."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A descriptor of ours.

    Attributes:
        own: whether it is the caller's open file description; if not, a new one of the same file.
    """

    fd: int
    own: bool


@contextmanager
def borrowed(call: SyncCall, *, device: int | None) -> Iterator[Borrowed | None]:
    """The file or directory of a call that still waits; None where its descriptor is not that file any more.

    To be used in a thread that may wait: closing it may ask its file system.

    Args:
        device: where the file was when the call came in; None where only its mount is known.

    Raises:
        OSError: it cannot be had, such as that of a device or FIFO.
    """
    assert call.fd is not None
    got = _borrow(call.pid, call.fd)
    if got is None:
        yield None
        return
    try:
        status = os.fstat(got.fd)
        if device is None:
            same = open_file(fdinfo("self", got.fd)) == call.file
        else:
            same = call.file is not None and (status.st_dev, status.st_ino) == (
                device,
                call.file.inode,
            )
        if not same or not call.is_there():
            yield None
            return
        if not _is_plain(status):
            raise OSError(errno.EINVAL, "neither a file nor a directory")
        yield got
    finally:
        os.close(got.fd)


def _borrow(tid: int, fd: int) -> Borrowed | None:
    try:
        return Borrowed(_own(tid, fd), own=True)
    except OSError as error:
        if error.errno not in _NO_WAY:
            return None  # no such thread or descriptor
    try:
        return Borrowed(_opened_anew(tid, fd), own=False)
    except FileNotFoundError:
        return None


def _own(tid: int, fd: int) -> int:
    try:
        pidfd = os.pidfd_open(tid)
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        pidfd = os.pidfd_open(tid, _PIDFD_THREAD)
    try:
        ours = int(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
        if ours < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return ours
    finally:
        os.close(pidfd)


def _opened_anew(tid: int, fd: int) -> int:
    """Looked at before it is opened: to open a device or FIFO does something."""
    path = os.open(f"/proc/{tid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    try:
        if not _is_plain(os.fstat(path)):
            raise OSError(errno.EINVAL, "neither a file nor a directory")
        return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(path)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
