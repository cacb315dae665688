"""Runs one machine: the first process of its mount namespace on the host's side.

Started as ``unshare --mount python -m pannier.lab.launch PLAN``. All mounts that make the
machine's root and disk are made in this namespace, so they end with its processes, in whatever way
these end, and the host never sees them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from pannier.lab.mounts import mount_points
from pannier.lab.process import run, supervise

_REBOOT = 133
"""systemd-nspawn's exit status when the machine asked for a reboot."""

_NEEDED_BY_NSPAWN = ("/proc", "/sys", "/dev")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
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


def main(plan_file: str) -> int:
    """Mount what the plan says and run the machine until it is off."""
    plan = msgspec.json.decode(Path(plan_file).read_bytes(), type=Plan)
    _drop_foreign_mounts(plan)
    overlay = f"lowerdir={':'.join(plan.layers)},upperdir={plan.upper},workdir={plan.work}"
    run(["mount", "-t", "overlay", "overlay", "-o", overlay, plan.root])
    run(["mount", "-t", "ext4", plan.device, plan.disk])
    binds = [_bind(plan, folder) for folder in plan.persistent]
    run(["sync", "--file-system", plan.disk])
    while (status := supervise([*plan.command, *binds, *plan.words])) == _REBOOT:
        pass
    return status


def _drop_foreign_mounts(plan: Plan) -> None:
    """Let go of mounts that are none of ours.

    A new mount namespace holds a copy of every mount of the host. With these, a machine would keep
    other labs' and other programs' disks busy after they were unmounted on the host.
    """
    ours = [Path(path) for path in (*plan.layers, plan.upper, plan.root, plan.disk, *plan.keep)]
    for point in reversed(mount_points()):
        if any(point.is_relative_to(tree) for tree in _NEEDED_BY_NSPAWN):
            continue
        on_the_way = any(path.is_relative_to(point) for path in (*ours, Path(sys.executable)))
        if on_the_way or any(point.is_relative_to(path) for path in plan.keep):
            continue
        run(["umount", "--lazy", str(point)], check=False)


def _bind(plan: Plan, folder: str) -> str:
    """Put ``folder`` of the machine on its disk, with its first content from the root layers."""
    stored = Path(plan.disk) / folder.strip("/").replace("/", "-")
    original = Path(plan.root) / folder.strip("/")
    if not stored.exists():
        draft = stored.with_suffix(".new")
        run(["rm", "-rf", str(draft)])
        if original.is_dir():
            run(["cp", "--archive", str(original), str(draft)])
        else:
            draft.mkdir(mode=0o711)
        draft.rename(stored)
    return f"--bind={stored}:{folder}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
