"""The use of a volume ends even where its disk answers nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from fake_driver import Disk, SparseSnapshotDriver

from pannier.agent.drivers import Drivers
from pannier.agent.freezing import CgroupFreezer
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import MountTable
from pannier.agent.usage import Contact, User
from pannier.agent.use import Use
from pannier.core.errors import DiskFailed, StorageError
from pannier.core.pace import AgentPace, NodePace
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.host.clock import machine_clock
from pannier.host.killing import kill
from pannier.host.state_files import UnsyncedFile
from pannier.testing.engine import FakeEngine

PACE = AgentPace(end_patience=0.1, end_pause=0.01)
VOLUME = Volume(name="vol", id="vol.1", spec=VolumeSpec(driver="image"), grant=Grant("a", 1), created_at=0.0)  # fmt: skip


class Stuck(MountTable):
    """Mounts of which one cannot be undone until the disk answers, and then not either."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answers = threading.Event()

    def unmount(self, name: str, *, detach: bool = False) -> None:
        self.answers.wait(30)
        raise StorageError("the kernel refused")


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


class StuckDriver(SparseSnapshotDriver):
    async def thaw(self, volume: str) -> None:
        await asyncio.Event().wait()


async def test_users_are_killed_although_nothing_can_be_unmounted(tmp_path: Path) -> None:
    process = sleeping()

    def users_of(paths: Sequence[Path], *, mount_root: Path) -> list[User]:
        if process.poll() is not None:
            return []
        return [User(process.pid, None, "sleep", Contact.WRITES, filtered=False)]

    driver = StuckDriver(Disk(), name="image")
    drivers = Drivers({"image": driver}, default="image", node="a", pace=NodePace())
    opening = asyncio.create_task(drivers.keep_open())
    await drivers.opened()
    drivers.hanging["image"] = DiskFailed("it hangs")
    mounts = Stuck(tmp_path / "mounts")
    use = Use(
        drivers=drivers,
        mounts=mounts,
        mount_ids=MountIds(UnsyncedFile(tmp_path / "mounts.json")),
        engine=FakeEngine(),
        freezer=CgroupFreezer(UnsyncedFile(tmp_path / "frozen.json")),
        users_of=users_of,
        kill=kill,
        clock=machine_clock(),
        pace=PACE,
    )
    ending = asyncio.create_task(use.end(VOLUME))
    try:
        async with asyncio.timeout(10):
            while process.poll() is None:
                await asyncio.sleep(0.02)
        assert not ending.done(), "what is still mounted is waited for"
        mounts.answers.set()
        with pytest.raises(StorageError, match="refused"):
            await asyncio.wait_for(ending, 10)
    finally:
        mounts.answers.set()
        process.kill()
        process.wait()
        opening.cancel()
