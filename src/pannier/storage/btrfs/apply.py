"""Applying a small stream of ``btrfs send`` by system calls of our own.

``btrfs receive`` starts a process and commits the file system's transaction three times before
anything is durable. For the few kilobytes that an fsync waits for, that takes most of the time. This
module does the same for the commands of the stream's first version, and leaves the commit to the
caller.

A stream is a header and commands; each has a length, a kind, a checksum and attributes::

    "btrfs-stream\\0" u32 version
    u32 length, u16 kind, u32 crc32c, then `length` bytes of: u16 attribute, u16 size, bytes

all little endian. The checksums are not checked here: see :mod:`pannier.storage.btrfs.stream`.
Paths are opened component by component and never through a symbolic link, and only regular files
are opened, so that no stream reaches anything outside of its tree, nor a device.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pannier.core.errors import Corrupt
from pannier.host.ioctls import control
from pannier.storage.btrfs import ioctl
from pannier.storage.regular import opened_regular

_MAGIC = b"btrfs-stream\0"
_STREAM_HEADER = struct.Struct("<13sI")
_COMMAND_HEADER = struct.Struct("<IHI")
_ATTRIBUTE_HEADER = struct.Struct("<HH")
_U64 = struct.Struct("<Q")
_TIME = struct.Struct("<qI")
_CLONE_RANGE = 1 << 30 | 32 << 16 | 0x94 << 8 | 13

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_MISFITS = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY})
_MISFITS |= {errno.ELOOP, errno.EINVAL, errno.ENODATA, errno.ENXIO, errno.EXDEV, errno.EOPNOTSUPP}
"""Errors of the kernel when a stream does not fit the tree that it is applied to."""


class _Kind(IntEnum):
    SUBVOL = 1
    SNAPSHOT = 2
    MKFILE = 3
    MKDIR = 4
    MKNOD = 5
    MKFIFO = 6
    MKSOCK = 7
    SYMLINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    RMDIR = 12
    SET_XATTR = 13
    REMOVE_XATTR = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    CHMOD = 18
    CHOWN = 19
    UTIMES = 20
    END = 21


class _Attribute(IntEnum):
    UUID = 1
    CTRANSID = 2
    SIZE = 4
    MODE = 5
    UID = 6
    GID = 7
    RDEV = 8
    MTIME = 10
    ATIME = 11
    XATTR_NAME = 13
    XATTR_DATA = 14
    PATH = 15
    PATH_TO = 16
    PATH_LINK = 17
    FILE_OFFSET = 18
    DATA = 19
    CLONE_UUID = 20
    CLONE_PATH = 22
    CLONE_OFFSET = 23
    CLONE_LEN = 24


@dataclass(frozen=True, slots=True)
class SourceSubvolume:
    """The subvolume that a stream was made of. The copy is marked with this."""

    uuid: str
    ctransid: int


@dataclass(frozen=True, slots=True)
class _Command:
    kind: _Kind
    attributes: Mapping[int, bytes]

    def __getitem__(self, attribute: _Attribute) -> bytes:
        try:
            return self.attributes[attribute]
        except KeyError as error:
            raise _garbled(f"{self.kind.name} without its {attribute.name}") from error

    def number(self, attribute: _Attribute) -> int:
        """An attribute of eight bytes."""
        return int(_unpack(_U64, self[attribute])[0])

    def time_ns(self, attribute: _Attribute) -> int:
        """A time, in nanoseconds since the epoch."""
        seconds, nanoseconds = _unpack(_TIME, self[attribute])
        return int(seconds) * 10**9 + int(nanoseconds)


def apply(stream: bytes, *, into: Path, base: Path | None) -> SourceSubvolume:
    """Make the tree ``into`` what ``stream`` says it is.

    Args:
        stream: a whole one.
        into: a writable subvolume with the content of ``base``, or an empty one.
        base: the read-only subvolume that it is the difference to; None for a whole generation.

    Raises:
        Corrupt: it is no such stream, or does not fit. ``into`` must then be discarded.
        OSError: from the disk. ``into`` must then be discarded too.
    """
    first, *commands = _parse(stream)
    known = _uuids(base) if base is not None else frozenset()
    if first.kind != (_Kind.SUBVOL if base is None else _Kind.SNAPSHOT):
        raise Corrupt("the stream is not what was agreed", remedy="send it again")
    if base is not None and first[_Attribute.CLONE_UUID].hex() not in known:
        raise Corrupt(
            "the stream is not the difference to the base that was agreed", remedy="send it whole"
        )
    origin = SourceSubvolume(first[_Attribute.UUID].hex(), first.number(_Attribute.CTRANSID))
    with _opened(into, _DIRECTORY) as tree, _opened(base or into, _DIRECTORY) as old:
        sources = dict.fromkeys(known, old) | {origin.uuid: tree}
        applier = _Applier(tree, sources)
        try:
            for command in commands:
                applier.apply(command)
        except OSError as error:
            if error.errno not in _MISFITS:
                raise
            raise Corrupt(
                f"the stream does not fit: {error.strerror}", remedy="send it whole"
            ) from error
        except (ValueError, OverflowError) as error:
            raise _garbled(str(error)) from error
    return origin


def _parse(stream: bytes) -> list[_Command]:
    """All commands but the last, which is END.

    Raises:
        Corrupt: it is not whole, or has what the first version does not have.
    """
    magic, version = _unpack(_STREAM_HEADER, stream[: _STREAM_HEADER.size])
    if magic != _MAGIC or version != 1:
        raise _garbled(f"version {version}")
    commands, at = [], _STREAM_HEADER.size
    while True:
        length, kind, _ = _unpack(_COMMAND_HEADER, stream[at : at + _COMMAND_HEADER.size])
        at += _COMMAND_HEADER.size + length
        if kind == _Kind.END:
            break
        if at > len(stream) or not _Kind.SUBVOL <= kind < _Kind.END:
            raise _garbled(f"a command {kind} of {length} bytes")
        commands.append(_Command(_Kind(kind), dict(_attributes(stream[at - length : at]))))
    if at != len(stream) or not commands:
        raise _garbled("an end that is none")
    return commands


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        number, size = _unpack(_ATTRIBUTE_HEADER, body[at : at + _ATTRIBUTE_HEADER.size])
        at += _ATTRIBUTE_HEADER.size + size
        if at > len(body):
            raise _garbled("a cut attribute")
        yield number, body[at - size : at]


def _unpack(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    try:
        return form.unpack(data)
    except struct.error as error:
        raise _garbled("a cut number") from error


def _garbled(what: str) -> Corrupt:
    return Corrupt(f"the stream is garbled: {what}", remedy="send it again")


def _uuids(base: Path) -> frozenset[str]:
    """The uuids by which a stream may refer to ``base``: where it was made, and here."""
    found = ioctl.subvolume_info(base)
    return frozenset(uuid for uuid in (found.received_uuid, found.uuid) if uuid)


@contextmanager
def _opened(path: bytes | Path, flags: int, *, place: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, dir_fd=place)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _at(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A path's directory and its last component; the tree's root, for the empty path."""
    *folders, name = path.split(b"/") if path else [b"."]
    if path and any(each in (b"", b".", b"..") for each in (*folders, name)):
        raise _garbled(f"the path {os.fsdecode(path)!r}")
    place = root
    try:
        for folder in folders:
            deeper = os.open(folder, _DIRECTORY | os.O_CLOEXEC, dir_fd=place)
            if place != root:
                os.close(place)
            place = deeper
        yield place, name
    finally:
        if place != root:
            os.close(place)


