"""Who uses a volume on this node: the truth, from /proc.

Docker's mount ids and Unmounts are hints that get lost. What the kernel knows does not. A process
is a *user* of a directory if

* its mount namespace is not ours and has a mount of that directory, or of one below it (a
  container's volume, also with a subpath); or
* its working directory, root, program or an open file is in that directory, for processes in our
  namespace and in those that have a copy of our mounts.

*Copies.* A mount of the directory in another namespace need not be a use: a service with a private
mount namespace, and a container with ``-v /:/host``, receive a copy of each mount that we make and
may never look at it. Such a copy sits on the very directory on which our own mount sits (the same
device and path inside the file system: a child of our mount root), wherever that directory appears
there. A container runtime mounts onto a directory of the container's own root instead. So: a mount
that covers a child of our mount root is a copy and no use by itself, and open files below it count.

A second mount of the directory in our own namespace (``docker cp`` makes one while it copies) counts
as a use by process 0.

*Not seen:* a file that is mapped but no longer open, unless ``maps`` asks for it; a thread whose
namespace differs from its process's; a descriptor sent to a process whose namespace does not show
the directory; a mount namespace without processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pannier.agent.mounts import DEFAULT_ROOT
from pannier.host.mountinfo import (
    Location,
    Mount,
    below,
    join,
    locate,
    own_mounts,
    parse_mountinfo,
)

_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_COMMAND_LENGTH = 80
_FILTERED = "\nSeccomp:\t2\n"


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses a directory.

    Attributes:
        pid: as this namespace numbers it; 0 for a second mount in our own namespace, which no
            single process holds.
        container: the engine's id (64 hexadecimal digits) if its cgroup's name has one.
        command: its command line, shortened, for messages.
        may_write: the directory is mounted for it, or it has something in it open for writing.
        filtered: it has a seccomp filter. No sync call of a process without one can be held.
    """

    pid: int
    container: str | None
    command: str
    may_write: bool
    filtered: bool


def users_of(
    paths: Sequence[Path],
    *,
    mount_root: Path = DEFAULT_ROOT,
    ignore: Collection[int] | None = None,
    maps: bool = False,
    proc: Path = Path("/proc"),
) -> list[User]:
    """Processes that use any of the directories ``paths``, by rising pid.

    Reads each mount namespace once, and only /proc, so that a hanging file system does not block it.
    Takes about 10 ms for 300 processes, which is too long for the event loop.

    Args:
        paths: where the data is; it need not be mounted anywhere, nor even be there.
        mount_root: the directory that holds our mountpoints (:attr:`MountTable.root`).
        ignore: pids that do not count; this process alone by default.
        maps: look for mapped files too; costs several times as much.
        proc: where the process file system of our own namespaces is mounted.

    Raises:
        StorageError: a path lies under no mount.
    """
    skipped = {os.getpid()} if ignore is None else set(ignore)
    search = _Search.prepare([path.resolve() for path in paths], mount_root.resolve())
    own = search.view(own_mounts(), root="/")
    found = [
        User(0, None, f"mount at {point}", may_write=True, filtered=False) for point in own.uses
    ]
    prefixes = own.prefixes + tuple(str(path.resolve()) for path in paths)
    for space in _namespaces(proc):
        view = _View((), prefixes) if space.own else search.of_namespace(proc, space)
        if not view.uses and not view.prefixes:
            continue
        patterns = _Patterns(view.prefixes)
        for pid in space.pids:
            if pid in skipped:
                continue
            if view.uses or _has_open(proc, pid, patterns, maps=maps):
                may_write = bool(view.uses) or _has_open_for_writing(proc, pid, patterns)
                user = _describe(proc, pid, may_write=may_write)
                if user is not None:
                    found.append(user)
    return sorted(found, key=lambda user: user.pid)


# --- namespaces ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Namespace:
    """Processes of one mount namespace, by their root directory: mountinfo is relative to it."""

    own: bool
    by_root: dict[str, list[int]] = field(default_factory=dict)

    @property
    def pids(self) -> Iterator[int]:
        for pids in self.by_root.values():
            yield from pids


def _namespaces(proc: Path) -> list[_Namespace]:
    own = os.readlink(f"{proc}/self/ns/mnt")
    spaces: dict[str, _Namespace] = {}
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            key = os.readlink(f"{proc}/{name}/ns/mnt")
            root = "/" if key == own else os.readlink(f"{proc}/{name}/root")
        except OSError:  # it has ended
            continue
        space = spaces.get(key)
        if space is None:
            space = spaces[key] = _Namespace(own=key == own)
        space.by_root.setdefault(root, []).append(int(name))
    return list(spaces.values())


