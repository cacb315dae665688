"""The local sync of a group, with real callers, a real ext4 in an image, and a pool that refuses its writes."""

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
from barrier_kernel_world import Caller, World, new_world, until

from pannier.agent.drivers import Drivers
from pannier.barrier import borrowing
from pannier.barrier.calls import Answer, SyncCall
from pannier.copies.local import LocalSync, SaidLocally
from pannier.core.errors import StorageError
from pannier.core.options import parse_options
from pannier.core.pace import NodePace
from pannier.core.volume import Grant, Volume
from pannier.host.mountinfo import locate, own_mounts
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs.allocation import Allocation
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import loopdevice
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

pytestmark = pytest.mark.root

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
        confirmed: how many calls were told that all is well.
        waits: whether groups wait for the gate before they do anything.
        holds_answers: whether they wait for it before they answer.
    """

    local: LocalSync
    driver: ImageDriver
    volume: Volume
    said: list[SaidLocally] = field(default_factory=list)
    began: list[int] = field(default_factory=list)
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
        said = await self.local.sync(self.volume, calls)
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


# -- only what is named ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["os.fdatasync", "os.fsync", "libc_msync"])
async def test_what_others_wrote_is_not_waited_for(local: Local, call: str) -> None:
    mine = local.make("mine", 4096)
    caller = await local.world.caller()
    local.dirty("others", 200 * MIB)
    before = local.alone.written()
    if call == "libc_msync":
        file = f"os.open({str(mine)!r}, os.O_RDWR)"
        line = f"m = mmap.mmap({file}, 4096); m[:5] = b'hello'; m.flush()"
        assert await told(caller, line) == "ok"
    else:
        await opened_as(caller, 50, mine)
        await wrote(caller, 50, 4096)
        assert await told(caller, f"{call}(50)") == "ok"
    assert 4096 <= local.alone.written() - before < LEAST_BYTES
    assert [said.whole for said in local.alone.said] == [False]


@pytest.mark.parametrize("line", ["os.sync()", "libc.syncfs(50)"])
async def test_a_sync_of_everything_syncs_everything(local: Local, line: str) -> None:
    await opened_as(caller := await local.world.caller(), 50, local.make("mine", 4096))
    local.dirty("others", 200 * MIB)
    before = local.alone.written()
    assert await told(caller, line) == "ok"
    assert local.alone.written() - before >= 200 * MIB


async def test_all_files_of_a_group_are_synced(local: Local) -> None:
    caller = await local.world.caller()
    local.alone.waits = True
    for number in range(20):
        await opened_as(caller, 50 + number, local.make(str(number)))
    for number in range(20):
        await wrote(caller, 50 + number)
    before = local.alone.written()
    for number in range(20):
        await caller.begin(f"os.fdatasync({50 + number})")
    await local.world.waiting(20)
    assert local.alone.written() - before < MIB
    local.alone.gate.set()
    assert [await caller.outcome() for _ in range(20)] == ["ok"] * 20
    assert 20 * MIB <= local.alone.written() - before < 20 * MIB + LEAST_BYTES
    assert [len(said.answers) for said in local.alone.said] == [1, 19]


async def test_a_deleted_file_and_a_directory_are_synced(local: Local) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, local.make("gone"))
    await opened_as(caller, 51, local.data, "os.O_RDONLY")
    (local.data / "gone").unlink()
    await wrote(caller, 50, 4 * MIB)
    before = local.alone.written()
    assert await told(caller, "os.fsync(50)") == "ok"
    assert local.alone.written() - before >= 4 * MIB
    assert await told(caller, "os.fsync(51)") == "ok"
    assert [said.answers for said in local.alone.said] == [[Answer(0)], [Answer(0)]]


async def test_what_cannot_be_synced_fails_as_by_the_kernel_and_is_no_loss(local: Local) -> None:
    caller = await local.world.caller()
    os.mkfifo(local.data / "fifo")
    await opened_as(caller, 50, local.make("file"), "os.O_PATH")
    await opened_as(caller, 51, local.data / "fifo")
    await caller.begin(
        "r, w = os.pipe(); s = socket.socketpair(); os.dup2(w, 52); os.dup2(s[0].fileno(), 53)"
    )
    assert await caller.outcome() == "ok"
    wanted = {
        50: errno.EBADF,
        51: errno.EINVAL,
        52: errno.EINVAL,
        53: errno.EINVAL,
        54: errno.EBADF,
    }
    for number, error in wanted.items():
        assert (number, await told(caller, f"os.fsync({number})")) == (number, str(error))
    assert len(local.alone.said) == 2  # the others are of no volume
    assert not any(said.lost for said in local.alone.said)
    assert await local.alone.driver.failed() == frozenset()


async def test_a_file_system_in_a_file_of_the_volume_is_brought_into_it_first(local: Local) -> None:
    inner = local.data / "inner"
    with stacked(local.data / "image", inner):
        caller = await local.world.caller()
        await opened_as(caller, 50, inner / "file", "os.O_RDWR | os.O_CREAT")
        await wrote(caller, 50, 8 * MIB)
        before = local.alone.written()
        assert await told(caller, "os.fdatasync(50)") == "ok"
        assert local.alone.began[0] - before >= 8 * MIB
        assert await told(caller, "os.close(50)") == "ok"


# -- the caller's descriptor -------------------------------------------------------------------------


async def queued(local: Local, caller: Caller, file: Path) -> int:
    """A call on descriptor 50 that waits, and has something to write; how much was written before."""
    local.alone.waits = True
    await opened_as(caller, 50, file)
    await wrote(caller, 50, 4 * MIB)
    before = local.alone.written()
    await caller.begin("os.fdatasync(50)")
    await until(lambda: bool(local.alone.waiting))
    return before


@pytest.mark.parametrize("meanwhile", ["os.close(50)", "os.dup2(51, 50)"])
async def test_a_descriptor_that_is_closed_or_another_files_by_now(
    local: Local, meanwhile: str
) -> None:
    """What the call was about is synced, and it succeeds, as it would if it had begun a moment before."""
    caller = await local.world.caller()
    await opened_as(caller, 51, local.make("other"))
    before = await queued(local, caller, local.make("file"))
    assert await told(caller, meanwhile) == "ok"
    local.alone.gate.set()
    assert await caller.outcome() == "ok"
    (said,) = local.alone.said
    assert (said.whole, said.answers) == (True, [Answer(0)])
    assert local.alone.written() - before >= 4 * MIB


async def test_a_caller_that_was_killed_is_not_synced_and_pins_nothing(local: Local) -> None:
    caller = await local.world.caller()
    before = await queued(local, caller, local.make("file"))
    await caller.end()
    local.alone.gate.set()
    await until(lambda: bool(local.alone.said))
    assert local.alone.written() - before < 4 * MIB
    assert not any("mounts/one/file" in name for name in own_files())


def own_files() -> Iterator[str]:
    """What this process has open."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield os.readlink(f"/proc/self/fd/{fd}")


