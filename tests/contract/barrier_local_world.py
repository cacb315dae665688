"""A barrier with the local sync, real callers, a real ext4 in an image, and a pool that refuses its writes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from barrier_kernel_world import Caller, World, new_world

from pannier.agent.drivers import Drivers
from pannier.barrier.calls import Answer, SyncCall
from pannier.barrier.local_sync import Steps
from pannier.copies.local import LocalSync, SaidLocally
from pannier.core.errors import StorageError
from pannier.core.options import parse_options
from pannier.core.pace import NodePace
from pannier.core.volume import Grant, Volume
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs.allocation import Allocation
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import loopdevice
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

MIB = 1 << 20
SECTOR_BYTES = 512
LEAST_BYTES = 16 * MIB
"""More than ext4's journal and metadata take in these tests, and much less than the data that must not be written."""

SYNCFS = "if libc.syncfs(50): raise OSError(ctypes.get_errno(), 'syncfs')"
FAILURES = [str(number) for number in (errno.EIO, errno.ENOSPC, errno.EROFS)]
"""ext4 itself may say EROFS: it has noticed the loss too."""


@dataclass
class Alone:
    """A strategy for a volume whose only copy is this node's: the local sync, and nothing else.

    Attributes:
        said: what the local disk said of each group.
        began: how much the device had been written when each group began, in bytes.
        given: how much it had been written when it had taken what was written to the files of a group, where that was told.
        confirmed: how many calls were told that all is well.
        waits: whether groups wait for the gate before they do anything.
        holds_answers: whether they wait for it before they answer.
    """

    local: LocalSync
    driver: ImageDriver
    volume: Volume
    said: list[SaidLocally] = field(default_factory=list)
    began: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    confirmed: int = 0
    waits: bool = False
    holds_answers: bool = False

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting: list[SyncCall] = []

    @property
    def live(self) -> Path:
        return self.driver._home(self.volume.id).live(1) / IMAGE

    def written(self) -> int:
        """Bytes that the volume's device was given so far."""
        device = loopdevice.find(self.live)
        assert device is not None
        return int((device.settings / "stat").read_text().split()[6]) * SECTOR_BYTES

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> Sequence[Answer]:
        assert volume == "one"
        self.waiting = list(calls)
        if self.waits:
            await self.gate.wait()
        self.began.append(self.written())
        said = await self.local.sync(
            self.volume, calls, steps=Steps(lambda: self.given.append(self.written()), lambda: None)
        )
        self.said.append(said)
        if self.holds_answers:
            await self.gate.wait()
        if said.lost:
            return said.answers
        if said.whole:
            await self.driver.write_out(self.volume.id)
        self.confirmed += sum(not answer.error for answer in said.answers)
        return said.answers

    async def unchanged(self, volume: str) -> bool:
        return False


@dataclass
class Local:
    """A volume ``one``, mounted as containers have it, and what is asked of it."""

    world: World
    alone: Alone
    pool: Path

    @property
    def data(self) -> Path:
        return self.world.mounts / "one"

    def make(self, name: str, size: int = 0) -> Path:
        """A file that is on the disk."""
        (self.data / name).write_bytes(os.urandom(size))
        os.sync()
        return self.data / name

    def dirty(self, name: str, size: int) -> None:
        """What another process wrote and nobody syncs."""
        command = ["dd", "if=/dev/urandom", f"of={self.data / name}", f"bs={MIB}"]
        subprocess.run([*command, f"count={size // MIB}"], check=True, capture_output=True)

    def refuse(self, error: int) -> None:
        """From now on, the disk refuses what is written to this volume.

        ENOSPC: the pool has no block for it, though there is room. EIO: its device ends too soon.
        """
        if error == errno.ENOSPC:
            subprocess.run(
                ["btrfs", "qgroup", "limit", "8M", self.alone.live.parent],
                check=True, capture_output=True,
            )  # fmt: skip
            return
        device = loopdevice.find(self.alone.live)
        assert device is not None
        os.truncate(self.alone.live, MIB)
        loopdevice.grow(device)

    def fill_up(self) -> None:
        """From now on, the pool has no block for anybody: ENOSPC."""
        with (self.pool / "ballast").open("wb", 0) as ballast:
            os.posix_fallocate(
                ballast.fileno(), 0, Allocation.of(self.pool).free_bytes() - 40 * MIB
            )
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(os.urandom(MIB))

    async def overwritten(self) -> Path:
        """A file whose next overwrite needs blocks of the pool, since a generation has its present ones."""
        file = self.make("file", 64 * MIB)
        await self.alone.driver.snapshot(self.alone.volume.id, epoch=1)
        return file


@contextlib.asynccontextmanager
async def opened(pool: Path, staging: Path) -> AsyncIterator[Alone]:
    driver = ImageDriver(pool, staging=staging)
    drivers = Drivers({"image": driver}, default="image", node="a", pace=NodePace())
    opening = asyncio.create_task(drivers.keep_open())
    await drivers.tried.wait()
    opening.cancel()
    ident = f"one.{uuid.uuid4().hex[:8]}"
    spec = parse_options({"copies": "2"})
    volume = Volume(name="one", id=ident, spec=spec, grant=Grant("a", 1), created_at=0.0)
    await driver.create(ident, epoch=1, root=RootAttributes(), size_bytes=None)
    await driver.attach(ident, epoch=1, grow=False)
    try:
        yield Alone(LocalSync(drivers), driver, volume)
    finally:
        await driver.thaw(ident)
        with contextlib.suppress(StorageError):
            await driver.detach(ident, epoch=1)
        await driver.close()


@pytest.fixture
async def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    pool = tmp_path / "pool"
    await create_pool(tmp_path / "pool.img", mountpoint=pool, size_bytes=1000 * MIB)
    try:
        async with opened(pool, tmp_path / "staging") as alone:
            tree = alone.driver.data_path(alone.volume.id, 1)
            with mounted(tree, tmp_path / "mounts/one"):
                async with (
                    new_world(tmp_path, monkeypatch, strategy=alone) as world,
                    world.running(),
                ):
                    yield Local(world, alone, pool)
    finally:
        async with asyncio.timeout(10):
            while not await close_pool(pool):
                await asyncio.sleep(0.1)


@contextlib.contextmanager
def mounted(tree: Path, point: Path) -> Iterator[None]:
    point.mkdir(parents=True)
    subprocess.run(["mount", "--bind", tree, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", point], check=True)


@contextlib.contextmanager
def stacked(image: Path, point: Path) -> Iterator[None]:
    """A file system in a file of the volume."""
    point.mkdir()
    image.touch()
    os.truncate(image, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        os.sync()
        yield
    finally:
        subprocess.run(["umount", "-l", point], check=True)


async def opened_as(caller: Caller, number: int, file: Path, flags: str = "os.O_RDWR") -> None:
    """The caller opens a file under a number of its own."""
    await caller.begin(f"os.dup2(os.open({str(file)!r}, {flags}), {number})")
    assert await caller.outcome() == "ok"


async def wrote(caller: Caller, number: int, size: int = MIB) -> None:
    await caller.begin(f"os.pwrite({number}, os.urandom({size}), 0)")
    assert await caller.outcome() == "ok"


async def told(caller: Caller, line: str) -> str:
    await caller.begin(line)
    return await caller.outcome()


def own_files() -> Iterator[str]:
    """What this process has open."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield os.readlink(f"/proc/self/fd/{fd}")