@dataclass(frozen=True, slots=True)
class _View:
    """What a namespace shows of the directories.

    Attributes:
        uses: mount points that are a use in themselves.
        prefixes: paths under which the directories can be reached otherwise.
    """

    uses: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Search:
    """The directories looked for, and the places on which our own mounts sit."""

    targets: tuple[Location, ...]
    covered: frozenset[Location]
    mount_root: Location
    devices: tuple[bytes, ...]

    @classmethod
    def prepare(cls, paths: Sequence[Path], mount_root: Path) -> _Search:
        mounts = own_mounts()
        targets = tuple(locate(path, mounts) for path in paths)
        return cls(
            targets=targets,
            # Where a driver has mounted the data itself, that mount is not a use either.
            covered=frozenset(locate(path, mounts, covered=True) for path in paths),
            mount_root=locate(mount_root, mounts),
            devices=tuple({b" %s " % target.device.encode() for target in targets}),
        )

    def of_namespace(self, proc: Path, space: _Namespace) -> _View:
        uses: list[str] = []
        prefixes: list[str] = []
        for root, pids in space.by_root.items():
            raw = _mountinfo(proc, pids)
            if not any(device in raw for device in self.devices):
                continue
            view = self.view(parse_mountinfo(raw), root=root)
            uses += view.uses
            prefixes += view.prefixes
        return _View(tuple(uses), tuple(prefixes))

    def view(self, mounts: tuple[Mount, ...], *, root: str) -> _View:
        """What ``mounts`` show, as paths of their namespace; theirs are relative to ``root``."""
        by_id = {mount.id: mount for mount in mounts}
        uses: list[str] = []
        prefixes: list[str] = []
        for mount in mounts:
            for target in self.targets:
                if mount.device != target.device:
                    continue
                if below(mount.root, target.path) is not None:
                    is_copy = self._is_ours(_underneath(mount, by_id))
                    (prefixes if is_copy else uses).append(join(root, mount.point))
                elif (rest := below(target.path, mount.root)) is not None:
                    prefixes.append(join(root, join(mount.point, rest)))
        return _View(tuple(uses), tuple(prefixes))

    def _is_ours(self, place: Location | None) -> bool:
        if place is None:
            return False
        if place in self.covered:
            return True
        rest = place.device == self.mount_root.device and below(place.path, self.mount_root.path)
        return bool(rest)


def _underneath(mount: Mount, by_id: dict[int, Mount]) -> Location | None:
    """The directory that ``mount`` covers; None where its parent cannot be seen."""
    parent = by_id.get(mount.parent)
    while parent is not None and parent.point == mount.point and parent.parent != parent.id:
        parent = by_id.get(parent.parent)  # several mounts on top of each other
    if parent is None:
        return None
    rest = below(mount.point, parent.point)
    return None if rest is None else Location(parent.device, join(parent.root, rest))


def _mountinfo(proc: Path, pids: Sequence[int]) -> bytes:
    """Read through the first of ``pids`` that is still there."""
    for pid in pids:
        try:
            with open(f"{proc}/{pid}/mountinfo", "rb", buffering=0) as file:
                content = file.readall()
        except OSError:
            continue
        if content:  # empty for one that is just ending
            return content
    return b""


# --- processes -----------------------------------------------------------------------------------


class _Patterns:
    """Path prefixes in the form that the comparison of many links needs."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.exact = frozenset(prefixes)
        self.inside = tuple(f"{prefix.rstrip('/')}/" for prefix in self.exact)
        self.mapped = tuple(os.fsencode(f" {prefix}") for prefix in self.inside)

    def match(self, link: str) -> bool:
        return link.startswith(self.inside) or link in self.exact


def _has_open(proc: Path, pid: int, patterns: _Patterns, *, maps: bool) -> bool:
    base = f"{proc}/{pid}"
    for name in ("cwd", "root", "exe"):
        try:
            if patterns.match(os.readlink(f"{base}/{name}")):
                return True
        except OSError:  # a kernel thread, or it has ended
            continue
    try:
        fds = os.listdir(f"{base}/fd")
    except OSError:
        return False
    for fd in fds:
        try:
            if patterns.match(os.readlink(f"{base}/fd/{fd}")):
                return True
        except OSError:  # closed meanwhile
            continue
    return maps and _has_mapped(base, patterns)


def _has_open_for_writing(proc: Path, pid: int, patterns: _Patterns) -> bool:
    base = f"{proc}/{pid}"
    try:
        for fd in os.listdir(f"{base}/fd"):
            if patterns.match(os.readlink(f"{base}/fd/{fd}")):
                flags = re.search(r"flags:\s*(\d+)", _read_text(f"{base}/fdinfo/{fd}"))
                if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    return True
    except OSError:  # closed meanwhile, or it has ended: the next look tells
        return False
    return False


def _has_mapped(base: str, patterns: _Patterns) -> bool:
    try:
        with open(f"{base}/maps", "rb", buffering=0) as file:
            content = file.readall().replace(b"\\012", b"\n")
    except OSError:
        return False
    return any(pattern in content for pattern in patterns.mapped)


def _describe(proc: Path, pid: int, *, may_write: bool) -> User | None:
    """None where the process has ended: it uses nothing any more."""
    try:
        groups = _read_text(f"{proc}/{pid}/cgroup")
        command = _read_text(f"{proc}/{pid}/cmdline").replace("\0", " ").strip()
        command = command or _read_text(f"{proc}/{pid}/comm").strip()
        status = _read_text(f"{proc}/{pid}/status")
    except OSError:
        return None
    # Of nested containers the outer one: that is the one our engine knows.
    container = _CONTAINER.search(groups)
    printable = "".join(c if c.isprintable() else "?" for c in command[:_COMMAND_LENGTH])
    return User(
        pid,
        container[0] if container else None,
        printable,
        may_write=may_write,
        filtered=_FILTERED in status,
    )


def _read_text(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.read(4096).decode("utf-8", "replace")