async def test_a_descriptor_that_is_shared_over_fork_is_synced(local: Local) -> None:
    file = local.make("file")
    line = (
        f"fd = os.open({str(file)!r}, os.O_RDWR); child = os.fork() or (os.write(fd, bytes({4 * MIB})),"
        " os.fsync(fd), os._exit(7)); assert os.waitpid(child, 0)[1] == 7 << 8; os.fdatasync(fd)"
    )
    caller = await local.world.caller()
    before = local.alone.written()
    assert await told(caller, line) == "ok"
    assert local.alone.written() - before >= 4 * MIB
    assert local.alone.confirmed == 2


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EPERM])
async def test_without_the_callers_own_descriptor_the_file_is_opened_anew(
    local: Local, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """As of a thread before Linux 6.9, and where a security module gives no descriptor away. The kernel performs
    the call then: it tells what the caller's descriptor has not been told.
    """

    def pidfd_open(pid: int, flags: int = 0) -> int:
        raise OSError(error, "no")

    monkeypatch.setattr(borrowing.os, "pidfd_open", pidfd_open)
    caller = await local.world.caller()
    await opened_as(caller, 50, local.make("file"))
    local.dirty("others", 50 * MIB)
    await wrote(caller, 50, 4 * MIB)
    before = local.alone.written()
    assert await told(caller, "os.fdatasync(50)") == "ok"
    (said,) = local.alone.said
    assert (said.whole, said.answers) == (False, [Answer(None)])
    assert 4 * MIB <= local.alone.written() - before < 4 * MIB + LEAST_BYTES


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["os.fsync", "os.fdatasync", "syncfs"])
async def test_an_error_is_the_calls_answer_and_nothing_is_confirmed_after_it(
    local: Local, call: str, error: int
) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    await opened_as(caller, 51, local.make("other", 4096))
    local.refuse(error)
    await wrote(caller, 50, 64 * MIB)
    if call == "syncfs":  # which error it is told depends on the kernel
        assert await told(caller, SYNCFS) in FAILURES
    else:
        assert await told(caller, f"{call}(50)") == str(error)
    for number in (50, 51, 50):
        assert await told(caller, f"os.fsync({number})") in FAILURES
    assert local.alone.confirmed == 0
    assert await local.alone.driver.failed() == {local.alone.volume.id}
    with pytest.raises(StorageError):
        await local.alone.driver.snapshot(local.alone.volume.id, epoch=1)
    assert (local.pool / "images" / local.alone.volume.id / "lost-1").exists()


