"""Manifests: what is in a tree, entry by entry, so that trees can be compared without having both.

Values and pure functions only. Paths and link targets are file names as ``os.fsdecode`` gives them
(any bytes survive), relative to the tree, ``""`` for its root.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from pannier.core.errors import Corrupt

DIRECTORY, FILE, LINK, SYMLINK = "dir", "file", "link", "symlink"
FIFO, SOCKET, CHARACTER, BLOCK = "fifo", "socket", "char", "block"
SPECIAL = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}
_KINDS = {DIRECTORY, FILE, LINK, SYMLINK, *SPECIAL}
HOST_XATTRS = frozenset({"security.selinux"})
"""Labels of a host's policy, not of the data: they are not read, and none is taken from another node."""
MOST_ENTRIES = 1 << 22
"""Names in one tree. Each takes some 700 bytes in memory while a tree is read, sent or received: 3 GiB for so many."""
_NAME_BYTES = 255
_TARGET_BYTES = 4095
"""What Linux takes of a name, and of a symlink's target."""
_FILE_BYTES = 1 << 44
"""16 TiB, ext4's largest file. The digest of a file is over its holes, too, and takes hours for so many."""
_IDS = (1 << 32) - 1
"""Behind the last owner: this one means "leave it as it is"."""
_DEVICES = 1 << 64
_TIMES_NS = 10**9 << 63
"""Times are kept in seconds with 64 bits, of which one is the sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One name in a tree.

    Attributes:
        kind: one of the words above; ``link`` is a further name of the file at ``target``, the
            first of its names in sorted order, and carries nothing else.
        mode: permission bits with setuid, setgid and sticky.
        mtime_ns: since 1970.
        size: bytes, of files.
        sha256: hex, of files.
        target: of symlinks and links.
        xattrs: (name, hex value), sorted; POSIX ACLs and capabilities are among them.
        rdev: device number of devices.
    """

    path: str
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    xattrs: tuple[tuple[str, str], ...] = ()
    rdev: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """All entries of a tree by path, in sorted order: parents come before what they contain."""

    entries: Mapping[str, TreeEntry]

    @classmethod
    def of(cls, entries: Iterable[TreeEntry]) -> Manifest:
        """A manifest of entries in any order."""
        return cls({entry.path: entry for entry in sorted(entries, key=lambda e: e.path)})

    def digest(self) -> str:
        """SHA-256 over everything in it: equal digests mean equal trees."""
        sha256 = hashlib.sha256()
        for line in lines(self.entries.values()):
            sha256.update(line)
        return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class Difference:
    """What turns one manifest into another: names to remove, then entries to add or replace."""

    removed: tuple[str, ...]
    changed: tuple[TreeEntry, ...]


EMPTY = Manifest({})


def difference(old: Manifest, new: Manifest) -> Difference:
    """What :func:`apply` needs to make ``new`` out of ``old``."""
    removed = tuple(path for path in old.entries if path not in new.entries)
    changed = tuple(e for path, e in new.entries.items() if old.entries.get(path) != e)
    return Difference(removed, changed)


def apply(old: Manifest, changes: Difference) -> Manifest:
    """The manifest that results from changes."""
    entries = dict(old.entries)
    for path in changes.removed:
        entries.pop(path, None)
    entries.update((entry.path, entry) for entry in changes.changed)
    return Manifest.of(entries.values())


def check(manifest: Manifest) -> None:
    """Make sure that a manifest from elsewhere describes a tree and nothing outside of it.

    Raises:
        Corrupt: it does not, or describes what no file system keeps.
    """
    entries = manifest.entries
    root = entries.get("")
    if root is None or root.kind != DIRECTORY:
        raise _refused("it has no root")
    if len(entries) > MOST_ENTRIES:
        raise _refused(f"it has more than {MOST_ENTRIES} names")
    for path, entry in entries.items():
        if entry.kind not in _KINDS:
            raise _refused(f"{path[:80]!r} is of an unknown kind")
        if path:
            parent, _, name = path.rpartition("/")
            above = entries.get(parent)
            if name in (".", "..") or not _is_text(name, _NAME_BYTES):
                raise _refused(f"{path[:80]!r} is not a name in a tree")
            if above is None or above.kind != DIRECTORY or path.startswith("/"):
                raise _refused(f"{path[:80]!r} is in no directory")
        if entry.kind == LINK:
            first = entries.get(entry.target)
            if first is None or first.kind in (DIRECTORY, LINK):
                raise _refused(f"{path[:80]!r} is a link to nothing")
        elif entry.kind == SYMLINK and not _is_text(entry.target, _TARGET_BYTES):
            raise _refused(f"{path[:80]!r} leads to what is no path")
        if not _has_possible_attributes(entry):
            raise _refused(f"{path[:80]!r} has what no file system keeps")


def _is_text(text: str, most_bytes: int) -> bool:
    """Whether the kernel may give a text. One name has one spelling: two would be two entries for one file."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return 0 < len(encoded) <= most_bytes and b"\0" not in encoded and os.fsdecode(encoded) == text


def _has_possible_attributes(entry: TreeEntry) -> bool:
    return (
        0 <= entry.mode <= 0o7777
        and 0 <= entry.uid < _IDS
        and 0 <= entry.gid < _IDS
        and 0 <= entry.size <= _FILE_BYTES
        and 0 <= entry.rdev < _DEVICES
        and -_TIMES_NS <= entry.mtime_ns < _TIMES_NS
        and all(_is_text(name, _NAME_BYTES) for name, _ in entry.xattrs)
        and not any(name in HOST_XATTRS for name, _ in entry.xattrs)
    )


def encode(entries: Iterable[TreeEntry]) -> bytes:
    """Entries as compressed lines."""
    return zlib.compress(b"".join(lines(entries)), 1)


def decode(data: bytes) -> list[TreeEntry]:
    """Read what :func:`encode` wrote on this node: nothing limits its size.

    Raises:
        Corrupt: it is something else.
    """
    try:
        return parse(zlib.decompress(data))
    except zlib.error as error:
        raise _refused("it cannot be read") from error


def lines(entries: Iterable[TreeEntry]) -> Iterator[bytes]:
    """Entries as lines."""
    return (json.dumps(astuple(each), separators=(",", ":")).encode() + b"\n" for each in entries)


def parse(text: bytes) -> list[TreeEntry]:
    """Read what :func:`lines` wrote.

    Raises:
        Corrupt: it is something else.
    """
    try:
        return [_entry(json.loads(line)) for line in text.splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise _refused("it cannot be read") from error


def _entry(fields: list[Any]) -> TreeEntry:
    path, kind, mode, uid, gid, mtime_ns, size, sha256, target, xattrs, rdev = fields
    names = [name for name, _value in xattrs]
    strings, numbers = (path, kind, sha256, target, *names), (mode, uid, gid, mtime_ns, size, rdev)
    if not all(type(s) is str for s in strings) or not all(type(n) is int for n in numbers):
        raise TypeError("wrong types")
    return TreeEntry(
        path=path,
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        sha256=sha256,
        target=target,
        xattrs=tuple((name, bytes.fromhex(value).hex()) for name, value in xattrs),
        rdev=rdev,
    )


def _refused(why: str) -> Corrupt:
    return Corrupt(f"the description of a tree is damaged: {why}", remedy="send it again, whole")
