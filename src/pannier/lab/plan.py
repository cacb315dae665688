"""What :mod:`pannier.lab.machine` tells the process that runs the machine."""

from __future__ import annotations

import msgspec


class BootPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a machine.

    Attributes:
        layers: folders of the root file system, topmost first.
        upper: the machine's own top layer, and the overlay's ``work`` folder beside it.
        root: where its root file system is mounted.
        device: block device of its system disk.
        disk: where that is mounted.
        persistent: folders inside the machine that live on the system disk.
        keep: further folders of the host that the machine is given; mounts elsewhere are dropped.
        command: the systemd-nspawn command that boots it, without those folders.
        words: arguments of its process 1.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    root: str
    device: str
    disk: str
    persistent: tuple[str, ...]
    keep: tuple[str, ...]
    command: tuple[str, ...]
    words: tuple[str, ...]
