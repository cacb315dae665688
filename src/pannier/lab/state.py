"""What a lab remembers about itself, and the lock that lets one command at a time change it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from pannier.host.files import write_file
from pannier.lab.errors import LabError
from pannier.lab.paths import Names, run_root

Release = Literal["bookworm", "trixie"]
DiskKind = Literal["plain", "cuttable"]
StoreKind = Literal["etcd", "sqlite"]
DriverKind = Literal["btrfs", "directory"]
CgroupKind = Literal["v2", "host"]
NodeState = Literal["running", "paused", "cut", "crashed"]


class OrderedNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine as it was ordered.

    Attributes:
        name: ``node1`` and so on; also its host name.
        index: 1 for the first.
        address: its address on the lab's bridge.
        release: of Debian.
        layers: folders of its root file system, topmost first; read-only and shared.
    """

    name: str
    index: int
    address: str
    release: Release
    layers: tuple[str, ...] = ()


class LabState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `up` was asked for: enough to boot a machine again.

    Whether a machine runs, stands still or is cut off is not kept here: it is looked up.
    """

    name: str
    subnet: str
    disks: DiskKind
    store: StoreKind
    bare: bool
    nodes: tuple[OrderedNode, ...]
    driver: DriverKind = "btrfs"
    cgroups: CgroupKind = "host"


def save(state: LabState) -> None:
    """Write the state so that a reader sees the old or the new one, never half of it."""
    path = Names(state.name).state
    path.parent.mkdir(parents=True, exist_ok=True)
    # Need not be durable: a power cut ends the lab too.
    write_file(path, msgspec.json.format(msgspec.json.encode(state), indent=2), durable=False)


def load(name: str) -> LabState | None:
    """The state of the lab, or None if there is no such lab.

    Raises:
        LabError: there is a state, but not one that this version wrote.
    """
    path = Names(name).state
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise LabError(
            f"{path} cannot be read: {error}",
            remedy=f"remove the lab with `pannier lab down --name {name}` and start it again",
        ) from error


def all_names() -> list[str]:
    """The names of the labs on this host."""
    return sorted(path.parent.name for path in run_root().glob("*/state.json"))


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock; it ends with the process, however that ends.

    The file is removed on release, so that nothing stays behind. Whoever waited for a removed
    file notices that and takes the new one.

    Args:
        path: the lock's file.
        waiting: told once, in a sentence, if another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    waiting(
                        f"waiting for process {os.pread(lock, 20, 0).decode() or '?'}, which works on this"
                    )
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_still(lock, path):
                continue
            os.truncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(lock)


def _is_still(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
