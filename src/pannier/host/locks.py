"""Who has the lock of a file that somebody else has opened."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def who_locks(fd: int) -> str:
    """The processes that have a lock of flock(2) on an open file, for people; empty where the kernel tells none.

    A process that was killed while one of its threads waits for a disk keeps its locks until that thread is gone. It has no
    open files in /proc then, so `fuser` does not find it.
    """
    try:
        file = f"{_device_of(fd)}:{os.fstat(fd).st_ino}"
        lines = [line.split() for line in (PROC / "locks").read_text().splitlines()]
    except (OSError, LookupError, ValueError, StopIteration):
        return ""
    holders = {
        line[4] for line in lines if "->" not in line and line[1:2] == ["FLOCK"] and line[5] == file
    }
    return ", ".join(filter(None, map(_described, sorted(holders))))


def _device_of(fd: int) -> str:
    """The device of an open file's file system, as the kernel writes it in its list of locks. A subvolume has another one
    in stat(2)."""
    told = dict(
        line.split(":", 1) for line in (PROC / f"self/fdinfo/{fd}").read_text().splitlines()
    )
    mounts = (line.split() for line in (PROC / "self/mountinfo").read_text().splitlines())
    device = next(mount[2] for mount in mounts if mount[0] == told["mnt_id"].strip())
    major, minor = map(int, device.split(":"))
    return f"{major:02x}:{minor:02x}"


def _described(pid: str) -> str:
    try:
        stat = (PROC / pid / "stat").read_text()
    except OSError:
        return ""  # it is gone by now
    name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
    ended = ", which has ended, but for a thread that waits for its disk" if state == "Z" else ""
    return f"{pid} ({name}{ended})"