def _through(place: int, name: bytes) -> bytes:
    """A path for calls that cannot start from a directory's descriptor."""
    return b"/proc/self/fd/%d/%s" % (place, name)


class _Applier:
    """Applies commands to a tree.

    Args:
        tree: its root.
        sources: roots of the trees that extents may be shared with, by their uuids.
    """

    def __init__(self, tree: int, sources: Mapping[str, int]) -> None:
        self._tree = tree
        self._sources = sources

    def apply(self, command: _Command) -> None:
        """Apply one. Raises Corrupt, or OSError."""
        path = command[_Attribute.PATH]
        match command.kind:
            case _Kind.WRITE | _Kind.CLONE | _Kind.TRUNCATE:
                with (
                    _at(self._tree, path) as (place, name),
                    opened_regular(name, os.O_WRONLY, place=place) as file,
                ):
                    self._change(file, command)
            case _Kind.RENAME:
                to = command[_Attribute.PATH_TO]
                with _at(self._tree, path) as old, _at(self._tree, to) as new:
                    os.rename(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0])
            case _Kind.LINK:
                there = command[_Attribute.PATH_LINK]
                with _at(self._tree, there) as old, _at(self._tree, path) as new:
                    os.link(
                        old[1],
                        new[1],
                        src_dir_fd=old[0],
                        dst_dir_fd=new[0],
                        follow_symlinks=False,
                    )
            case _:
                with _at(self._tree, path) as (place, name):
                    self._name(place, name, command)

    def _change(self, file: int, command: _Command) -> None:
        """A command on a file's content."""
        if command.kind == _Kind.TRUNCATE:
            os.ftruncate(file, command.number(_Attribute.SIZE))
            return
        offset = command.number(_Attribute.FILE_OFFSET)
        if command.kind == _Kind.WRITE:
            data = memoryview(command[_Attribute.DATA])
            while data:
                written = os.pwrite(file, data, offset)
                data, offset = data[written:], offset + written
            return
        root = self._sources.get(command[_Attribute.CLONE_UUID].hex())
        if root is None:
            raise _garbled("a clone of what is neither the base nor itself")
        start, size = (
            command.number(each) for each in (_Attribute.CLONE_OFFSET, _Attribute.CLONE_LEN)
        )
        with (
            _at(root, command[_Attribute.CLONE_PATH]) as (place, name),
            opened_regular(name, place=place) as source,
        ):
            control(file, _CLONE_RANGE, struct.pack("<qQQQ", source, start, size, offset))

    def _name(self, place: int, name: bytes, command: _Command) -> None:
        """A command on a name or an inode. Permissions and owners follow by commands of their own."""
        match command.kind:
            case _Kind.MKFILE:
                flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o600, dir_fd=place))
            case _Kind.MKDIR:
                os.mkdir(name, 0o700, dir_fd=place)
            case _Kind.MKNOD | _Kind.MKFIFO | _Kind.MKSOCK:
                kind = stat.S_IFMT(command.number(_Attribute.MODE))
                os.mknod(name, kind | 0o600, command.number(_Attribute.RDEV), dir_fd=place)
            case _Kind.SYMLINK:
                os.symlink(command[_Attribute.PATH_LINK], name, dir_fd=place)
            case _Kind.UNLINK:
                os.unlink(name, dir_fd=place)
            case _Kind.RMDIR:
                os.rmdir(name, dir_fd=place)
            case _Kind.CHOWN:
                owner, group = (command.number(each) for each in (_Attribute.UID, _Attribute.GID))
                os.chown(name, owner, group, dir_fd=place, follow_symlinks=False)
            case _Kind.UTIMES:
                times = (command.time_ns(_Attribute.ATIME), command.time_ns(_Attribute.MTIME))
                os.utime(name, ns=times, dir_fd=place, follow_symlinks=False)
            case _Kind.CHMOD:
                with _opened(name, os.O_PATH | os.O_NOFOLLOW, place=place) as fd:
                    os.chmod(f"/proc/self/fd/{fd}", command.number(_Attribute.MODE) & 0o7777)
            case _Kind.SET_XATTR:
                attribute, value = command[_Attribute.XATTR_NAME], command[_Attribute.XATTR_DATA]
                os.setxattr(_through(place, name), attribute, value, follow_symlinks=False)
            case _Kind.REMOVE_XATTR:
                attribute = command[_Attribute.XATTR_NAME]
                os.removexattr(_through(place, name), attribute, follow_symlinks=False)
            case _:
                raise _garbled(f"{command.kind.name} in the middle")
