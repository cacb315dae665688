"""The machines' disks: sparse files behind loop devices, some of which can lose power.

Killing a machine is no power cut for its disks: the host's kernel unmounts the file systems in
good order and writes everything out. A *cuttable* disk has nbdkit in between, which keeps what is
written in its cache until a flush; killing nbdkit forgets it, as a disk without power does::

    file system - loop device - nbdfuse - nbdkit (error, rate, write-back cache) - image file
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pannier.host.files import write_file
from pannier.lab.cgroup import HostGroup
from pannier.lab.errors import LabError
from pannier.lab.mounts import unmount_below
from pannier.lab.paths import data_root, run_root
from pannier.lab.process import POLL_S, run, start_detached, wait_for
from pannier.lab.state import DiskKind
from pannier.storage.btrfs import loop

Role = Literal["system", "pool"]
ROLES: tuple[Role, ...] = ("system", "pool")
DiskFault = Literal["fail", "slow", "hang", "heal"]
FAULTS: tuple[DiskFault, ...] = ("fail", "slow", "hang", "heal")
"""What can be done to a disk in use; the last one ends the others."""

_SERVED = "mount/disk"
_BLOCK = "16K"
"""What the cache reads, writes and writes back for a small write. A flush looks at all blocks of the disk,
so they must not be too small either."""
_UNLIMITED = "100G"
_DETACH_TIMEOUT_S = 30
_SERVE_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of one machine.

    Attributes:
        role: ``system`` holds ext4 with the machine's state, ``pool`` is for Pannier.
        kind: ``cuttable`` disks can lose power, fail, crawl and hang; ``plain`` ones are faster.
        data: folder of the image file; it survives a crash.
        run: folder of sockets and mount points of this disk.
        group: control group of the processes that serve it.
    """

    role: Role
    kind: DiskKind
    data: Path
    run: Path
    group: HostGroup

    @property
    def image(self) -> Path:
        return self.data / f"{self.role}.img"

    @property
    def _file(self) -> Path:
        """The file behind the loop device."""
        return self.image if self.kind == "plain" else self.run / _SERVED

    @property
    def _broken(self) -> Path:
        return self.run / "broken"

    @property
    def _rate(self) -> Path:
        return self.run / "rate"

    def create(self, *, size: str) -> None:
        """Make the image: a new ext4 for the system, nothing but zeros for the pool."""
        self.data.mkdir(parents=True, exist_ok=True)
        run(["truncate", "-s", size, str(self.image)])
        if self.role == "system":
            options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
            run(["mkfs.ext4", "-q", "-F", "-E", options, "-L", "system", str(self.image)])

    def attach(self) -> str:
        """Connect the disk to the host and return its device, for example ``/dev/loop3``."""
        self.run.mkdir(parents=True, exist_ok=True)
        if self.kind == "cuttable":
            self._serve()
        device = run(["losetup", "--find", "--show", str(self._file)]).stdout.strip()
        loop.make_sound(Path(device))
        return device

    def device(self) -> str | None:
        """The loop device of the attached disk."""
        return next(iter(loop_devices(self._file)), None)

    def detach(self) -> None:
        """Disconnect the disk from the host, whatever state it is in; harmless if it is not there.

        Raises:
            LabError: something still uses the loop device.
        """
        release_loop_devices(self._file)
        unmount_below(self.run)
        if self.group.processes():
            self.group.kill(freeze=False)
        for leftover in (self._broken, self._rate, self.run / "socket"):
            leftover.unlink(missing_ok=True)

    def lose_power(self) -> None:
        """Forget at once all that was not flushed. A plain disk has no cache to forget."""
        if self.kind == "cuttable":
            self.group.kill(freeze=False)

    def fail(self) -> None:
        """Answer every request with an I/O error from now on."""
        self._need_cuttable("fail")
        self._broken.touch()

    def slow_down(self, rate: str) -> None:
        """Serve no more than ``rate`` bits per second; a suffix K, M or G multiplies."""
        self._need_cuttable("slow")
        self._set_rate(rate)

    def hang(self) -> None:
        """Answer no request from now on, and lose none.

        A ``sync`` anywhere on this host waits for it, too: the machines share one kernel.
        """
        self._need_cuttable("hang")
        self.group.freeze()

    def heal(self) -> None:
        """End :meth:`fail`, :meth:`slow_down` and :meth:`hang`."""
        self._need_cuttable("heal")
        self.group.thaw()
        self._broken.unlink(missing_ok=True)
        self._set_rate(_UNLIMITED)

    def _set_rate(self, rate: str) -> None:
        # nbdkit reads the file while it works: it must never see half of it.
        write_file(self._rate, rate.encode(), durable=False)

    def _need_cuttable(self, wish: str) -> None:
        if self.kind != "cuttable":
            raise LabError(
                f"this lab's disks are plain: they cannot {wish}",
                remedy="start the lab with `pannier lab up --disks cuttable`",
            )

    def _serve(self) -> None:
        listener, mount, log = self.run / "socket", self.run / "mount", self.run / "log"
        listener.unlink(missing_ok=True)
        mount.mkdir(exist_ok=True)
        self.group.create()
        self._set_rate(_UNLIMITED)
        # Requests pass the filters in this order: errors and slowness come before the cache.
        filters = ["--filter=error", "--filter=rate", "--filter=cache"]
        faults = ["error=EIO", "error-rate=100%", f"error-file={self._broken}"]
        faults += [f"rate-file={self._rate}", f"rate={_UNLIMITED}"]
        # nbdkit ends with its parent, and the process that detaches it exits soon. So a shell stays.
        server = ["/bin/sh", "-c", '"$@"; exit', "sh", "nbdkit", "--foreground"]
        server += ["--unix", str(listener), *filters]
        server += [
            "file",
            str(self.image),
            "cache=writeback",
            f"cache-min-block-size={_BLOCK}",
            *faults,
        ]
        # The cache's file lies where TMPDIR says; it is as large as what was written.
        environment = {**os.environ, "TMPDIR": str(self.data)}
        start_detached(server, join=self.group.joining, log=log, env=environment)
        self._wait_for("nbdkit", lambda: _accepts(listener), log)
        client = ["nbdfuse", f"{mount}/disk", "--unix", str(listener)]
        start_detached(client, join=self.group.joining, log=log)
        self._wait_for("nbdfuse", self._file.exists, log)

    def _wait_for(self, what: str, ready: Callable[[], bool], log: Path) -> None:
        remedy = f"see {log}"

        def alive() -> bool:
            if not self.group.processes():
                last = log.read_text().strip().rpartition("\n")[2]
                raise LabError(f"{what} has ended: {last}", remedy=remedy)
            return ready()

        wait_for(
            lambda: alive() or None, what=what, timeout=_SERVE_TIMEOUT_S, remedy=remedy, poll=0.01
        )


