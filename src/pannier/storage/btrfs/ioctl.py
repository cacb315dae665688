"""The btrfs ioctls that the pool and the driver need, by path, without a process per call.

Every function blocks (callers run them in threads) and raises OSError as the kernel reports it;
the callers know what they were doing and translate. Layouts are those of linux/btrfs.h.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pannier.host.ioctls import control

_MAGIC = 0x94
_NONE, _WRITE, _READ = 0, 1, 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_SYNC = _request(_NONE, 8, 0)
_SNAP_DESTROY = _request(_WRITE, 15, 4096)
_TREE_SEARCH = _request(_WRITE | _READ, 17, 4096)
_SNAP_CREATE_V2 = _request(_WRITE, 23, 4096)
_SUBVOL_CREATE_V2 = _request(_WRITE, 24, 4096)
_SUBVOL_GETFLAGS = _request(_READ, 25, 8)
_SUBVOL_SETFLAGS = _request(_WRITE, 26, 8)
_SET_RECEIVED = _request(_WRITE | _READ, 37, 200)
_FS_INFO = _request(_READ, 31, 1024)
_SEND = _request(_WRITE, 38, 72)
_QUOTA_CTL = _request(_WRITE | _READ, 40, 16)
_QGROUP_ASSIGN = _request(_WRITE, 41, 24)
_QGROUP_CREATE = _request(_WRITE, 42, 16)
_QGROUP_LIMIT = _request(_READ, 43, 48)
_GET_SUBVOL_INFO = _request(_READ, 60, 504)

_READ_ONLY = 1 << 1
_QUOTA_ENABLE_SIMPLE = 4
_ROOT_TREE, _QUOTA_TREE = 1, 8
_ROOT_KEY = 132
_ORPHANS, _ORPHAN_KEY = 2**64 - 5, 48
"""The object, and the kind of item, by which the tree of roots lists subvolumes that are deleted and not freed."""
_QGROUP_INFO_KEY, _QGROUP_LIMIT_KEY = 242, 244
_SEARCH_KEY_BYTES, _ITEM_HEADER_BYTES = 104, 32
_LIMIT_REFERENCED = 1
_LIMIT_EXCLUSIVE = 2
_NO_LIMIT = 2**64 - 1
_NAME_OFFSET_V1, _NAME_OFFSET_V2 = 8, 56
_NAME_MAX = 255
TOP_LEVEL = 5
"""The subvolume, and quota group, that holds the others."""
_SUBVOLUME_INODE = 256
_LAST_SINGLE = (1 << 48) - 1
"""Quota groups up to this one are those of single subvolumes."""


@dataclass(frozen=True, slots=True)
class SubvolumeInfo:
    """What the kernel knows of a subvolume; transaction numbers are the local file system's.

    Attributes:
        id: its number in this file system, never given twice.
        generation: transaction of the last change of its root, snapshots of it included.
        ctransid: transaction of the last change of its *content*; a snapshot copies it, so equal
            numbers in a tree and its snapshot mean equal content (once all writes are flushed).
        uuid, parent_uuid, received_uuid: hex; empty where there is none.
        received_ctransid: what :func:`set_received` was given; a writable snapshot has neither.
    """

    id: int
    generation: int
    ctransid: int
    read_only: bool
    uuid: str
    parent_uuid: str
    received_uuid: str
    received_ctransid: int


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _arguments(path: Path, *, offset: int) -> bytearray:
    name = os.fsencode(path.name)
    if len(name) > _NAME_MAX:
        raise ValueError(f"subvolume name too long: {path.name}")
    block = bytearray(4096)
    block[offset : offset + len(name)] = name
    return block


def is_subvolume(path: Path) -> bool:
    """Whether ``path`` is the root of a subvolume (of a file system known to be btrfs)."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return found.st_ino == _SUBVOLUME_INODE


def create_subvolume(path: Path) -> None:
    """Make an empty subvolume."""
    with _directory(path.parent) as parent:
        control(parent, _SUBVOL_CREATE_V2, _arguments(path, offset=_NAME_OFFSET_V2))


def create_snapshot(source: Path, *, target: Path, read_only: bool) -> None:
    """Snapshot ``source``, with all that was written to it, and commit the transaction."""
    block = _arguments(target, offset=_NAME_OFFSET_V2)
    with _directory(source) as origin, _directory(target.parent) as parent:
        struct.pack_into("<qQQ", block, 0, origin, 0, _READ_ONLY if read_only else 0)
        control(parent, _SNAP_CREATE_V2, block)


