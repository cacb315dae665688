"""The files that make a machine different from its root layers and from the other machines."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from pannier.lab.mirror import offered_to
from pannier.lab.paths import Names
from pannier.lab.process import run
from pannier.lab.state import LabState, OrderedNode

EARLY_UNIT = "pannier-lab-early.service"

_EARLY = """\
[Unit]
Description=What a machine in namespaces lacks
DefaultDependencies=no
Before=sysinit.target containerd.service docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
# systemd-nspawn mounts the control groups read-only; runc has to write there.
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup /sys/fs/cgroup/*; do \
  if mountpoint -q $c; then mount -o remount,bind,rw $c; fi; done'
# There is no udev that would make these.
ExecStart=/bin/sh -c 'n=0; while [ $n -lt 256 ]; do \
  [ -e /dev/loop$n ] || mknod -m 0660 /dev/loop$n b 7 $n; n=$((n+1)); done'

[Install]
WantedBy=sysinit.target
"""

_DOCKER_DAEMON = {
    "storage-driver": "overlay2",
    "log-driver": "json-file",
    "live-restore": False,
}

_DOCKER_DROP_IN = """\
[Service]
Environment="DOCKER_OPTS=-H unix:///run/lab/docker.sock"
"""


def create_ssh_key(names: Names) -> None:
    """The key that opens all machines of the lab."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", names.lab, "-f", str(names.ssh_key)])


def write(upper: Path, *, node: OrderedNode, state: LabState, names: Names) -> None:
    """Fill a machine's own top layer."""
    _put(upper / "etc/hostname", node.name)
    _put(upper / "etc/hosts", _hosts(state))
    _put(upper / "etc/machine-id", uuid.uuid4().hex)
    _put(upper / "etc/resolv.conf", "")
    _put(upper / f"etc/systemd/system/{EARLY_UNIT}", _EARLY)
    wants = upper / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / EARLY_UNIT).symlink_to(f"../{EARLY_UNIT}")
    # A journal that survives a crash tells what happened before it.
    (upper / "var/log/journal").mkdir(parents=True)
    key = names.ssh_key.with_suffix(".pub").read_text()
    _put(upper / "root/.ssh/authorized_keys", key, mode=0o600)
    for folder in ("root", "root/.ssh"):
        (upper / folder).chmod(0o700)
    _ssh_host_key(upper, node, names)
    if state.bare:
        source = f"deb {offered_to(state.subnet)} {node.release} main"
        _put(upper / "etc/apt/sources.list", source)
        # A machine that loses its power while it installs is made anew.
        _put(upper / "etc/dpkg/dpkg.cfg.d/lab", "force-unsafe-io")
    else:
        _put(upper / "etc/docker/daemon.json", json.dumps(_DOCKER_DAEMON, indent=2))
        _put(upper / "etc/systemd/system/docker.service.d/lab.conf", _DOCKER_DROP_IN)


def _hosts(state: LabState) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    return "\n".join([*lines, *(f"{node.address} {node.name}" for node in state.nodes)])


def _ssh_host_key(upper: Path, node: OrderedNode, names: Names) -> None:
    key = upper / "etc/ssh/ssh_host_ed25519_key"
    key.parent.mkdir(parents=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", node.name, "-f", str(key)])
    kind, public = key.with_suffix(".pub").read_text().split()[:2]
    with names.known_hosts.open("a") as known:
        known.write(f"{node.address},{node.name} {kind} {public}\n")


def _put(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if not text or text.endswith("\n") else text + "\n")
    path.chmod(mode)
