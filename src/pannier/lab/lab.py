"""A lab: real machines on this machine, for trying things out and for tests that cut their power."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pannier.cut import tracefs
from pannier.lab import cluster, dockerimage, mirror, network, preflight, rootfs, seed, state
from pannier.lab.cgroup import groups_below
from pannier.lab.disk import DiskFault, Role, release_loop_devices, serves_disk
from pannier.lab.errors import LabError
from pannier.lab.machine import Machine, remove_files
from pannier.lab.paths import DEFAULT_NAME, Names, run_root
from pannier.lab.process import become
from pannier.lab.state import (
    CgroupKind,
    DiskKind,
    DriverKind,
    LabState,
    NodeState,
    OrderedNode,
    Release,
    StoreKind,
)

Report = Callable[[str], None]
Cluster = Literal["full", "swarm", "none"]
MAX_NODES = 20


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class LabNode:
    """A machine as `pannier lab ls` shows it.

    Attributes:
        ssh_key: path of the private key that opens it for root.
        docker_host: value for a Docker client's ``DOCKER_HOST``; None without an engine.
    """

    name: str
    address: str
    ssh_key: str
    docker_host: str | None
    state: NodeState
    release: Release


class Lab:
    """The machines of one name on this host.

    The object remembers nothing: everything is looked up, so any number of processes may use the
    same lab. Commands that change it wait for each other.
    """

    def __init__(self, name: str = DEFAULT_NAME, *, report: Report = _silent) -> None:
        """Name a lab; it need not exist.

        Args:
            report: told in a few words what is being done, during work that takes long.
        """
        self.names = Names(name)
        self.report = report

    @property
    def name(self) -> str:
        return self.names.lab

    # -- the whole lab ---------------------------------------------------------------------------

    def up(
        self,
        *,
        nodes: int = 3,
        release: Literal["bookworm", "trixie", "mixed"] = "bookworm",
        disks: DiskKind = "plain",
        store: StoreKind = "etcd",
        driver: DriverKind = "btrfs",
        cgroups: CgroupKind = "v2",
        bare: bool = False,
        cluster_kind: Cluster = "full",
        disk_size: str = "20G",
    ) -> None:
        """Make the machines, boot them and form a cluster of them.

        Args:
            release: of Debian; ``mixed`` alternates.
            disks: ``cuttable`` disks can lose power, fail, crawl and hang; ``plain`` ones are faster.
            store: where Pannier keeps its records; ``sqlite`` is for one node.
            driver: where volumes' bytes live.
            cgroups: ``v2`` gives the machines the unified tree alone, as Debian has it; ``host``
                what this host has. Controllers that this host uses in version 1 are in no ``v2``
                tree: limits of memory, CPU and processes then do nothing in the machines.
            bare: no Docker and no Pannier, only sshd and Python.
            cluster_kind: ``full`` is Swarm, etcd and Pannier; ``swarm`` only the first.
            disk_size: of each disk, as truncate takes it; the files are sparse.

        Raises:
            LabError: the host lacks something, the lab exists, or a part did not come up. What
                was made stays for inspection until :meth:`down`.
        """
        preflight.check_host(disks)
        self._check_wish(nodes, store, bare)
        with self._locked():
            if self.names.run.exists() or self.names.data.exists():
                raise LabError(
                    f"lab {self.name} exists already",
                    remedy=f"remove it with `pannier lab down --name {self.name}` or choose a --name",
                )
            releases = _releases(nodes, release)
            layers = rootfs.build_all(releases, bare=bare, report=self.report)
            with network.choosing_subnet():
                subnet = network.free_subnet(self.name)
                planned = tuple(
                    OrderedNode(
                        name=f"node{index}",
                        index=index,
                        address=network.node_address(subnet, index),
                        release=each,
                        layers=layers[each],
                    )
                    for index, each in enumerate(releases, 1)
                )
                wish = LabState(
                    name=self.name,
                    subnet=subnet,
                    disks=disks,
                    store=store,
                    driver=driver,
                    cgroups=cgroups,
                    bare=bare,
                    nodes=planned,
                )
                state.save(wish)
                network.Network(self.names, subnet).create()
            self._make(wish, disk_size)
            if not bare and cluster_kind != "none":
                cluster.bring_up(
                    self.machines(), pannier=cluster_kind == "full", report=self.report
                )
            self.flush()

    def down(self) -> bool:
        """Remove the lab, whatever is left of it.

        Returns:
            whether there was anything to remove.
        """
        preflight.check_root()
        with self._locked():
            groups = groups_below(self.names.group)
            found = bool(groups) or self.names.run.exists() or self.names.data.exists()
            with ThreadPoolExecutor(max_workers=8) as pool:
                list(pool.map(lambda each: each.kill(freeze=not serves_disk(each)), groups))
            network.remove_all(self.names)
            release_loop_devices(self.names.run)
            release_loop_devices(self.names.data)
            tracefs.remove_unused("pannier-")
            for group in groups:
                group.remove(freeze=not serves_disk(group))
            remove_files(self.names)
        with contextlib.suppress(OSError):
            run_root().rmdir()
        return found

    @property
    def exists(self) -> bool:
        return state.load(self.name) is not None

    @property
    def nodes(self) -> list[LabNode]:
        """All machines, in order, as they are now."""
        return [
            LabNode(
                name=machine.node.name,
                address=machine.node.address,
                ssh_key=str(self.names.ssh_key),
                docker_host=None if machine.state.bare else f"unix://{machine.engine.socket}",
                state=machine.look(),
                release=machine.node.release,
            )
            for machine in self.machines()
        ]

    def machines(self) -> list[Machine]:
        """The machines, for callers inside the lab's own package."""
        wish = state.load(self.name)
        if wish is None:
            raise LabError(
                f"there is no lab {self.name}",
                remedy=f"start it with `pannier lab up --name {self.name}`; "
                "`pannier lab ls --all` shows which there are",
            )
        return [Machine(node, wish) for node in wish.nodes]

    def machine(self, name: str) -> Machine:
        """The machine of this name."""
        machines = self.machines()
        for machine in machines:
            if machine.node.name == name:
                return machine
        known = ", ".join(machine.node.name for machine in machines)
        raise LabError(f"lab {self.name} has no machine {name}", remedy=f"it has {known}")

    # -- one machine -----------------------------------------------------------------------------

    def run(
        self,
        node: str,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside a machine and return its output.

        Raises:
            CommandFailed: its exit status is not 0 and ``check`` is set.
            CommandTimedOut: it took longer than ``timeout`` seconds.
            LabError: the machine is off or paused.
        """
        return self.machine(node).run(
            command, check=check, input=input, stdin=stdin, stdout=stdout, timeout=timeout
        )

    def become(self, node: str, command: Sequence[str]) -> None:
        """Replace this process by a command inside a machine."""
        machine = self.machine(node)
        become(machine.entering(command), env=machine.environment())

    def crash(self, node: str) -> bool:
        """Cut a machine's power.

        Returns:
            whether its disks forgot what was not flushed: only cuttable ones do.
        """
        with self._locked():
            machine = self.machine(node)
            if not machine.leader():
                raise LabError(f"{node} of lab {self.name} is off already")
            machine.power_off(forget=True)
            return machine.state.disks == "cuttable"

    def boot(self, node: str, *, wait: bool = True) -> None:
        """Switch a machine on again, with the disks as it left them.

        Args:
            wait: until its Docker engine answers; otherwise only until its process 1 runs.
        """
        with self._locked():
            self.machine(node).boot(wait=wait)

    def cut(self, node: str) -> None:
        """Pull a machine's network cable."""
        with self._locked():
            self.machine(node).cut()

    def mend(self, node: str) -> None:
        """Plug a machine's network cable in again."""
        with self._locked():
            self.machine(node).mend()

    def pause(self, node: str) -> None:
        """Let a machine stand still; its clocks go on."""
        with self._locked():
            self.machine(node).pause()

    def resume(self, node: str) -> None:
        """Let a paused machine go on."""
        with self._locked():
            self.machine(node).resume()

    def disk(
        self,
        node: str,
        fault: DiskFault,
        *,
        role: Role = "pool",
        rate: str = "1M",
    ) -> None:
        """Let a disk fail, crawl, hang or recover, while it is in use.

        Args:
            role: which of the machine's two disks.
            rate: bits per second of a slow disk; K, M and G multiply.
        """
        with self._locked():
            disk = self.machine(node).disk(role)
            if fault == "fail":
                disk.fail()
            elif fault == "slow":
                disk.slow_down(rate)
            elif fault == "hang":
                disk.hang()
            else:
                disk.heal()

    def flush(self) -> None:
        """Write all machines' disks out, so that a crash right now would cost nothing."""

        def flush(machine: Machine) -> None:
            # A plain `sync` would reach every file system of the host.
            folders = "/var/lib/docker /var/lib/pannier /var/lib/pannier/pool"
            script = f"for f in {folders}; do [ ! -d $f ] || sync -f $f || exit; done"
            machine.run(["sh", "-c", script])

        running = [machine for machine in self.machines() if machine.look() in ("running", "cut")]
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(flush, running))

    # -- images ----------------------------------------------------------------------------------

    def load_image(self, source: Path | str, *, tag: str | None = None) -> None:
        """Put a Docker image into the engine of every machine that runs.

        Args:
            source: a tar of `docker save`, a tar of a root file system, or a folder with one.
            tag: the image's name, needed for a root file system.
        """
        dockerimage.load(self._with_engine(), Path(source), tag=tag, report=self.report)
        self.flush()

    def build_busybox(self, tag: str) -> None:
        """Make a small image with a shell and the usual commands, in every machine that runs."""
        dockerimage.build_busybox(self._with_engine(), tag, report=self.report)
        self.flush()

    # -- private ---------------------------------------------------------------------------------

    def _with_engine(self) -> list[Machine]:
        """The machines that run, each with a Docker engine."""
        machines = [each for each in self.machines() if each.look() in ("running", "cut")]
        if not machines or not dockerimage.has_docker(machines[0]):
            raise LabError(f"no machine of lab {self.name} has a running Docker engine")
        return machines

    def _make(self, wish: LabState, disk_size: str) -> None:
        self.report(f"booting {len(wish.nodes)} machines")
        self.names.data.mkdir(parents=True)
        seed.create_ssh_key(self.names)
        if wish.bare:
            mirror.offer(self.names, wish.subnet)
        machines = [Machine(node, wish) for node in wish.nodes]

        def make(machine: Machine) -> None:
            machine.create(disk_size=disk_size)
            machine.boot()

        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(make, machines))

    def _check_wish(self, nodes: int, store: StoreKind, bare: bool) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise LabError(f"a lab of {nodes} machines", remedy=f"ask for 1 to {MAX_NODES}")
        if store == "sqlite" and nodes > 1 and not bare:
            raise LabError(
                f"the store sqlite is for one node, not for {nodes}",
                remedy="use --nodes 1 or --store etcd",
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with state.locked(run_root() / f".{self.name}.lock", waiting=self.report):
            yield


def _releases(nodes: int, wish: Literal["bookworm", "trixie", "mixed"]) -> list[Release]:
    if wish == "mixed":
        both: tuple[Release, Release] = ("bookworm", "trixie")
        return [both[index % 2] for index in range(nodes)]
    return [wish] * nodes
