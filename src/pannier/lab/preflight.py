"""What the lab needs of this host, checked before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pannier.lab.cgroup import hierarchies
from pannier.lab.errors import LabError
from pannier.lab.state import DiskKind

_PACKAGE_OF = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
}
_FOR_CUTTABLE = {"nbdkit": "nbdkit", "nbdfuse": "libnbd-bin"}
_FILE_SYSTEMS = ("btrfs", "ext4", "overlay")


def check_root() -> None:
    """Raise unless we may make namespaces, mounts and network interfaces."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root", remedy="run it as root, for example with sudo")


def check_host(disks: DiskKind) -> None:
    """Raise with the way to get it if something that the lab needs is missing."""
    check_root()
    wanted = _PACKAGE_OF | (_FOR_CUTTABLE if disks == "cuttable" else {})
    if missing := sorted(package for tool, package in wanted.items() if not shutil.which(tool)):
        raise LabError(
            f"programs are missing on this host: {', '.join(missing)}",
            remedy=f"apt-get install {' '.join(missing)}",
        )
    known = Path("/proc/filesystems").read_text().split()
    if absent := [name for name in _FILE_SYSTEMS if name not in known and not _module(name)]:
        raise LabError(f"this kernel has no {', '.join(absent)} file system")
    if not Path("/dev/loop-control").exists():
        raise LabError("this host has no loop devices", remedy="modprobe loop")
    if disks == "cuttable" and not Path("/dev/fuse").exists():
        raise LabError("this host has no /dev/fuse", remedy="modprobe fuse")
    if not hierarchies():
        raise LabError("no control groups are mounted on this host")


def _module(name: str) -> bool:
    folder = Path("/lib/modules") / os.uname().release
    return any(folder.rglob(f"{name}.ko*")) if folder.is_dir() else False
