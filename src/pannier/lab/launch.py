"""Runs one machine: the first process of its mount namespace on the host's side.

Started as ``unshare --mount python -m pannier.lab.launch PLAN``. All mounts that make the
machine's root and disk are made in this namespace, so they end with its processes, in whatever way
these end, and the host never sees them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from pannier.host.mountinfo import own_mounts
from pannier.lab.plan import BootPlan
from pannier.lab.process import run, supervise

_REBOOT = 133
"""systemd-nspawn's exit status when the machine asked for a reboot."""

_NEEDED_BY_NSPAWN = ("/proc", "/sys", "/dev")


def main(plan_file: str) -> int:
    """Mount what the plan says and run the machine until it is off."""
    plan = msgspec.json.decode(Path(plan_file).read_bytes(), type=BootPlan)
    _drop_foreign_mounts(plan)
    overlay = f"lowerdir={':'.join(plan.layers)},upperdir={plan.upper},workdir={plan.work}"
    run(["mount", "-t", "overlay", "overlay", "-o", overlay, plan.root])
    run(["mount", "-t", "ext4", plan.device, plan.disk])
    binds = [_bind(plan, folder) for folder in plan.persistent]
    run(["sync", "--file-system", plan.disk])
    while (status := supervise([*plan.command, *binds, *plan.words])) == _REBOOT:
        pass
    return status


def _drop_foreign_mounts(plan: BootPlan) -> None:
    """Let go of mounts that are none of ours.

    A new mount namespace holds a copy of every mount of the host. With these, a machine would keep
    other labs' and other programs' disks busy after they were unmounted on the host.
    """
    ours = [Path(path) for path in (*plan.layers, plan.upper, plan.root, plan.disk, *plan.keep)]
    for point in (Path(mount.point) for mount in reversed(own_mounts())):
        if any(point.is_relative_to(tree) for tree in _NEEDED_BY_NSPAWN):
            continue
        on_the_way = any(path.is_relative_to(point) for path in (*ours, Path(sys.executable)))
        if on_the_way or any(point.is_relative_to(path) for path in plan.keep):
            continue
        run(["umount", "--lazy", str(point)], check=False)


def _bind(plan: BootPlan, folder: str) -> str:
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