def destroy_subvolume(path: Path) -> None:
    """Unlink a subvolume, read-only or not; its space comes back later, from the cleaner."""
    with _directory(path.parent) as parent:
        control(parent, _SNAP_DESTROY, _arguments(path, offset=_NAME_OFFSET_V1))


def subvolume_info(path: Path) -> SubvolumeInfo:
    """Read a subvolume's numbers as they are in memory, ahead of the next commit."""
    block = bytearray(504)
    with _directory(path) as fd:
        control(fd, _GET_SUBVOL_INFO, block)
    (number,) = struct.unpack_from("<Q", block, 0)
    _parent, _dirid, generation, flags = struct.unpack_from("<QQQQ", block, 264)
    uuid, parent_uuid, received_uuid = struct.unpack_from("16s16s16s", block, 296)
    ctransid, _otransid, received_ctransid = struct.unpack_from("<QQQ", block, 344)
    return SubvolumeInfo(
        id=number,
        generation=generation,
        ctransid=ctransid,
        read_only=bool(flags & 1),  # the root item's own flag, not the ioctl's _READ_ONLY
        uuid=_hex(uuid),
        parent_uuid=_hex(parent_uuid),
        received_uuid=_hex(received_uuid),
        received_ctransid=received_ctransid,
    )


def _hex(uuid: bytes) -> str:
    return uuid.hex() if any(uuid) else ""


def is_read_only(path: Path) -> bool:
    """Whether a subvolume is set read-only."""
    block = bytearray(8)
    with _directory(path) as fd:
        control(fd, _SUBVOL_GETFLAGS, block)
    return bool(struct.unpack("<Q", block)[0] & _READ_ONLY)


def set_read_only(path: Path, *, read_only: bool) -> None:
    """Set a subvolume read-only or writable."""
    with _directory(path) as fd:
        control(fd, _SUBVOL_SETFLAGS, struct.pack("<Q", _READ_ONLY if read_only else 0))


def set_received(path: Path, *, uuid: str, ctransid: int) -> None:
    """Mark a writable subvolume, and the snapshots made of it, as a copy; commit the transaction.

    Args:
        path: the subvolume.
        uuid: of what it is a copy of, hex.
        ctransid: that one's number of its last change.
    """
    block = bytearray(200)
    struct.pack_into("<16sQ", block, 0, bytes.fromhex(uuid), ctransid)
    with _directory(path) as fd:
        control(fd, _SET_RECEIVED, block)


def send(tree: Path, *, parent: Path | None, into: int) -> None:
    """Write a read-only subvolume, whole or as the difference to ``parent``, into a pipe.

    What the parent has is referred to and not sent, as ``btrfs send -p`` does it. Fails with EPIPE
    as soon as nobody reads any more. No signal may reach the thread: the kernel would start again.
    """
    sources = array("Q", [subvolume_info(parent).id] if parent is not None else [])
    number = sources[0] if sources else 0
    address = sources.buffer_info()[0] if sources else 0
    with _directory(tree) as fd:
        block = struct.pack("=qQQQQI28x", into, len(sources), address, number, 0, 0)
        control(fd, _SEND, block)


def sync_filesystem(path: Path) -> None:
    """Flush everything written to the whole file system and commit; costs nothing if it is idle."""
    with _directory(path) as fd:
        control(fd, _SYNC)


def filesystem_uuid(path: Path) -> str:
    """The file system's UUID as sysfs writes it."""
    block = bytearray(1024)
    with _directory(path) as fd:
        control(fd, _FS_INFO, block)
    return str(UUID(bytes=bytes(block[16:32])))


def enable_simple_quota(path: Path) -> None:
    """Turn simple quotas on: extents are charged to their first writer (kernel 6.7 and later)."""
    with _directory(path) as fd:
        control(fd, _QUOTA_CTL, bytearray(struct.pack("<QQ", _QUOTA_ENABLE_SIMPLE, 0)))


def group_of(subvolume_id: int) -> int:
    """The level-1 quota group named after a subvolume."""
    return 1 << 48 | subvolume_id


def create_group(path: Path, *, group: int) -> None:
    """Make a quota group."""
    with _directory(path) as fd:
        control(fd, _QGROUP_CREATE, struct.pack("<QQ", 1, group))


def remove_group(path: Path, *, group: int) -> None:
    """Remove a quota group that nothing is in any more."""
    with _directory(path) as fd:
        control(fd, _QGROUP_CREATE, struct.pack("<QQ", 0, group))


def join_group(path: Path, *, subvolume_id: int, group: int) -> None:
    """Put a subvolume's own quota group into ``group``."""
    with _directory(path) as fd:
        control(fd, _QGROUP_ASSIGN, struct.pack("<QQQ", 1, subvolume_id, group))


