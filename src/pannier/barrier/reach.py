"""Which volumes a sync call concerns: decided from /proc alone, so a hanging file system is no risk.

A descriptor's mount is in ``fdinfo``, and the mount's device and directory in ``mountinfo`` of the
same thread. Both are read anew for each call: ids of mounts and devices are reused, and a privileged
container mounts at will. What such a line means is remembered, and so are this machine's own mounts for as long as
the kernel says that they are the same. In doubt, a call concerns all the container's held volumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from pannier.barrier.calls import OpenFile
from pannier.barrier.kernel import Notification
from pannier.host.mountinfo import Location, Mount, below, find_mount, own_mounts

O_DSYNC = 0o10000
"""Set for O_SYNC too."""
_MS_SYNC = 4
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


@dataclass(frozen=True, slots=True)
class Reach:
    """The held volumes of one container.

    Attributes:
        own: where the tree of each volume that it mounts is; None where that could not be seen.
        mount_root: the directory with Pannier's mount points.
        host_mounts: gives this machine's own mounts.
        passing: gives the held volumes that are on this machine now, for a container that sees them beside its own.
    """

    own: Mapping[str, Location | None]
    mount_root: str
    host_mounts: Callable[[], tuple[Mount, ...]] = own_mounts
    passing: Callable[[], Mapping[str, Location | None]] | None = None

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
        except (OSError, ValueError):
            return everything

    def of_descriptor(self, tid: int, fd: int) -> Reached:
        """The volumes that an open file may belong to.

        Raises:
            FileNotFoundError: no such thread or descriptor.
            OSError, ValueError: /proc cannot be read, or has an unexpected form.
        """
        fields = fdinfo(tid, fd)
        synchronous = bool(int(fields[b"flags:"], 8) & O_DSYNC)
        mount = find_mount(tid, int(fields[b"mnt_id:"]))
        volumes, lies = self._of_mount(tid, fd, mount)
        return Reached(
            volumes,
            synchronous,
            file=None if lies is _Lies.UNKNOWN else open_file(fields),
            stacked=lies is _Lies.ELSEWHERE,
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
        if mount.fstype in _IN_MEMORY or self._is_the_hosts(mount.device):
            return frozenset(), _Lies.UNKNOWN
        return (
            everything,
            _Lies.ELSEWHERE,
        )  # such as an overlay made inside, with its upper directory in a volume

    def _is_the_hosts(self, device: str) -> bool:
        """Whether this process sees the device too, outside of Pannier's mount points.

        If so, it was not made from a file in a volume inside the container. Mount points below
        ``mount_root`` do not count: what a container mounts in a volume may reach us by propagation.
        """
        return any(
            mount.device == device and not below(mount.point, self.mount_root)
            for mount in self.host_mounts()
        )


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
    with open(f"/proc/{tid}/fdinfo/{fd}", "rb", buffering=0) as file:
        lines = file.readall().splitlines()
    return dict(words for line in lines if len(words := line.split()) == 2)


def open_file(fields: Mapping[bytes, bytes]) -> OpenFile | None:
    """The file that ``fields``, of :func:`fdinfo`, are about; None before Linux 5.14, which has no ``ino``."""
    if b"ino:" not in fields:
        return None
    return OpenFile(int(fields[b"mnt_id:"]), int(fields[b"ino:"]))
