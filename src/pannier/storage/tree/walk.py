"""Walking trees of any depth and with any names, and reading them into manifests."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pannier.storage.regular import opened_regular
from pannier.storage.tree.manifest import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SOCKET,
    SYMLINK,
    Manifest,
    TreeEntry,
)

_PATH_BYTES = 4000  # the kernel takes paths below 4096 bytes; a tree may be deeper
_CHUNK_BYTES = 1 << 20
_HOST_XATTRS = frozenset({"security.selinux"})  # a label of this host's policy, not of the data
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
def open_directory(root: Path, path: str) -> Iterator[int]:
    """Open the directory at ``path`` below ``root``, following no symlink on the way."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(root, flags)
    try:
        rest = os.fsencode(path)
        while rest:
            head, rest = _split(rest)
            deeper = os.open(head, flags, dir_fd=fd)
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


def place(directory: int, name: str) -> str:
    """A short path to ``name`` in an open directory, for calls that take no directory."""
    return f"/proc/self/fd/{directory}/{name}"


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

    def __call__(self, path: str, found: os.stat_result, where: str) -> str:
        """The hex digest of the file ``path`` (in the tree), to be read at ``where``.

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

    def __call__(self, path: str, found: os.stat_result, where: str) -> str:
        stamp = Stamp.of(found)
        before = self.known.get(path)
        digest = before[1] if before and before[0] == stamp else hash_file(where)
        self.seen[path] = (stamp, digest)
        return digest


@dataclass(slots=True)
class ManifestHasher:
    """Takes digests from a manifest instead of reading the files, and notes their stamps."""

    manifest: Manifest
    seen: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def __call__(self, path: str, found: os.stat_result, where: str) -> str:
        entry = self.manifest.entries.get(path)
        if entry is not None and entry.kind == LINK:
            entry = self.manifest.entries.get(entry.target)
        digest = entry.sha256 if entry else ""
        self.seen[path] = (Stamp.of(found), digest)
        return digest


def hash_file(where: str) -> str:
    """SHA-256 of a file's content."""
    sha256 = hashlib.sha256()
    with opened_regular(where) as content:
        while chunk := os.read(content, _CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def scan(root: Path, *, hasher: Hasher) -> Manifest:
    """Read the tree at ``root``, which nobody writes to, into a manifest."""
    found: dict[str, tuple[TreeEntry, tuple[int, int] | None]] = {}
    hasher = _once_per_file(hasher)
    with open_directory(root, "") as directory:
        found[""] = (_read("", os.fstat(directory), f"/proc/self/fd/{directory}/.", hasher), None)
    pending = [""]
    while pending:
        path = pending.pop()
        with open_directory(root, path) as directory:
            for name in os.listdir(directory):
                child = f"{path}/{name}" if path else name
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                shared = None
                if stat.S_ISDIR(status.st_mode):
                    pending.append(child)
                elif status.st_nlink > 1:
                    shared = (status.st_dev, status.st_ino)
                found[child] = (_read(child, status, place(directory, name), hasher), shared)
    return _with_links(found)


def _once_per_file(hasher: Hasher) -> Hasher:
    """Read a file with many names once."""
    digests: dict[tuple[int, int], str] = {}

    def once(path: str, found: os.stat_result, where: str) -> str:
        if found.st_nlink == 1:
            return hasher(path, found, where)
        inode = (found.st_dev, found.st_ino)
        if inode not in digests:
            digests[inode] = hasher(path, found, where)
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


def _read(path: str, found: os.stat_result, where: str, hasher: Hasher) -> TreeEntry:
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    return TreeEntry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size if kind == FILE else 0,
        sha256=hasher(path, found, where) if kind == FILE else "",
        target=os.readlink(where) if kind == SYMLINK else "",
        xattrs=_read_xattrs(where),
        rdev=found.st_rdev if kind in (CHARACTER, BLOCK) else 0,
    )


def _read_xattrs(where: str) -> tuple[tuple[str, str], ...]:
    names = sorted(set(os.listxattr(where, follow_symlinks=False)) - _HOST_XATTRS)
    return tuple((name, os.getxattr(where, name, follow_symlinks=False).hex()) for name in names)


def remove_tree(root: Path) -> None:
    """Remove a directory and all in it, however deep. No error where there is none."""
    if not os.path.lexists(root):
        return
    directories = [""]
    for path in directories:  # grows while it is walked
        with open_directory(root, path) as directory:
            for name in os.listdir(directory):
                try:
                    os.unlink(name, dir_fd=directory)
                except IsADirectoryError:
                    directories.append(f"{path}/{name}" if path else name)
    for path in reversed(directories[1:]):
        parent, _, name = path.rpartition("/")
        with open_directory(root, parent) as directory:
            os.rmdir(name, dir_fd=directory)
    root.rmdir()
