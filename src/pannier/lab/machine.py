"""One machine: systemd as process 1 in namespaces of its own, on disks of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from pannier.lab import seed
from pannier.lab.cgroup import HostGroup, is_version_2
from pannier.lab.disk import ROLES, Disk, Role, release_loop_devices
from pannier.lab.engine import MachineEngine
from pannier.lab.errors import LabError
from pannier.lab.mounts import unmount_below
from pannier.lab.network import Network
from pannier.lab.paths import Names
from pannier.lab.plan import BootPlan
from pannier.lab.process import run, start_detached, wait_for
from pannier.lab.state import LabState, NodeState, OrderedNode

POOL_DEVICE = "/dev/pannier-pool"

_PERSISTENT = (
    "/etc/pannier",
    "/root",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/pannier",
)
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/bash",
    "USER": "root",
}
_BOOT_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of a lab; it may be off."""

    node: OrderedNode
    state: LabState

    @property
    def names(self) -> Names:
        return Names(self.state.name)

    @property
    def run_dir(self) -> Path:
        return self.names.run / self.node.name

    @property
    def data_dir(self) -> Path:
        return self.names.data / self.node.name

    @property
    def shared_dir(self) -> Path:
        """Folder of the host that the machine sees as /run/lab."""
        return self.run_dir / "lab"

    @property
    def group(self) -> HostGroup:
        return HostGroup(f"{self.names.group}/{self.node.name}")

    @property
    def engine(self) -> MachineEngine:
        return MachineEngine(self.shared_dir / "docker.sock")

    @property
    def network(self) -> Network:
        return Network(self.names, self.state.subnet)

    @property
    def _cut_mark(self) -> Path:
        return self.run_dir / "cut"

    def disk(self, role: Role) -> Disk:
        return Disk(
            role=role,
            kind=self.state.disks,
            data=self.data_dir,
            run=self.run_dir / f"disk-{role}",
            group=HostGroup(f"{self.names.group}/{self.node.name}-{role}"),
        )

    # -- life ----------------------------------------------------------------------------------

    def create(self, *, disk_size: str) -> None:
        """Make the machine's disks and its own files."""
        for role in ROLES:
            self.disk(role).create(size=disk_size)
        (self.data_dir / "work").mkdir()
        seed.write(self.data_dir / "upper", node=self.node, state=self.state, names=self.names)

    def boot(self, *, wait: bool = True) -> None:
        """Switch the machine on and wait until it can be worked with.

        Args:
            wait: until its Docker engine answers, which without the Swarm's majority takes half a
                minute; otherwise only until its process 1 runs.

        Raises:
            LabError: it runs already, or did not come up in time.
        """
        if self.leader():
            raise LabError(f"{self.node.name} runs already")
        self.power_off()
        self.shared_dir.mkdir(parents=True, exist_ok=True)
        self.network.plug_in(self.node.name, self.node.index, up=not self._cut_mark.exists())
        devices = {role: self.disk(role).attach() for role in ROLES}
        plan_file = self.run_dir / "plan.json"
        plan_file.write_bytes(msgspec.json.encode(self._plan(devices)))
        launch = ["unshare", "--mount", "--propagation=private"]
        launch += [sys.executable, "-m", "pannier.lab.launch", str(plan_file)]
        self.group.create()
        start_detached(
            launch, join=self.group.joining, log=self.console, env=self._nspawn_environment()
        )
        self._wait_until_up(engine=wait)

    @property
    def console(self) -> Path:
        """The file that takes what the machine prints."""
        return self.run_dir / "console.log"

    def power_off(self, *, forget: bool = False) -> None:
        """End the machine at once, in whatever state it is, and free what it used on the host.

        To the other machines it must look like a power cut: the cable goes first, so that no
        connection is closed in good order, and nothing in the machine may run between the loss of
        the disks and its own end, or programs would see and report I/O errors.

        Args:
            forget: cuttable disks lose what was not flushed.
        """
        if self.group.processes():
            self.group.freeze(wait=False)
            self.network.set_link(self.node.index, up=False)
            if forget:
                for role in ROLES:
                    self.disk(role).lose_power()
            self.group.kill()
        self.network.unplug(self.node.name, self.node.index)
        for role in ROLES:
            self.disk(role).detach()
        self.group.remove()
        for role in ROLES:
            self.disk(role).group.remove(freeze=False)
        shutil.rmtree(self.shared_dir, ignore_errors=True)
        forget_nspawn(self.names.nspawn(self.node.name))

    # -- faults --------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull the cable."""
        self._cut_mark.touch()
        self.network.set_link(self.node.index, up=False)

    def mend(self) -> None:
        """Plug the cable in again; a machine that is off gets it when it boots."""
        self._cut_mark.unlink(missing_ok=True)
        if self.leader():
            self.network.set_link(self.node.index, up=True)

    def pause(self) -> None:
        """Let all processes of the machine stand still, its network address still there."""
        self._need_running()
        self.group.freeze()

    def resume(self) -> None:
        """Let them go on as if nothing had happened."""
        self.group.thaw()

    # -- looking and working inside --------------------------------------------------------------

    def look(self) -> NodeState:
        """What state the machine is in now."""
        if not self.leader():
            return "crashed"
        if self.group.frozen():
            return "paused"
        return "cut" if self._cut_mark.exists() else "running"

    def leader(self) -> int | None:
        """The host's id of the machine's process 1, or None if it is off."""
        for pid in self.group.processes():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            # Process 1 of a container has one more id.
            if len(ids) == 3 and ids[2] == "1" and "\nState:\tZ" not in status:
                return pid
        return None

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` inside.

        Raises:
            LabError: the machine is off or stands still.
        """
        leader = self._need_running()
        enter = ["nsenter", "--target", str(leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        # What runs inside must stand still and end with the machine: it joins its groups.
        return self.group.joining([*enter, "--", *command])

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside and return its output.

        Raises:
            CommandFailed: its exit status is not 0 and ``check`` is set.
            CommandTimedOut: it took longer than ``timeout`` seconds.
            LabError: the machine is off or stands still.
        """
        done = run(
            self.entering(command),
            check=check,
            input=input,
            stdin=stdin,
            stdout=stdout,
            timeout=timeout,
            env=self.environment(),
            what=f"{self.node.name}: {shlex.join(command)[:300]}",
        )
        done.args = list(command)
        return done

    def environment(self) -> dict[str, str]:
        """The environment of commands that run inside."""
        return {**_ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}

    def _need_running(self) -> int:
        leader = self.leader()
        name, lab = self.node.name, self.names.lab
        if not leader:
            raise LabError(
                f"{name} of lab {lab} is off", remedy=f"`pannier lab boot {name} --name {lab}`"
            )
        if self.group.frozen():
            raise LabError(
                f"{name} of lab {lab} is paused", remedy=f"`pannier lab resume {name} --name {lab}`"
            )
        return leader

    def _wait_until_up(self, *, engine: bool) -> None:
        see = f"see {self.console}, and `journalctl -b` in the machine"

        def alive() -> bool:
            if not self.group.processes():
                raise LabError(f"{self.node.name} ended while it booted", remedy=see)
            return self.leader() is not None

        wait_for(lambda: alive() or None, what=self.node.name, timeout=30, remedy=see)
        if not engine:
            return
        ready = self._sshd_answers if self.state.bare else self.engine.answers
        wait_for(
            lambda: alive() and ready(),
            what=f"{'sshd' if self.state.bare else 'the Docker engine'} of {self.node.name}",
            timeout=_BOOT_TIMEOUT_S,
            remedy=see,
        )

    def _sshd_answers(self) -> bool:
        if self._cut_mark.exists():
            return True
        try:
            with socket.create_connection((self.node.address, 22), timeout=1) as connection:
                return connection.recv(3) == b"SSH"
        except OSError:
            return False

    def _plan(self, devices: dict[Role, str]) -> BootPlan:
        root, disk = self.run_dir / "root", self.run_dir / "system"
        for folder in (root, disk):
            folder.mkdir(exist_ok=True)
        netns = self.names.netns(self.node.name)
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={root}"]
        command += [
            f"--machine={self.names.nspawn(self.node.name)}",
            f"--hostname={self.node.name}",
        ]
        command += ["--register=no", "--keep-unit", "--capability=all", "--console=pipe"]
        command += ["--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        command += [
            "--system-call-filter=@keyring bpf pidfd_getfd",
            f"--network-namespace-path={netns}",
        ]
        command += [f"--bind={devices['pool']}:{POOL_DEVICE}", f"--bind={self.shared_dir}:/run/lab"]
        for device in ("/dev/fuse", "/dev/loop-control", "/dev/btrfs-control"):
            command += [f"--bind={device}"] if Path(device).exists() else []
        # From version 256 on systemd starts on version 1 control groups only if told to.
        words = [] if self._unified else ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]
        return BootPlan(
            layers=self.node.layers,
            upper=str(self.data_dir / "upper"),
            work=str(self.data_dir / "work"),
            root=str(root),
            device=devices["system"],
            disk=str(disk),
            persistent=_PERSISTENT,
            keep=(str(self.shared_dir), str(netns)),
            command=tuple(command),
            words=tuple(words),
        )

    @property
    def _unified(self) -> bool:
        """Whether the machine has the unified tree of control groups alone."""
        return self.state.cgroups == "v2" or is_version_2()

    def _nspawn_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
            "SYSTEMD_NSPAWN_LOCK": "0",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": str(int(self._unified)),
        }


def forget_nspawn(pattern: str) -> None:
    """Remove the folders that systemd-nspawn keeps for a machine and leaves when it is killed."""
    for folder in Path("/run/systemd/nspawn").glob(f"*/{pattern}"):
        folder.rmdir()


def remove_files(names: Names) -> None:
    """Remove all that a lab has on the host's file systems; nothing of it may be in use."""
    release_loop_devices(names.data)
    release_loop_devices(names.run)
    unmount_below(names.run)
    forget_nspawn(names.nspawn("*"))
    for folder in (names.data, names.run):
        # An overlay's work folder has no permissions, which does not stop root.
        run(["rm", "-rf", "--one-file-system", str(folder)])
        try:
            folder.parent.rmdir()
        except OSError:
            continue
