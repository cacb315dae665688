"""Building a tree from a manifest: unchanged files from a base tree, the rest from a stream."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.storage.regular import opened_regular
from pannier.storage.tree.manifest import (
    DIRECTORY,
    FILE,
    LINK,
    SPECIAL,
    SYMLINK,
    Manifest,
    TreeEntry,
)
from pannier.storage.tree.walk import open_directory, place

Content = Callable[[TreeEntry], Iterable[tuple[int, bytes]]]
"""Gives a file's data as (offset, bytes); what lies between is a hole."""

_COPY_BYTES = 1 << 24
_ZEROS = bytes(1 << 20)


class Builder:
    """Builds one tree.

    Args:
        root: an empty directory.
        manifest: what it shall become.
        base: a tree to take unchanged files from, with its manifest, or None.
        share: link the base's files instead of copying them; the base must never be written again.
        content: the data of the other files, asked for in the order of their paths.
    """

    def __init__(
        self,
        root: Path,
        *,
        manifest: Manifest,
        base: tuple[Path, Manifest] | None,
        share: bool,
        content: Content,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._base = base
        self._share = share
        self._content = content

    def build(self) -> None:
        """Do it.

        Raises:
            Corrupt: the content is not that of the manifest; OSError.
        """
        entries = self._manifest.entries.values()
        with _Directories(self._root) as new, ExitStack() as stack:
            old = stack.enter_context(_Directories(self._base[0])) if self._base else None
            for entry in entries:
                self._make(entry, new, old)
            for entry in entries:  # after all files, so that the target of each link is there
                if entry.kind == LINK:
                    os.link(new.place(entry.target), new.place(entry.path), follow_symlinks=False)
            # Children change their directory's times, and inherit from its default ACL: last.
            for entry in reversed(list(entries)):
                if entry.kind == DIRECTORY:
                    set_attributes(new.place(entry.path), entry)

    def _make(self, entry: TreeEntry, new: _Directories, old: _Directories | None) -> None:
        where = new.place(entry.path)
        if entry.kind == DIRECTORY:
            if entry.path:
                os.mkdir(where, 0o700)
            return
        if entry.kind == LINK:
            return
        if entry.kind == FILE:
            if old is not None and self._is_in_base(entry) and self._share:
                _check_base(old.place(entry.path), entry)
                os.link(old.place(entry.path), where, follow_symlinks=False)
                return
            if old is not None and self._is_in_base(entry):
                _copy(old.place(entry.path), where)
            else:
                self._write(entry, where)
        elif entry.kind == SYMLINK:
            os.symlink(entry.target, where)
        else:
            os.mknod(where, SPECIAL[entry.kind] | 0o600, entry.rdev)
        set_attributes(where, entry)

    def _is_in_base(self, entry: TreeEntry) -> bool:
        return self._base is not None and self._base[1].entries.get(entry.path) == entry

    def _write(self, entry: TreeEntry, where: str) -> None:
        sha256 = hashlib.sha256()
        position = 0
        with open(where, "xb", buffering=0) as file:
            for offset, data in self._content(entry):
                if offset < position or offset + len(data) > entry.size:
                    raise _damaged(entry)
                hash_zeros(sha256, offset - position)
                sha256.update(data)
                position = offset + len(data)
                _write_at(file.fileno(), data, offset)
            hash_zeros(sha256, entry.size - position)
            os.ftruncate(file.fileno(), entry.size)
        if sha256.hexdigest() != entry.sha256:
            raise _damaged(entry)


class _Directories(AbstractContextManager["_Directories"]):
    """Short paths into a tree. The two directories used last stay open: link() needs two at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, tuple[int, ExitStack]] = {}

    def place(self, path: str) -> str:
        """A short path to an entry, good until two other directories were asked for."""
        parent, _, name = path.rpartition("/")
        opened = self._open.pop(parent, None)
        if opened is None:
            while len(self._open) > 1:
                self._open.pop(next(iter(self._open)))[1].close()
            stack = ExitStack()
            opened = (stack.enter_context(open_directory(self._root, parent)), stack)
        self._open[parent] = opened  # now the one used last
        return place(self._open[parent][0], name or ".")

    def __exit__(self, *_: object) -> None:
        for _fd, stack in self._open.values():
            stack.close()


def set_attributes(where: str, entry: TreeEntry) -> None:
    """Owner, then mode (chown clears setuid), then xattrs (both clear some), then times."""
    os.chown(where, entry.uid, entry.gid, follow_symlinks=False)
    if entry.kind != SYMLINK:
        os.chmod(where, entry.mode)
    for name, value in entry.xattrs:
        os.setxattr(where, name, bytes.fromhex(value), follow_symlinks=False)
    os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _check_base(where: str, entry: TreeEntry) -> None:
    found = os.lstat(where)
    same = (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)
    if not same or not stat.S_ISREG(found.st_mode):
        raise Corrupt(
            f"{entry.path!r} in this node's copy is no longer what it was", remedy="send it whole"
        )


def _copy(source: str, target: str) -> None:
    """Copy a file; where the file system can, its extents are shared and nothing is copied."""
    with opened_regular(source) as old, open(target, "xb") as new:
        for start, end in data_ranges(old):
            position = start
            while position < end:
                count = min(end - position, _COPY_BYTES)
                done = os.copy_file_range(old, new.fileno(), count, position, position)
                if not done:
                    break
                position += done
        os.ftruncate(new.fileno(), os.fstat(old).st_size)


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of a file's data, without its holes."""
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def hash_zeros(sha256: hashlib._Hash, size: int) -> None:
    """Add a hole's content to a digest."""
    while size > 0:
        sha256.update(_ZEROS[:size])
        size -= len(_ZEROS)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


def _damaged(entry: TreeEntry) -> Corrupt:
    return Corrupt(f"the data of {entry.path!r} arrived damaged", remedy="send it again")