def set_limit(path: Path, *, subvolume_id: int, size_bytes: int | None) -> None:
    """Limit what a subvolume may be charged; None lifts the limit.

    ``path`` must lie outside that subvolume: an exhausted one refuses this call on itself, too.
    """
    _set_limit(path, subvolume_id, _LIMIT_REFERENCED, size_bytes)


def refuse_new_extents(path: Path, *, subvolume_id: int, refuse: bool) -> None:
    """Make every write to a subvolume fail with EDQUOT, or end that. ``path`` lies outside of it.

    Uses the second of a group's two limits, so that the first one (the size) stays what it is. In
    simple quotas both count the same bytes.
    """
    _set_limit(path, subvolume_id, _LIMIT_EXCLUSIVE, 1 if refuse else None)


def _set_limit(path: Path, group: int, which: int, size_bytes: int | None) -> None:
    value = _NO_LIMIT if size_bytes is None else size_bytes
    with _directory(path) as fd:
        control(fd, _QGROUP_LIMIT, struct.pack("<QQQQQQ", group, which, value, value, 0, 0))


def limit_bytes(path: Path, *, subvolume_id: int) -> int | None:
    """The limit set by :func:`set_limit`, or None."""
    found = _quota_item(path, _QGROUP_LIMIT_KEY, subvolume_id)
    if found is None:
        return None
    flags, limit = struct.unpack_from("<QQ", found, 0)
    return int(limit) if flags & _LIMIT_REFERENCED and limit != _NO_LIMIT else None


def charged_bytes(path: Path, *, group: int) -> int | None:
    """What a quota group is charged, as of the last commit; None where quotas are off."""
    found = _quota_item(path, _QGROUP_INFO_KEY, group)
    if found is None:
        return None
    _generation, referenced = struct.unpack_from("<QQ", found, 0)
    return int(referenced)


def idle_groups(path: Path) -> set[int]:
    """Quota groups of single subvolumes that are gone, as far as nothing is charged to them.

    The kernel leaves many of them behind. The group of a subvolume that is just being made may be
    among them.
    """
    with _directory(path) as fd:
        groups = list(
            _items(fd, _QUOTA_TREE, _QGROUP_INFO_KEY, first=_SUBVOLUME_INODE, last=_LAST_SINGLE)
        )
        uncharged = (group for group, info in groups if struct.unpack_from("<Q", info, 8) == (0,))
        return {group for group in uncharged if not _has_root(fd, group)}


def _items(fd: int, tree: int, key: int, *, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Items of the object 0 of a tree, by their offsets."""
    while first <= last:
        block = bytearray(4096)
        search = (tree, 0, 0, first, last, 0, 2**64 - 1, key, key, 2**32 - 1)
        struct.pack_into("<QQQQQQQIII", block, 0, *search)
        control(fd, _TREE_SEARCH, block)
        (count,) = struct.unpack_from("<I", block, 64)
        if not count:
            return
        at = _SEARCH_KEY_BYTES
        for _ in range(count):
            _transid, _object, offset, _type, size = struct.unpack_from("<QQQII", block, at)
            at += _ITEM_HEADER_BYTES + size
            yield offset, bytes(block[at - size : at])
        first = offset + 1


def _has_root(fd: int, subvolume_id: int) -> bool:
    return _has_item(fd, subvolume_id, _ROOT_KEY)


def has_deleted(path: Path) -> bool:
    """Whether the cleaner has still to free subvolumes that were deleted."""
    with _directory(path) as fd:
        return _has_item(fd, _ORPHANS, _ORPHAN_KEY)


def _has_item(fd: int, number: int, key: int) -> bool:
    """Whether the tree of roots has an item of an object."""
    block = bytearray(4096)
    search = (_ROOT_TREE, number, number, 0, 2**64 - 1, 0, 2**64 - 1, key, key, 1)
    struct.pack_into("<QQQQQQQIII", block, 0, *search)
    control(fd, _TREE_SEARCH, block)
    return struct.unpack_from("<I", block, 64) != (0,)


def _quota_item(path: Path, key: int, group: int) -> bytes | None:
    """An item of the quota tree, as of the last commit."""
    block = bytearray(4096)
    search = (_QUOTA_TREE, 0, 0, group, group, 0, 2**64 - 1, key, key, 1)
    struct.pack_into("<QQQQQQQIII", block, 0, *search)
    with _directory(path) as fd:
        try:
            control(fd, _TREE_SEARCH, block)
        except FileNotFoundError:
            return None  # no quota tree: quotas are off
    (count,) = struct.unpack_from("<I", block, 64)
    return bytes(block[_SEARCH_KEY_BYTES + _ITEM_HEADER_BYTES :]) if count else None
