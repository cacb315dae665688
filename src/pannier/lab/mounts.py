"""Unmounting what a lab has mounted on the host."""

from __future__ import annotations

from pathlib import Path

from pannier.host.mountinfo import below, own_mounts
from pannier.lab.process import run


def unmount_below(folder: Path) -> None:
    """Unmount whatever is mounted on or below ``folder``, the last mounted first."""
    for mount in reversed(own_mounts()):
        if below(mount.point, str(folder)) is not None:
            run(["umount", "--lazy", mount.point])