def _accepts(path: Path) -> bool:
    """Whether a server listens: its socket's file is there a moment before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def serves_disk(group: HostGroup) -> bool:
    """Whether the group is that of a disk, not that of a machine."""
    return group.name.endswith(tuple(f"-{role}" for role in ROLES))


def loop_devices(below: Path) -> list[str]:
    """Loop devices whose file is ``below`` or lies below it."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = Path(entry.read_text().strip().removesuffix(" (deleted)"))
            if backing.is_relative_to(below):
                found.append(f"/dev/{entry.parent.parent.name}")
    return found


def loop_devices_on(device: str) -> list[str]:
    """Loop devices whose file lies in the file system on ``device``, wherever that is mounted.

    The labs' own disks are never asked about: the kernel looks at a loop device's file to answer,
    and would wait for the stalled disk of a paused machine.
    """
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    own = {*loop_devices(run_root()), *loop_devices(data_root())}
    found = []
    for entry in Path("/sys/block").glob("loop*/loop"):
        candidate = f"/dev/{entry.parent.name}"
        if candidate in own:
            continue
        query = ["losetup", "--list", "--noheadings", "--output", "BACK-MAJ:MIN", candidate]
        if run(query, check=False).stdout.strip() == wanted:
            found.append(candidate)
    return found


def release_loop_devices(below: Path) -> None:
    """Free the loop devices of all files below ``below``.

    A file system that was just unmounted, or whose machine was just killed, holds its device a
    moment longer; the device then goes by itself.

    Raises:
        LabError: one is still in use after half a minute.
    """
    for device in loop_devices(below):
        for inner in loop_devices_on(device):
            run(["losetup", "--detach", inner], check=False)
        run(["losetup", "--detach", device], check=False)
    deadline = time.monotonic() + _DETACH_TIMEOUT_S
    while left := loop_devices(below):
        if time.monotonic() > deadline:
            raise LabError(
                f"{', '.join(left)} on {below} cannot be freed: in use",
                remedy="look for what has it mounted: grep loop /proc/*/mountinfo",
            )
        time.sleep(POLL_S)
