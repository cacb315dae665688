"""Walking trees of any depth and with any names, and reading them into manifests.

Whoever has a volume may change its tree while it is walked. So a name is looked at once, and its kind, its attributes and
its content are those of the descriptor that it gave.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pannier.host.beneath import open_beneath
from pannier.storage.regular import opened_seen, path_of, seen
from pannier.storage.tree.guarded import unguard
from pannier.storage.tree.manifest import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HOST_XATTRS,
    LINK,
    SOCKET,
    SYMLINK,
    Manifest,
    TreeEntry,
)

_PATH_BYTES = 4000  # the kernel takes paths below 4096 bytes; a tree may be deeper
_CHUNK_BYTES = 1 << 20
_KINDS = {
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFREG: FILE,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
}


@contextmanager
def open_directory(root: Path | int, path: str) -> Iterator[int]:
    """Open the directory at ``path`` below ``root``, following no symlink on the way.

    Args:
        root: a directory, or an open one.

    Raises:
        OSError: as the kernel says; ELOOP or ENOTDIR at a symlink.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(root, flags) if isinstance(root, Path) else os.open(".", flags, dir_fd=root)
    try:
        rest = os.fsencode(path)
        while rest:
            head, rest = _split(rest)
            deeper = open_beneath(fd, head, flags)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def _split(path: bytes) -> tuple[bytes, bytes]:
    if len(path) <= _PATH_BYTES:
        return path, b""
    cut = path.rindex(b"/", 0, _PATH_BYTES)
    return path[:cut], path[cut + 1 :]


def everything(root: Path | int) -> Iterator[tuple[str, int, os.stat_result]]:
    """All that is in a tree, directories before what they contain, but for its root.

    Yields:
        A path in the tree, a descriptor of what is there (see :func:`~pannier.storage.regular.seen`), good until the
        next, and its status.

    Raises:
        OSError: as the kernel says; its file name is the path in the tree.
    """
    pending = [at := ""]
    try:
        while pending:
            at = path = pending.pop()
            with open_directory(root, path) as directory:
                for name in os.listdir(directory):
                    at = f"{path}/{name}" if path else name
                    with seen(name, place=directory) as found:
                        status = os.fstat(found)
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(at)
                        yield at, found, status
    except OSError as error:
        raise OSError(error.errno, error.strerror, at) from error


@dataclass(frozen=True, slots=True)
class Stamp:
    """Attributes of a file when its content was read. While they are the same, the content is too."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """The stamp of a file."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Hasher(Protocol):
    """Gives the SHA-256 of a file."""

    def __call__(self, path: str, status: os.stat_result, found: int) -> str:
        """The hex digest of the file ``path`` (in the tree), of which there is a descriptor.

        Raises:
            OSError: it cannot be read.
        """
        ...


@dataclass(slots=True)
class CachedHasher:
    """Reads files, except those whose stamp has not changed since their digest was taken.

    Attributes:
        known: stamp and digest by path, from the last scan.
        seen: the same, from this scan. A later scan may trust them only if nothing can be written in
            the same tick of the clock in which they were taken.
    """

    known: Mapping[str, tuple[Stamp, str]]
    seen: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def __call__(self, path: str, status: os.stat_result, found: int) -> str:
        stamp = Stamp.of(status)
        before = self.known.get(path)
        digest = before[1] if before and before[0] == stamp else _hash_file(found)
        self.seen[path] = (stamp, digest)
        return digest


@dataclass(slots=True)
class ManifestHasher:
    """Takes digests from a manifest instead of reading the files, and notes their stamps."""

    manifest: Manifest
    seen: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def __call__(self, path: str, status: os.stat_result, found: int) -> str:
        entry = self.manifest.entries.get(path)
        if entry is not None and entry.kind == LINK:
            entry = self.manifest.entries.get(entry.target)
        digest = entry.sha256 if entry else ""
        self.seen[path] = (Stamp.of(status), digest)
        return digest


def _hash_file(found: int) -> str:
    sha256 = hashlib.sha256()
    with opened_seen(found) as content:
        while chunk := os.read(content, _CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def scan(root: Path | int, *, hasher: Hasher) -> Manifest:
    """Read the tree at ``root``, which nobody writes to, into a manifest."""
    read: dict[str, tuple[TreeEntry, tuple[int, int] | None]] = {}
    hasher = _once_per_file(hasher)
    with open_directory(root, "") as directory:
        read[""] = (read_entry("", os.fstat(directory), directory, hasher), None)
    for path, found, status in everything(root):
        shared = None
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            shared = (status.st_dev, status.st_ino)
        read[path] = (read_entry(path, status, found, hasher), shared)
    return _with_links(read)


def _once_per_file(hasher: Hasher) -> Hasher:
    """Read a file with many names once."""
    digests: dict[tuple[int, int], str] = {}

    def once(path: str, status: os.stat_result, found: int) -> str:
        if status.st_nlink == 1:
            return hasher(path, status, found)
        inode = (status.st_dev, status.st_ino)
        if inode not in digests:
            digests[inode] = hasher(path, status, found)
        return digests[inode]

    return once


def _with_links(found: dict[str, tuple[TreeEntry, tuple[int, int] | None]]) -> Manifest:
    """Of a file with several names, the first becomes the file and the others links to it."""
    first: dict[tuple[int, int], str] = {}
    entries = []
    for path in sorted(found):
        entry, inode = found[path]
        if inode is not None and first.setdefault(inode, path) != path:
            entry = TreeEntry(path=path, kind=LINK, target=first[inode])
        entries.append(entry)
    return Manifest.of(entries)


def read_entry(path: str, status: os.stat_result, found: int, hasher: Hasher) -> TreeEntry:
    """The entry of what a descriptor stands for, which :func:`~pannier.storage.regular.seen` gave."""
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    return TreeEntry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind == FILE else 0,
        sha256=hasher(path, status, found) if kind == FILE else "",
        target=os.readlink("", dir_fd=found) if kind == SYMLINK else "",
        xattrs=_read_xattrs(path_of(found)),
        rdev=status.st_rdev if kind in (CHARACTER, BLOCK) else 0,
    )


def _read_xattrs(where: str) -> tuple[tuple[str, str], ...]:
    names = sorted(set(os.listxattr(where)) - HOST_XATTRS)
    return tuple((name, os.getxattr(where, name).hex()) for name in names)


def remove_tree(root: Path) -> None:
    """Remove a directory and all in it, however deep, also what a user has guarded. No error where there is none."""
    if not os.path.lexists(root):
        return
    directories = [""]
    for path in directories:  # grows while it is walked
        with open_directory(root, path) as directory:
            for name in os.listdir(directory):
                try:
                    _although_guarded(os.unlink, name, directory)
                except IsADirectoryError:
                    directories.append(f"{path}/{name}" if path else name)
    for path in reversed(directories[1:]):
        parent, _, name = path.rpartition("/")
        with open_directory(root, parent) as directory:
            _although_guarded(os.rmdir, name, directory)
    root.rmdir()


def _although_guarded(remove: Callable[..., None], name: str, directory: int) -> None:
    try:
        remove(name, dir_fd=directory)
    except PermissionError:
        unguard(name, place=directory)
        remove(name, dir_fd=directory)
