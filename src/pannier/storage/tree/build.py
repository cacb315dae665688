"""Building a tree from a manifest: unchanged files from a base tree, the rest from a stream."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.storage.regular import opened_regular, path_of, seen
from pannier.storage.slow_reading import ReadingStopped
from pannier.storage.tree.manifest import (
    DIRECTORY,
    FILE,
    LINK,
    SPECIAL,
    SYMLINK,
    Manifest,
    TreeEntry,
)
from pannier.storage.tree.walk import open_directory

Content = Callable[[TreeEntry], Iterable[tuple[int, bytes]]]
"""Gives a file's data as (offset, bytes); what lies between is a hole."""

_COPY_BYTES = 1 << 24
_ZEROS = memoryview(bytes(1 << 20))


def _note_nothing(count: int) -> None:
    pass


class Builder:
    """Builds one tree.

    Args:
        root: an empty directory.
        manifest: what it shall become.
        base: a tree to take unchanged files from, with its manifest, or None.
        share: link the base's files instead of copying them; the base must never be written again.
        content: the data of the other files, asked for in the order of their paths.
        stop: set when nobody waits any more.
        note: told how many more bytes were copied out of the base.
    """

    def __init__(
        self,
        root: Path | int,
        *,
        manifest: Manifest,
        base: tuple[Path | int, Manifest] | None,
        share: bool,
        content: Content,
        stop: threading.Event,
        note: Callable[[int], None] = _note_nothing,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._base = base
        self._share = share
        self._content = content
        self._stop = stop
        self._note = note

    def build(self) -> None:
        """Do it.

        Raises:
            Corrupt: the content is not that of the manifest. ReadingStopped: ``stop`` was set. OSError.
        """
        entries = self._manifest.entries.values()
        with _Directories(self._root) as new, ExitStack() as stack:
            old = stack.enter_context(_Directories(self._base[0])) if self._base else None
            for entry in entries:
                self._make(entry, new, old)
            for entry in entries:  # after all files, so that the target of each link is there
                if entry.kind == LINK:
                    target, target_name = new.place(entry.target)
                    with seen(target_name, place=target) as found:
                        _link(found, *new.place(entry.path))
            # Children change their directory's times, and inherit from its default ACL: last.
            for entry in reversed(list(entries)):
                if entry.kind == DIRECTORY:
                    _set_attributes(*new.place(entry.path), entry)

    def _make(self, entry: TreeEntry, new: _Directories, old: _Directories | None) -> None:
        if entry.kind == LINK or not entry.path:
            return
        place, name = new.place(entry.path)
        if entry.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=place)
            return
        if entry.kind == FILE:
            if old is not None and self._is_in_base(entry):
                if self._take(entry, old, place, name):
                    return
            else:
                self._write(entry, place, name)
        elif entry.kind == SYMLINK:
            os.symlink(entry.target, name, dir_fd=place)
        else:
            os.mknod(name, SPECIAL[entry.kind] | 0o600, entry.rdev, dir_fd=place)
        _set_attributes(place, name, entry)

    def _take(self, entry: TreeEntry, old: _Directories, place: int, name: str) -> bool:
        """Take a file from the base; whether it came with its attributes."""
        base, base_name = old.place(entry.path)
        with opened_regular(base_name, place=base) as file:
            _check_base(file, entry)
            if self._share and _linked(file, place, name):
                return True
            with _new_file(place, name) as copy:
                self._copy(file, copy)
            _check_base(file, entry)
        return False

    def _copy(self, source: int, target: int) -> None:
        """Copy a file; what is a hole stays one."""
        for start, end in data_ranges(source):
            position = start
            while position < end:
                if self._stop.is_set():
                    raise ReadingStopped
                done = _copy_piece(source, target, position, min(end - position, _COPY_BYTES))
                if not done:
                    break
                position += done
                self._note(done)
        os.ftruncate(target, os.fstat(source).st_size)

    def _is_in_base(self, entry: TreeEntry) -> bool:
        return self._base is not None and self._base[1].entries.get(entry.path) == entry

    def _write(self, entry: TreeEntry, place: int, name: str) -> None:
        sha256 = hashlib.sha256()
        position = 0
        with _new_file(place, name) as file:
            for offset, data in self._content(entry):
                if offset < position or offset + len(data) > entry.size:
                    raise _damaged(entry)
                self._hash_hole(sha256, offset - position)
                sha256.update(data)
                position = offset + len(data)
                _write_at(file, data, offset)
            self._hash_hole(sha256, entry.size - position)
            os.ftruncate(file, entry.size)
        if sha256.hexdigest() != entry.sha256:
            raise _damaged(entry)

    def _hash_hole(self, sha256: hashlib._Hash, size: int) -> None:
        for zeros in hole(size):
            if self._stop.is_set():  # the sender says how large a hole is, and may be gone
                raise ReadingStopped
            sha256.update(zeros)


class _Directories(AbstractContextManager["_Directories"]):
    """The directories of a tree. The two used last stay open: link() needs two at once."""

    def __init__(self, root: Path | int) -> None:
        self._root = root
        self._open: dict[str, tuple[int, ExitStack]] = {}

    def place(self, path: str) -> tuple[int, str]:
        """An entry's directory, open until two others were asked for, and its name there."""
        parent, _, name = path.rpartition("/")
        opened = self._open.pop(parent, None)
        if opened is None:
            while len(self._open) > 1:
                self._open.pop(next(iter(self._open)))[1].close()
            stack = ExitStack()
            opened = (stack.enter_context(open_directory(self._root, parent)), stack)
        self._open[parent] = opened  # now the one used last
        return opened[0], name or "."

    def __exit__(self, *_: object) -> None:
        for _fd, stack in self._open.values():
            stack.close()


@contextmanager
def _new_file(place: int, name: str) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o600, dir_fd=place)
    try:
        yield file
    finally:
        os.close(file)


def _link(found: int, place: int, name: str) -> None:
    os.link(path_of(found), name, dst_dir_fd=place, follow_symlinks=True)


def _linked(found: int, place: int, name: str) -> bool:
    """Link a file of the base; False where its user has guarded it, and it has to be copied."""
    try:
        _link(found, place, name)
    except PermissionError:
        return False
    return True


def _set_attributes(place: int, name: str, entry: TreeEntry) -> None:
    """Owner, then mode (chown clears setuid), then xattrs (both clear some), then times."""
    with seen(name, place=place) as found:
        where = path_of(found)
        os.chown(where, entry.uid, entry.gid)
        if entry.kind != SYMLINK:
            os.chmod(where, entry.mode)
        for attribute, value in entry.xattrs:
            os.setxattr(where, attribute, bytes.fromhex(value))
        os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns))


def _check_base(file: int, entry: TreeEntry) -> None:
    found = os.fstat(file)
    if (found.st_size, found.st_mtime_ns) != (entry.size, entry.mtime_ns):
        raise Corrupt(
            f"{entry.path!r} in this node's copy is no longer what it was", remedy="send it whole"
        )


def _copy_piece(source: int, target: int, at: int, count: int) -> int:
    """Copy bytes to the same place in another file; where the file system can, they are shared. Returns how many were."""
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP):  # between two file systems
            raise
    data = os.pread(source, count, at)
    _write_at(target, data, at)
    return len(data)


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


def hole(size: int) -> Iterator[memoryview]:
    """The content of a hole, in pieces."""
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


def _damaged(entry: TreeEntry) -> Corrupt:
    return Corrupt(f"the data of {entry.path!r} arrived damaged", remedy="send it again")
