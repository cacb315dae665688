"""Control groups: how the lab finds, freezes and ends all processes of a machine.

A process that is started in a group can leave it only on purpose, and so can its children. The
group's name follows from the lab and the machine. So no process id has to be written down, none
can be mistaken for another program's, and an interrupted `up` leaves nothing that cannot be found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from pannier.host.killing import kill
from pannier.host.mountinfo import own_mounts
from pannier.lab.errors import LabError
from pannier.lab.process import wait_for

ROOT = "pannier-lab"
_GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel says of a group that was removed: before its file was opened, and after."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted control group tree of the host."""

    mount: Path
    unified: bool
    controllers: frozenset[str]


@cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """The host's control group trees: several of version 1, one of version 2, or both kinds."""
    found = []
    for mount in own_mounts():
        if mount.fstype in ("cgroup", "cgroup2"):
            found.append(
                Hierarchy(
                    mount=Path(mount.point),
                    unified=mount.fstype == "cgroup2",
                    controllers=frozenset(mount.options.split(",")),
                )
            )
    return tuple(found)


def is_version_2() -> bool:
    """Whether the host has the unified tree only."""
    return all(tree.unified for tree in hierarchies())


@dataclass(frozen=True, slots=True)
class HostGroup:
    """The same control group in every hierarchy of the host.

    Attributes:
        name: path below the hierarchy's root, for example ``pannier-lab/lab/node1``.
    """

    name: str

    def folders(self) -> list[Path]:
        """The group's folder in each hierarchy, whether it exists or not."""
        return [tree.mount / self.name for tree in hierarchies()]

    def create(self) -> None:
        """Make the group; it may exist.

        Repeated if a parent disappears: the removal of another group takes empty parents with it.
        """
        for tree in hierarchies():
            wait_for(partial(self._create_in, tree), what=f"control group {self.name}", timeout=10)

    def _create_in(self, tree: Hierarchy) -> bool:
        """Whether it worked: False where a parent went away meanwhile."""
        parent = tree.mount
        try:
            for part in Path(self.name).parts:
                if tree.unified:
                    _delegate(parent)
                child = parent / part
                child.mkdir(exist_ok=True)
                if "cpuset" in tree.controllers and not tree.unified:
                    _fill_cpuset(parent, child)
                parent = child
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        return True

    def joining(self, argv: list[str]) -> list[str]:
        """A command line that joins the group and then becomes ``argv``."""
        join = "".join(f"echo 0 >{folder}/cgroup.procs && " for folder in self.folders())
        return ["/bin/sh", "-c", join + 'exec "$@"', "sh", *argv]

    def processes(self) -> list[int]:
        """The ids of all processes in the group and below it."""
        return sorted(_processes(self._freezer()))

    def freeze(self, *, wait: bool = True) -> None:
        """Stop all processes where they are; what is started in the group stands still too.

        A group that is not there, or only half made, has no processes.
        """
        folder = self._freezer()
        if (folder / "freezer.state").exists():
            (folder / "freezer.state").write_text("FROZEN")
        elif (folder / "cgroup.freeze").exists():
            (folder / "cgroup.freeze").write_text("1")
        else:
            return
        if wait:
            wait_for(lambda: self.frozen() or None, what=f"{self.name} standing still", timeout=10)

    def thaw(self) -> None:
        """Let the processes go on; harmless if they never stopped or the group is gone."""
        folder = self._freezer()
        with contextlib.suppress(FileNotFoundError):
            if (folder / "freezer.state").exists():
                (folder / "freezer.state").write_text("THAWED")
            elif (folder / "cgroup.freeze").exists():
                (folder / "cgroup.freeze").write_text("0")

    def frozen(self) -> bool:
        """Whether every process of the group stands still."""
        folder = self._freezer()
        with contextlib.suppress(FileNotFoundError):
            return (folder / "freezer.state").read_text().strip() == "FROZEN"
        with contextlib.suppress(FileNotFoundError):
            return "frozen 1" in (folder / "cgroup.events").read_text()
        return False

    def kill(self, *, freeze: bool = True, timeout: float = 30) -> None:
        """End all processes of the group at once and wait until they are gone.

        Args:
            freeze: freeze them while they are listed. Then no new process starts in between. Not for
                processes that serve a file system: whatever on this host accesses it would hang meanwhile.
            timeout: seconds for all of it.

        Raises:
            LabError: some are still there after that time.
        """
        deadline = time.monotonic() + timeout
        while pids := self._members():
            if time.monotonic() > deadline:
                raise LabError(
                    f"processes {pids} of {self.name} do not die",
                    remedy="they hang in the kernel (see /proc/PID/stack); try again in a minute",
                )
            try:
                if freeze:
                    self.freeze(wait=False)
                kill(self._members(), found=self._members)
            finally:
                self.thaw()
            _wait_until_empty(self, until=min(deadline, time.monotonic() + 1))

    def remove(self, *, freeze: bool = True, timeout: float = 10) -> None:
        """Remove the group with everything in and below it, then empty parents of the lab's own.

        A process that was about to join when its parent was killed may still arrive: it is ended.
        """
        deadline = time.monotonic() + timeout
        while left := [folder for folder in self.folders() if folder.exists()]:
            if time.monotonic() > deadline:
                raise LabError(
                    f"control group {left[0]} cannot be removed: it is in use",
                    remedy="see cgroup.procs in it and in the folders below",
                )
            self.kill(freeze=freeze)
            for folder in left:
                for child in sorted(_tree(folder), reverse=True):
                    with contextlib.suppress(OSError):
                        child.rmdir()
            time.sleep(0.01)
        for folder in self.folders():
            for parent in folder.parents:
                if ROOT not in parent.parts:
                    break
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def _members(self) -> list[int]:
        """All processes in any hierarchy, also those that have only begun to join."""
        return sorted({pid for folder in self.folders() for pid in _processes(folder)})

    def _freezer(self) -> Path:
        """The folder by which processes are listed and frozen."""
        for tree in hierarchies():
            if "freezer" in tree.controllers and not tree.unified:
                return tree.mount / self.name
        return next(tree.mount for tree in hierarchies() if tree.unified) / self.name


def groups_below(name: str) -> list[HostGroup]:
    """The groups right below ``name`` in any hierarchy, for instance all machines of a lab."""
    found = set()
    for tree in hierarchies():
        with contextlib.suppress(FileNotFoundError):
            found |= {
                f"{name}/{entry.name}" for entry in (tree.mount / name).iterdir() if entry.is_dir()
            }
    return [HostGroup(each) for each in sorted(found)]


def _wait_until_empty(group: HostGroup, *, until: float) -> None:
    while group.processes() and time.monotonic() < until:
        time.sleep(0.01)


def _tree(folder: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(folder):
        yield Path(path)


def _processes(folder: Path) -> Iterator[int]:
    for path in _tree(folder):
        # A group may go away while we look; a container's ends at any time.
        with contextlib.suppress(OSError):
            yield from (int(pid) for pid in (path / "cgroup.procs").read_text().split())


def _delegate(folder: Path) -> None:
    """Offer all controllers to the groups below (version 2 only)."""
    with contextlib.suppress(OSError):
        for controller in (folder / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _fill_cpuset(parent: Path, child: Path) -> None:
    """A new version 1 cpuset is empty and takes no process until it is filled."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (child / name).read_text().strip():
            (child / name).write_text((parent / name).read_text())
