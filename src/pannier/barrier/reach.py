"""Which volumes a sync call concerns: decided from /proc alone, so a hanging file system is no risk.

A descriptor's mount is in ``fdinfo``, and the mount's device and directory in ``mountinfo`` of the
same thread. The first is read anew for each call. The second is kept for as long as the kernel says that it is the
same: ids of mounts and devices are reused, and a privileged container mounts at will. So are this machine's own mounts.
In doubt, a call concerns all the container's held volumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from pannier.barrier.calls import OpenFile
from pannier.barrier.kernel import Notification
from pannier.host.mountinfo import Location, Mount, OthersMounts, OwnMounts, below

O_DSYNC = 0o10000
"""Set for O_SYNC too."""
_MS_SYNC = 4
_FDINFO_BYTES = 1 << 12
"""What is asked of a descriptor is in its first lines; such as an epoll has a line for each file after them."""
_IN_MEMORY = frozenset(
    ("tmpfs", "ramfs", "devtmpfs", "devpts", "mqueue", "proc", "sysfs", "cgroup", "cgroup2")
)
_NO_FILE = ("pipe:", "socket:", "anon_inode:")


class _Lies(Enum):
    """Where a file lies, as far as its mount tells."""

    IN_A_VOLUME = auto()
    ELSEWHERE = auto()
    """On a file system that is neither a volume's nor the host's."""
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Reached:
    """What a call is about.

    Attributes:
        volumes: names of the held volumes whose data the call may sync.
        synchronous: the descriptor is open with O_SYNC or O_DSYNC.
        file: what the descriptor is; None where the call has none, or it cannot be told from another one.
        stacked: it is on a file system that is neither a volume's nor the host's, and may lie in a file of a
            volume.
    """

    volumes: frozenset[str]
    synchronous: bool = False
    file: OpenFile | None = None
    stacked: bool = False


class HostDevices:
    """The file systems that this process sees, outside of Pannier's mount points.

    Such a one was not made from a file in a volume inside a container. Mount points below ``mount_root`` do not
    count: what a container mounts in a volume may reach us by propagation.
    """

    def __init__(self, mount_root: str) -> None:
        self._mount_root = mount_root
        self._mounts = OwnMounts()
        self._known: tuple[tuple[Mount, ...], frozenset[str]] = (), frozenset()

    def __contains__(self, device: str) -> bool:
        mounts = self._mounts()
        seen, devices = self._known
        if mounts is not seen:
            outside = (mount for mount in mounts if below(mount.point, self._mount_root) is None)
            devices = frozenset(mount.device for mount in outside)
            self._known = mounts, devices  # at once: another thread may look
        return device in devices


@dataclass(frozen=True, slots=True)
class Reach:
    """The held volumes of one container.

    Attributes:
        own: where the tree of each volume that it mounts is; None where that could not be seen.
        host: the host's file systems.
        passing: gives the held volumes that are on this machine now, for a container that sees them beside its own.
        mounts: what the container's processes see. It must be let go of soon after the last question.
    """

    own: Mapping[str, Location | None]
    host: HostDevices
    passing: Callable[[], Mapping[str, Location | None]] | None = None
    mounts: OthersMounts = field(default_factory=OthersMounts)

    @property
    def places(self) -> Mapping[str, Location | None]:
        """Its own volumes, and those that it sees now."""
        return self.own if self.passing is None else {**self.passing(), **self.own}

    def of(self, call: Notification) -> Reached:
        """The volumes that ``call`` waits for; none if it may go on at once.

        The caller must then check that the thread still waits: otherwise what was read may belong to
        another thread.
        """
        everything = Reached(frozenset(self.places))
        if call.name == "msync":
            return everything if call.arguments[2] & _MS_SYNC else Reached(frozenset())
        if call.fd is None or not call.tid:
            return everything
        try:
            return self.of_descriptor(call.tid, call.fd)
        except FileNotFoundError:
            return Reached(frozenset())  # no such descriptor: the kernel will say EBADF
        except Exception:  # a call that was taken must be answered
            return everything

    def of_descriptor(self, tid: int, fd: int) -> Reached:
        """The volumes that an open file may belong to.

        Raises:
            FileNotFoundError: no such thread or descriptor.
            OSError, ValueError, KeyError: /proc cannot be read, or has an unexpected form.
        """
        fields = fdinfo(tid, fd)
        synchronous = bool(int(fields[b"flags:"], 8) & O_DSYNC)
        ident = int(fields[b"mnt_id:"])
        mount = self.mounts.find(tid, ident)
        if mount is not None and not self._is_certain(mount):
            self.mounts.let_go()
            mount = self.mounts.find(tid, ident)
        volumes, lies = self._of_mount(tid, fd, mount)
        return Reached(
            volumes,
            synchronous,
            file=None if lies is _Lies.UNKNOWN else open_file(fields),
            stacked=lies is _Lies.ELSEWHERE,
        )

    def _is_certain(self, mount: Mount) -> bool:
        """Whether what is known of a mount is enough: of its directory, which may have been renamed since, nothing
        depends if it is on no volume's file system, or counts for each volume there.
        """
        return all(
            touches(mount, place)
            for place in self.places.values()
            if place and place.device == mount.device
        )

    def _of_mount(self, tid: int, fd: int, mount: Mount | None) -> tuple[frozenset[str], _Lies]:
        places = self.places
        everything = frozenset(places)
        if mount is None:
            # From another mount namespace, or from none, such as a pipe or socket.
            opened = os.readlink(f"/proc/{tid}/fd/{fd}")
            if opened.startswith(_NO_FILE):
                return frozenset(), _Lies.UNKNOWN
            return everything, _Lies.ELSEWHERE
        unseen = frozenset(name for name, place in places.items() if place is None)
        found = {name for name, place in places.items() if place and touches(mount, place)}
        if found or unseen:
            return unseen | found, _Lies.IN_A_VOLUME if found else _Lies.UNKNOWN
        if mount.fstype in _IN_MEMORY or mount.device in self.host:
            return frozenset(), _Lies.UNKNOWN
        return (
            everything,
            _Lies.ELSEWHERE,
        )  # such as an overlay made inside, with its upper directory in a volume


def touches(mount: Mount, place: Location) -> bool:
    """Whether a file seen through ``mount`` can be in ``place``: one contains the other."""
    if mount.device != place.device:
        return False
    return below(mount.root, place.path) is not None or below(place.path, mount.root) is not None


def fdinfo(tid: int | str, fd: int) -> dict[bytes, bytes]:
    """What the kernel says about a descriptor, without asking the file's file system.

    Raises:
        FileNotFoundError: no such thread or descriptor. OSError: /proc cannot be read.
    """
    info = os.open(f"/proc/{tid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(info, _FDINFO_BYTES).splitlines()
    finally:
        os.close(info)
    return dict(words for line in lines if len(words := line.split()) == 2)


def open_file(fields: Mapping[bytes, bytes]) -> OpenFile | None:
    """The file that ``fields``, of :func:`fdinfo`, are about; None before Linux 5.14, which has no ``ino``."""
    if b"ino:" not in fields:
        return None
    return OpenFile(int(fields[b"mnt_id:"]), int(fields[b"ino:"]))
