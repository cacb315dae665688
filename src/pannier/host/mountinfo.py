"""What is mounted where, as the kernel says in ``/proc/PID/mountinfo``."""

from __future__ import annotations

import os
import re
import select
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pannier.core.errors import StorageError


@dataclass(frozen=True, slots=True)
class Location:
    """A directory, named independently of mounts: device and path inside its file system."""

    device: str
    path: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        id, parent: mount ids; the parent may be invisible.
        device: ``major:minor`` of the file system.
        root: the directory inside the file system that is seen at ``point``.
        point: where it is mounted, as the reading process's root directory shows it.
        fstype: the file system's type.
        source: what was mounted, as the file system names it: a device, or any word.
        options: the file system's own options, separated by commas.
        read_only: whether nothing can be written through this mount.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: str
    read_only: bool

    @property
    def location(self) -> Location:
        """The directory that is seen at ``point``."""
        return Location(self.device, self.root)


_CHUNK = 1 << 16
"""Bytes that are asked for at once; the kernel gives a page or so."""
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def _unescape(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
    return os.fsdecode(field)


@lru_cache(maxsize=1024)  # for each sync call the same few lines are read
def parse_mount_line(line: bytes) -> Mount | None:
    """Read a line; None where it has another form (it is then not one of ours)."""
    fields = line.split(b" ")  # a source may be empty
    try:
        dash = fields.index(b"-", 6)
        return Mount(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2].decode(),
            root=_unescape(fields[3]),
            point=_unescape(fields[4]),
            fstype=fields[dash + 1].decode(),
            source=_unescape(fields[dash + 2]),
            options=os.fsdecode(fields[dash + 3]),
            read_only=b"ro" in fields[5].split(b","),
        )
    except (ValueError, IndexError):
        return None


def parse_mountinfo(raw: bytes) -> tuple[Mount, ...]:
    """All mounts in the order of mounting: of two at one point, the later one is seen."""
    return tuple(mount for line in raw.split(b"\n") if (mount := parse_mount_line(line)))


def own_mounts() -> tuple[Mount, ...]:
    """The mounts of this process's namespace, read anew."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


class _Watched:
    """One namespace's mountinfo, read again only when the kernel says that it changed. Not thread-safe.

    The kernel tells what is mounted and unmounted. **It does not tell that a directory was renamed or removed**, which
    changes ``root`` and ``point`` of a mount.

    It shows the namespace and root that ``pid`` has when this is made, and keeps that namespace alive until
    :meth:`close`, with all that is mounted in it.
    """

    def __init__(self, pid: int | str) -> None:
        self._fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._raw: bytes | None = None

    def read(self) -> tuple[bytes, bool]:
        """What it says now, and whether it was read anew. Raises OSError where /proc cannot be read."""
        # Asked before it is read: what changes meanwhile is read, or told the next time.
        if not self._poll.poll(0) and self._raw is not None:
            return self._raw, False
        self._raw = None
        os.lseek(self._fd, 0, os.SEEK_SET)
        lines = [b"\n"]  # so that each line begins after one
        while part := os.read(self._fd, _CHUNK):
            lines.append(part)
        self._raw = b"".join(lines)
        return self._raw, True

    def close(self) -> None:
        os.close(self._fd)


class OwnMounts:
    """The mounts of this process's namespace, read again only when something was mounted or unmounted.

    A directory that was renamed since may have its former name in ``root`` and ``point``. Thread-safe. It keeps one descriptor for as long as the process lives.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: _Watched | None = None
        self._known: tuple[Mount, ...] = ()

    def __call__(self) -> tuple[Mount, ...]:
        """All mounts, as they are now; the same object while nothing changed.

        Raises OSError where /proc cannot be read.
        """
        with self._lock:
            if self._watched is None:
                self._watched = _Watched("self")
            raw, anew = self._watched.read()
            if anew:
                self._known = parse_mountinfo(raw)
            return self._known


class OthersMounts:
    """The mounts of other processes' namespaces, by id. What was read last is kept until something was mounted or
    unmounted. A directory that was renamed since may have its former name in ``root`` and ``point``.

    Only one namespace is kept: the one that was asked about last. An id is one mount's in the whole machine for as long
    as the mount is there, so a mount that the kept namespace has is right whoever asks. **Until** :meth:`let_go` **the
    namespace stays alive, with all that is mounted in it.** Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Watched | None = None
        self._found: dict[int, Mount] = {}

    def find(self, tid: int, ident: int) -> Mount | None:
        """The mount with the id ``ident`` that the thread ``tid`` sees; None where it sees none.

        Only that line is parsed: this is called for each sync call of a container.

        Raises:
            OSError: no such thread, or /proc cannot be read.
        """
        with self._lock:
            if self._kept is not None and (found := self._look(self._kept, ident)):
                return found
            self._let_go()  # the thread may have another namespace or another root
            self._kept = _Watched(tid)
            return self._look(self._kept, ident)

    def _look(self, watched: _Watched, ident: int) -> Mount | None:
        raw, anew = watched.read()
        if anew:
            self._found.clear()
        if ident not in self._found:
            begin = raw.find(b"\n%d " % ident) + 1
            mount = parse_mount_line(raw[begin : raw.find(b"\n", begin)]) if begin else None
            if mount is None:
                return None
            self._found[ident] = mount
        return self._found[ident]

    def let_go(self) -> None:
        """Keep nothing; the next question is answered by what is read then."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._found.clear()


def visible_at(point: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """The topmost of the mounts at exactly ``point``."""
    return next((mount for mount in reversed(mounts) if mount.point == point), None)


mounts_here = OwnMounts()
"""Of this process. What is asked each second, of each image, reads them here: the kernel tells when they change."""


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at exactly ``path``, whose directory nobody renames, in this process's namespace."""
    return visible_at(os.path.realpath(path), mounts_here())


def below(path: str, top: str) -> str | None:
    """The part of ``path`` under ``top``: empty or beginning with ``/``; None where it is not."""
    if top == "/":
        return "" if path == "/" else path
    if path == top:
        return ""
    return path[len(top) :] if path.startswith(top + "/") else None


def join(top: str, rest: str) -> str:
    """The inverse of :func:`below`."""
    return (top if top != "/" else "") + rest or "/"


def locate(path: Path, mounts: tuple[Mount, ...], *, covered: bool = False) -> Location:
    """Where ``path`` (absolute, free of symbolic links) lies.

    Args:
        covered: the directory under the mounts at ``path`` itself rather than the visible one.

    Raises:
        StorageError: no mount contains it.
    """
    text = str(path)
    best: Mount | None = None
    for mount in mounts:
        rest = below(text, mount.point)
        if rest is None or (covered and not rest):
            continue
        if best is None or len(mount.point) >= len(best.point):
            best = mount
    if best is None:
        raise StorageError(
            f"no mount contains {text}", remedy="look at /proc/self/mountinfo on this node"
        )
    return Location(best.device, join(best.root, below(text, best.point) or ""))
