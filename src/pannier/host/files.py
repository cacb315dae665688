"""Changing files so that a crash, or a power cut, finds them whole; on any file system."""

from __future__ import annotations

import ctypes
import fcntl
import os
from contextlib import suppress
from pathlib import Path

DRAFT = ".new-"
"""Begins the name of what is being made: it gets its own name when it is whole."""

_libc = ctypes.CDLL(None, use_errno=True)


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


def draft_of(path: Path) -> Path:
    """Where :func:`write_file` prepares a file: all that a crash of it can leave behind."""
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

    Whoever reads it, and a run after a crash, finds the old content or the new one. A crash leaves a
    draft at most, which the next write of the same file removes. Two writers at once, in threads or
    processes, take turns. The draft is a new file that only its owner may read, until all is in it.

    Args:
        mode: the file's permissions, whatever the umask is.
        owner: user and group ids; None leaves the file to this process's user.
        durable: the same holds after a power cut, and the new content is there for good when this
            returns. False is for a tmpfs, and for what a power cut makes worthless anyway.
        replace: False refuses a file that exists, whoever has just made it.

    Raises:
        FileExistsError: the file is there and ``replace`` is False; it is as durable as was asked.
        OSError: the disk refused. The old content is there still; only where the directory could not
            be synced in the end, the new one may be.
    """
    draft = draft_of(path)
    lock = _lock_draft(draft)
    renamed = False
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CLOEXEC)
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
            os.close(fd)  # first: no program can be started that is open for writing
        if replace:
            os.rename(draft, path)
            renamed = True
        else:
            os.link(draft, path)  # a link, unlike a rename, refuses an existing name
    finally:
        try:
            if not renamed:
                os.unlink(draft)  # nobody else's: it is locked
            if durable:
                sync_directory(path.parent)
        finally:
            os.close(lock)


def _lock_draft(draft: Path) -> int:
    """Make the draft and lock it. One that is there is waited for, and removed if it stays.

    The lock ends with its process. So a draft that is there and can be locked was left by a crash.
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
