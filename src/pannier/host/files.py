"""Changing files so that they are whole after a crash or a power cut; on any file system."""

from __future__ import annotations

import ctypes
import fcntl
import os
from contextlib import suppress
from pathlib import Path

DRAFT = ".new-"
"""Prefix of the name of what is being made; it gets its own name when it is complete."""

_PUNCH_HOLE, _KEEP_SIZE = 0x2, 0x1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem_of(path: Path) -> None:
    """Make everything written to the file system of ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Let two files or directories change their names in one step."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if _libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def rename_new(old: str, new: str, *, place: int, to: int) -> None:
    """Give a file or directory in the open directory ``place`` a name in the open directory ``to`` that nothing there has.

    Raises:
        FileExistsError: something has it. OSError: as the kernel says.
    """
    no_replace = 1  # RENAME_NOREPLACE
    if _libc.renameat2(place, os.fsencode(old), to, os.fsencode(new), no_replace):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give a range of an open file back to the file system; it reads as zeros, and the size stays."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def draft_of(path: Path) -> Path:
    """Where :func:`write_file` prepares a file; a crash can leave nothing else behind."""
    return path.with_name(f"{DRAFT}{path.name}")


def write_file(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    durable: bool = True,
    replace: bool = True,
) -> None:
    """Give a file its whole content in one step; blocks.

    A reader, also after a crash, finds the old content or the new one. A crash leaves a draft at most,
    which the next write of the same file removes. Two writers at once, in threads or processes, take
    turns. The draft is a new file, which only its owner may read until its content is complete.

    Args:
        mode: the file's permissions, whatever the umask is.
        owner: user and group ids; None leaves the file to this process's user.
        durable: the same holds after a power cut, and the new content is on the disk when this
            returns. False is for a tmpfs, and for what a power cut makes worthless anyway.
        replace: False refuses a file that exists, even if another process made it just now.

    Raises:
        FileExistsError: the file is there and ``replace`` is False; it is as durable as was asked.
        OSError: the disk refused. The old content is still there; the new one may be instead if only
            the sync of the directory, the last step, failed.
    """
    draft = draft_of(path)
    lock = _lock_draft(draft)
    renamed = False
    try:
        # Whoever may write to the directory may have put a link in its place.
        fd = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)  # before the rename: a program that is open for writing cannot be started
        if replace:
            os.rename(draft, path)
            renamed = True
        else:
            os.link(draft, path)  # a link, unlike a rename, refuses an existing name
    finally:
        try:
            if not renamed:
                os.unlink(draft)  # ours, since we hold its lock
            if durable:
                sync_directory(path.parent)
        finally:
            os.close(lock)


def _lock_draft(draft: Path) -> int:
    """Make the draft and lock it. If there is one already, wait for its lock, and remove it if it stays.

    A lock ends with its process. So a draft that is there and can be locked was left by a crash.
    """
    while True:
        made = False
        try:
            fd = os.open(draft, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            made = True
        except FileExistsError:
            try:
                fd = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(draft, fd):
                if made:
                    return fd
                os.unlink(draft)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Whether an open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    return False


def keep_private(directory: Path) -> None:
    """Let nobody but the directory's owner in, also where it was made with other permissions."""
    if directory.stat().st_mode & 0o7777 != 0o700:
        directory.chmod(0o700)