async def test_a_full_pool_is_told_as_it_is(local: Local) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    local.fill_up()
    await wrote(caller, 50, 64 * MIB)
    assert await told(caller, "os.fsync(50)") in (str(errno.ENOSPC), str(errno.EIO))
    assert await told(caller, "os.fsync(50)") != "ok"
    assert local.alone.confirmed == 0
    assert await local.alone.driver.failed() == {local.alone.volume.id}
    (local.pool / "ballast").unlink()


async def test_all_who_share_a_descriptor_are_told(local: Local) -> None:
    """The kernel tells one of them."""
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    await caller.begin("os.dup2(50, 51)")
    assert await caller.outcome() == "ok"
    local.refuse(errno.ENOSPC)
    await wrote(caller, 50, 64 * MIB)
    local.alone.waits = True
    for number in (50, 51, 50):
        await caller.begin(f"os.fdatasync({number})")
    await local.world.waiting(3)
    local.alone.gate.set()
    outcomes = sorted([await caller.outcome() for _ in range(3)])
    assert outcomes == [str(errno.ENOSPC), str(errno.EIO), str(errno.EIO)]
    assert local.alone.confirmed == 0


async def test_a_loss_that_was_told_to_somebody_else_is_found_by_the_next_generation(
    local: Local,
) -> None:
    """As to a write with O_SYNC, which is no sync call. The kernel does not tell it to who opens the file later."""
    file = await local.overwritten()
    local.refuse(errno.ENOSPC)
    with file.open("r+b", 0) as other:
        other.write(os.urandom(64 * MIB))
        with pytest.raises(OSError, match="No space"):
            os.fsync(other.fileno())
    with pytest.raises(StorageError):
        await local.alone.driver.snapshot(local.alone.volume.id, epoch=1)
    caller = await local.world.caller()
    await opened_as(caller, 50, file)
    assert await told(caller, "os.fdatasync(50)") == str(errno.EIO)
    assert local.alone.confirmed == 0


async def test_an_error_that_was_told_to_a_call_that_a_signal_ended_is_told_again(
    local: Local,
) -> None:
    caller = await local.world.caller()
    await opened_as(caller, 50, await local.overwritten())
    local.refuse(errno.ENOSPC)
    await wrote(caller, 50, 64 * MIB)
    local.alone.holds_answers = True
    thread = await caller.begin("os.fdatasync(50)")
    await until(lambda: bool(local.alone.said))
    await local.world.restart_call(caller, thread)
    local.alone.holds_answers = False
    local.alone.gate.set()
    assert await caller.outcome() == str(errno.EIO)
    assert [said.lost for said in local.alone.said] == [True, True]
    assert local.alone.confirmed == 0


async def test_it_was_a_volume_of_its_own_file_system(local: Local) -> None:
    """Else these tests would prove nothing."""
    place = locate(local.data, own_mounts())
    assert place.path == "/data"
