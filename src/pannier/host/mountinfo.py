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
    """The mounts of this process's namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


class OwnMounts:
    """The mounts of this process's namespace, read again only when the kernel says that they changed.

    Thread-safe. It keeps one descriptor for as long as the process lives.
    """

    def __init__(self) -> None:
        self._file = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._lock = threading.Lock()
        self._known: tuple[Mount, ...] | None = None

    def __call__(self) -> tuple[Mount, ...]:
        """All mounts, as they are now. Raises OSError where /proc cannot be read."""
        with self._lock:
            # Asked before they are read: what changes meanwhile is read, or told the next time.
            if self._poll.poll(0) or self._known is None:
                self._known = None
                self._file.seek(0)
                self._known = parse_mountinfo(self._file.readall())
            return self._known


def find_mount(tid: int, ident: int) -> Mount | None:
    """The mount with the id ``ident`` in the namespace of the thread ``tid``.

    Only that line is parsed: this is called for each sync call of a container.

    Raises:
        OSError: no such thread, or /proc cannot be read.
    """
    with open(f"/proc/{tid}/mountinfo", "rb", buffering=0) as file:
        raw = b"\n" + file.readall()
    begin = raw.find(b"\n%d " % ident) + 1
    return parse_mount_line(raw[begin : raw.find(b"\n", begin)]) if begin else None


def visible_at(point: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """The topmost of the mounts at exactly ``point``."""
    return next((mount for mount in reversed(mounts) if mount.point == point), None)


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at exactly ``path`` in this process's namespace."""
    return visible_at(os.path.realpath(path), own_mounts())


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
