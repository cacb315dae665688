"""What no seccomp filter sees: writes to files that are open with O_SYNC or O_DSYNC, and what Linux AIO submits.

They return before other copies have what was written. All that can be done here is to find who does it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pannier.barrier.reach import Reach
from pannier.host.mountinfo import OthersMounts

_AIO = b"/[aio]"
"""What the kernel calls the mapping of a context of io_setup(2)."""


@dataclass(frozen=True, slots=True)
class UnheldWriter:
    """A process of a container that can write past the barrier.

    Attributes:
        container: its id.
        volumes: names of the held volumes that are concerned.
        pid: of the process, as this machine numbers it.
        command: what the kernel calls the process.
        file: what is open with O_SYNC or O_DSYNC, as the process sees it; None where it uses Linux AIO.
    """

    container: str
    volumes: frozenset[str]
    pid: int
    command: str
    file: str | None


@dataclass(frozen=True, slots=True)
class ContainerSpace:
    """A container to look at: all processes in one mount namespace."""

    container: str
    reach: Reach


def find(
    spaces: Mapping[int, ContainerSpace], *, proc: Path = Path("/proc")
) -> tuple[UnheldWriter, ...]:
    """Look for processes that can write past the barrier.

    Of each container and volume one file is told, and of each container one process that uses Linux AIO:
    those with the lowest numbers, so that two looks tell the same. Reads the descriptors of every process in
    these containers: some 10 us each. To be called in a thread.

    Args:
        spaces: by the pid of one process of each container. A container may be there several times.

    Raises:
        OSError: ``proc`` cannot be listed.
    """
    wanted = {name: pid for pid in spaces if (name := _namespace(proc, pid))}
    processes: dict[int, list[int]] = {}
    for pid in sorted(_processes(proc)):
        if (leader := wanted.get(_namespace(proc, pid))) is not None:
            processes.setdefault(leader, []).append(pid)
    mounts = OthersMounts()  # the event loop waits for nothing that is read here
    try:
        found: list[UnheldWriter] = []
        for leader, pids in processes.items():
            space = spaces[leader]
            own = replace(space, reach=replace(space.reach, mounts=mounts))
            found += _with_files(own, pids, proc)
            found += _with_aio(own, pids, proc)
        return tuple(found)
    finally:
        mounts.let_go()


def _with_files(space: ContainerSpace, pids: list[int], proc: Path) -> Iterator[UnheldWriter]:
    told: frozenset[str] = frozenset()
    for pid in pids:
        for fd in _descriptors(proc, pid):
            with contextlib.suppress(
                OSError, ValueError, LookupError
            ):  # it has ended, or was closed
                reached = space.reach.of_descriptor(pid, fd)
                if reached.synchronous and (volumes := reached.volumes - told):
                    path = _printable(os.readlink(proc / str(pid) / "fd" / str(fd)))
                    yield UnheldWriter(space.container, volumes, pid, _command(proc, pid), path)
                    told |= volumes


def _with_aio(space: ContainerSpace, pids: list[int], proc: Path) -> Iterator[UnheldWriter]:
    volumes = frozenset(space.reach.own)
    if not volumes or not _machine_uses_aio(proc):
        return
    for pid in pids:
        with contextlib.suppress(OSError):
            if _AIO in (proc / str(pid) / "maps").read_bytes():
                yield UnheldWriter(space.container, volumes, pid, _command(proc, pid), None)
                return


def _machine_uses_aio(proc: Path) -> bool:
    """Whether anybody does: what a process has mapped is not read for nothing, since that takes the process's lock."""
    try:
        return int((proc / "sys/fs/aio-nr").read_bytes()) > 0
    except FileNotFoundError:  # a kernel without it
        return False


def _command(proc: Path, pid: int) -> str:
    name = (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace")
    return _printable(name.rstrip("\n"))


def _printable(name: str) -> str:
    """A name that a container chose, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _namespace(proc: Path, pid: int) -> str:
    try:
        return os.readlink(proc / str(pid) / "ns/mnt")
    except OSError:
        return ""


def _processes(proc: Path) -> Iterator[int]:
    return (int(name) for name in os.listdir(proc) if name.isdigit())


def _descriptors(proc: Path, pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(proc / str(pid) / "fd"))
    except OSError:
        return []
