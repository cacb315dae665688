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

*Looking on.* A program that makes backups, ships logs or measures disks has files of the directory open for
reading only. It writes nothing, and need not end before others write. A process looks on if all that it has
there was opened for reading only, or is reached through a mount that takes no writes. One whose container was
given the directory is a user, whatever it has open.

*Not seen:* a file that is mapped but no longer open, unless ``maps`` asks for it; a thread whose
namespace differs from its process's; a descriptor sent to a process whose namespace does not show
the directory; a mount namespace without processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
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
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)
_COMMAND_LENGTH = 80
_FILTERED = "\nSeccomp:\t2\n"


class Contact(IntEnum):
    """What a process can do in a directory with what it has now; more is the higher number."""

    NONE = 0
    LOOKS_ON = 1
    """It has something there open for reading only, or is there through a mount that takes no writes."""
    MAY_WRITE = 2
    """It is there, such as by its working directory, or nobody can tell what it has open."""
    WRITES = 3
    """The directory is mounted for it, or it has something there open for writing."""


@dataclass(frozen=True, slots=True)
class User:
    """A process that uses a directory.

    Attributes:
        pid: as this namespace numbers it; 0 for a second mount in our own namespace, which no
            single process holds.
        container: the engine's id (64 hexadecimal digits) if its cgroup's name has one.
        command: its command line, shortened, for messages.
        contact: what it can do there.
        filtered: it has a seccomp filter. No sync call of a process without one can be held.
    """

    pid: int
    container: str | None
    command: str
    contact: Contact
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
        User(0, None, f"mount at {point}", Contact.WRITES, filtered=False) for point in own.uses
    ]
    prefixes = own.prefixes + tuple(str(path.resolve()) for path in paths)
    for space in _namespaces(proc):
        view = _View((), prefixes) if space.own else search.of_namespace(proc, space)
        if not view.uses and not view.prefixes:
            continue
        patterns = _Patterns(view.prefixes, read_only=view.read_only)
        for pid in space.pids:
            if pid in skipped:
                continue
            contact = Contact.WRITES if view.uses else _contact_of(proc, pid, patterns, maps=maps)
            if contact is not Contact.NONE:
                user = _describe(proc, pid, contact=contact)
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
        read_only: those of the prefixes through which nothing can be written.
    """

    uses: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()


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
        found: list[_View] = []
        for root, pids in space.by_root.items():
            raw = _mountinfo(proc, pids)
            if not any(device in raw for device in self.devices):
                continue
            found.append(self.view(parse_mountinfo(raw), root=root))
        return _View(
            uses=tuple(each for view in found for each in view.uses),
            prefixes=tuple(each for view in found for each in view.prefixes),
            read_only=tuple(each for view in found for each in view.read_only),
        )

    def view(self, mounts: tuple[Mount, ...], *, root: str) -> _View:
        """What ``mounts`` show, as paths of their namespace; theirs are relative to ``root``."""
        by_id = {mount.id: mount for mount in mounts}
        uses: list[str] = []
        prefixes: dict[str, bool] = {}
        for mount in mounts:
            for target in self.targets:
                if mount.device != target.device:
                    continue
                path: str | None = None
                if below(mount.root, target.path) is not None:
                    path = join(root, mount.point)
                    if not self._is_ours(_underneath(mount, by_id)):
                        uses.append(path)
                        continue
                elif (rest := below(target.path, mount.root)) is not None:
                    path = join(root, join(mount.point, rest))
                if path is not None:
                    prefixes[path] = mount.read_only and prefixes.get(path, True)
        read_only = tuple(path for path, is_so in prefixes.items() if is_so)
        return _View(tuple(uses), tuple(prefixes), read_only)

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

    def __init__(self, prefixes: Sequence[str], *, read_only: Collection[str]) -> None:
        self.exact = frozenset(prefixes)
        self.inside = _inside(self.exact)
        self.mapped = tuple(os.fsencode(f" {prefix}") for prefix in self.inside)
        writable = self.exact - frozenset(read_only)
        self._writable = (writable, _inside(writable))

    def match(self, link: str) -> bool:
        return link.startswith(self.inside) or link in self.exact

    def contact(self, link: str) -> Contact:
        """What somebody can do who may do there whatever the mount allows."""
        if not self.match(link):
            return Contact.NONE
        exact, inside = self._writable
        return Contact.MAY_WRITE if link.startswith(inside) or link in exact else Contact.LOOKS_ON


def _inside(paths: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{path.rstrip('/')}/" for path in paths)


def _contact_of(proc: Path, pid: int, patterns: _Patterns, *, maps: bool) -> Contact:
    base = f"{proc}/{pid}"
    contact = Contact.NONE
    for name in ("cwd", "root", "exe"):
        try:
            contact = max(contact, patterns.contact(os.readlink(f"{base}/{name}")))
        except OSError:  # a kernel thread, or it has ended
            continue
    try:
        fds = os.listdir(f"{base}/fd")
    except OSError:
        return contact
    for fd in fds:
        if contact is Contact.WRITES:
            return contact
        try:
            if patterns.match(os.readlink(f"{base}/fd/{fd}")):
                contact = max(contact, _opened_for(base, fd))
        except OSError:  # closed meanwhile
            continue
    return max(contact, Contact.MAY_WRITE) if maps and _has_mapped(base, patterns) else contact


def _opened_for(base: str, fd: str) -> Contact:
    """What a descriptor allows (proc_pid_fdinfo(5)). Raises OSError: it was closed meanwhile."""
    flags = _FLAGS.search(_read_text(f"{base}/fdinfo/{fd}"))
    if flags is None:
        return Contact.MAY_WRITE
    writes = int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return Contact.WRITES if writes else Contact.LOOKS_ON


def _has_mapped(base: str, patterns: _Patterns) -> bool:
    try:
        with open(f"{base}/maps", "rb", buffering=0) as file:
            content = file.readall().replace(b"\\012", b"\n")
    except OSError:
        return False
    return any(pattern in content for pattern in patterns.mapped)


def _describe(proc: Path, pid: int, *, contact: Contact) -> User | None:
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
        contact=contact,
        filtered=_FILTERED in status,
    )


def _read_text(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.read(4096).decode("utf-8", "replace")
