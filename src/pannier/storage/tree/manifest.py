"""Manifests: what is in a tree, entry by entry, so that trees can be compared without having both.

Values and pure functions only. Paths and link targets are file names as ``os.fsdecode`` gives them
(any bytes survive), relative to the tree, ``""`` for its root.
"""

from __future__ import annotations

import hashlib
import json
import stat
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from pannier.core.errors import Corrupt

DIRECTORY, FILE, LINK, SYMLINK = "dir", "file", "link", "symlink"
FIFO, SOCKET, CHARACTER, BLOCK = "fifo", "socket", "char", "block"
SPECIAL = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}
_KINDS = {DIRECTORY, FILE, LINK, SYMLINK, *SPECIAL}


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
        for entry in self.entries.values():
            sha256.update(_line(entry))
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
        Corrupt: it does not.
    """
    entries = manifest.entries
    root = entries.get("")
    if root is None or root.kind != DIRECTORY:
        raise _refused("it has no root")
    for path, entry in entries.items():
        if entry.kind not in _KINDS:
            raise _refused(f"{path!r} is of an unknown kind")
        if path:
            parent, _, name = path.rpartition("/")
            above = entries.get(parent)
            if name in ("", ".", "..") or "\0" in name or path.startswith("/"):
                raise _refused(f"{path!r} is not a name in a tree")
            if above is None or above.kind != DIRECTORY:
                raise _refused(f"{path!r} is in no directory")
        if entry.kind == LINK:
            first = entries.get(entry.target)
            if first is None or first.kind in (DIRECTORY, LINK):
                raise _refused(f"{path!r} is a link to nothing")


def encode(entries: Iterable[TreeEntry]) -> bytes:
    """Entries as compressed lines."""
    return zlib.compress(b"".join(map(_line, entries)), 1)


def decode(data: bytes) -> Iterable[TreeEntry]:
    """Read what :func:`encode` wrote.

    Raises:
        Corrupt: it is something else.
    """
    try:
        return [_entry(json.loads(line)) for line in zlib.decompress(data).splitlines()]
    except (ValueError, TypeError, zlib.error) as error:
        raise _refused("it cannot be read") from error


def _line(entry: TreeEntry) -> bytes:
    return json.dumps(astuple(entry), separators=(",", ":")).encode() + b"\n"


def _entry(fields: list[Any]) -> TreeEntry:
    path, kind, mode, uid, gid, mtime_ns, size, sha256, target, xattrs, rdev = fields
    strings, numbers = (path, kind, sha256, target), (mode, uid, gid, mtime_ns, size, rdev)
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
        xattrs=tuple((str(name), bytes.fromhex(value).hex()) for name, value in xattrs),
        rdev=rdev,
    )


def _refused(why: str) -> Corrupt:
    return Corrupt(f"the description of a tree is damaged: {why}", remedy="send it again, whole")
