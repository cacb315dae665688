"""Which volumes a sync call concerns: decided from /proc alone, so a hanging file system is no risk.

A descriptor's mount is in ``fdinfo``, and the mount's device and directory in ``mountinfo`` of the
same thread. Both are read anew for each call: ids of mounts and devices are reused, and a privileged
container mounts at will. In doubt, a call concerns all the container's held volumes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pannier.barrier.kernel import Notification
from pannier.host.mountinfo import Location, Mount, below, find_mount, own_mounts

O_DSYNC = 0o10000
"""Set for O_SYNC too."""
_MS_SYNC = 4
_IN_MEMORY = frozenset(
    ("tmpfs", "ramfs", "devtmpfs", "devpts", "mqueue", "proc", "sysfs", "cgroup", "cgroup2")
)
_NO_FILE = ("pipe:", "socket:", "anon_inode:")


@dataclass(frozen=True, slots=True)
class Reached:
    """What a call is about.

    Attributes:
        volumes: names of the held volumes whose data the call may sync.
        synchronous: the descriptor is open with O_SYNC or O_DSYNC.
    """

    volumes: frozenset[str]
    synchronous: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """The held volumes of one container.

    Attributes:
        places: where each volume's tree is; None where that could not be seen.
        mount_root: the directory with Pannier's mount points.
    """

    places: Mapping[str, Location | None]
    mount_root: str

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
        fields = _fdinfo(tid, fd)
        synchronous = bool(int(fields[b"flags:"], 8) & O_DSYNC)
        mount = find_mount(tid, int(fields[b"mnt_id:"]))
        return Reached(self._of_mount(tid, fd, mount), synchronous)

    def _of_mount(self, tid: int, fd: int, mount: Mount | None) -> frozenset[str]:
        everything = frozenset(self.places)
        if mount is None:
            # From another mount namespace, or from none, such as a pipe or socket.
            opened = os.readlink(f"/proc/{tid}/fd/{fd}")
            return frozenset() if opened.startswith(_NO_FILE) else everything
        found = {
            name for name, place in self.places.items() if place is None or touches(mount, place)
        }
        if found:
            return frozenset(found)
        if mount.fstype in _IN_MEMORY or self._is_the_hosts(mount.device):
            return frozenset()
        return everything  # such as an overlay made inside, with its upper directory in a volume

    def _is_the_hosts(self, device: str) -> bool:
        """Whether this process sees the device too, outside of Pannier's mount points.

        If so, it was not made from a file in a volume inside the container. Mount points below
        ``mount_root`` do not count: what a container mounts in a volume may reach us by propagation.
        """
        return any(
            mount.device == device and not below(mount.point, self.mount_root)
            for mount in own_mounts()
        )


def touches(mount: Mount, place: Location) -> bool:
    """Whether a file seen through ``mount`` can be in ``place``: one contains the other."""
    if mount.device != place.device:
        return False
    return below(mount.root, place.path) is not None or below(place.path, mount.root) is not None


def _fdinfo(tid: int, fd: int) -> dict[bytes, bytes]:
    with open(f"/proc/{tid}/fdinfo/{fd}", "rb", buffering=0) as file:
        lines = file.readall().splitlines()
    return dict(words for line in lines if len(words := line.split()) == 2)
