"""Files that are open with O_SYNC or O_DSYNC: a write to one is no sync call and is not held.

All that can be done is to warn of it, once for each container.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from pannier.barrier.reach import Reach
from pannier.host.mountinfo import OthersMounts

log = structlog.get_logger(__name__)


def find(spaces: Mapping[int, Reach], *, proc: Path = Path("/proc")) -> dict[int, tuple[int, int]]:
    """Look for files of held volumes that are open with O_SYNC or O_DSYNC.

    Reads the descriptors of every process in these containers: some 10 us each. To be called in a thread.

    Args:
        spaces: by the pid of one process of each container; the container's other processes are those
            in the same mount namespace.

    Returns:
        For each container with such a file, by its key in ``spaces``: one process and descriptor.
    """
    wanted = {space: pid for pid in spaces if (space := _namespace(proc, pid))}
    mounts = OthersMounts()  # the event loop waits for nothing that is read here
    try:
        own = {pid: replace(reach, mounts=mounts) for pid, reach in spaces.items()}
        return _find(own, wanted, proc)
    finally:
        mounts.let_go()


def _find(
    spaces: Mapping[int, Reach], wanted: Mapping[str, int], proc: Path
) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for pid in _processes(proc):
        leader = wanted.get(_namespace(proc, pid))
        if leader is None or leader in found:
            continue
        for fd in _descriptors(proc, pid):
            with contextlib.suppress(OSError, ValueError, LookupError):
                reached = spaces[leader].of_descriptor(pid, fd)
                if reached.synchronous and reached.volumes:
                    found[leader] = pid, fd
                    break
    return found


def warn(container: str, volumes: Collection[str], pid: int, fd: int) -> None:
    """Log that a container has such a file open."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        path = ""
    log.warning(
        "barrier.sync-writes-not-held",
        volume=",".join(sorted(volumes)),
        container=container,
        pid=pid,
        path=path,
        why="the file is open with O_SYNC or O_DSYNC: its writes return before other copies have "
        "them; only fsync, fdatasync, sync, syncfs and msync wait",
    )


def _namespace(proc: Path, pid: int) -> str:
    try:
        return os.readlink(proc / str(pid) / "ns/mnt")
    except OSError:
        return ""


def _processes(proc: Path) -> Iterator[int]:
    return (int(name) for name in os.listdir(proc) if name.isdigit())


def _descriptors(proc: Path, pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(proc / str(pid) / "fd")]
    except OSError:
        return []
