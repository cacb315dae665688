"""Images and a pool that gets full: they grow with it, notice what it refused, and are stopped before."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pannier.core.errors import PoolFull, StorageError
from pannier.core.room import ImageLimits, RoomLevel, plan, shrinking
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs.allocation import Allocation
from pannier.storage.btrfs.pool import close_pool, create_pool, grow_pool
from pannier.storage.image import ext4, loopdevice
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

pytestmark = pytest.mark.root

MIB = 1 << 20
POOL_BYTES = 700 * MIB
ROOT = RootAttributes()


@dataclass
class Pool:
    """A small pool of its own, with a driver, and a volume as large as it."""

    file: Path
    mountpoint: Path
    driver: ImageDriver
    volume: str

    @property
    def live(self) -> Path:
        return self.mountpoint / "images" / self.volume / "live-1" / IMAGE

    async def attached(self, *, grow: bool = False) -> Path:
        await self.driver.attach(self.volume, epoch=1, grow=grow)
        return self.driver.data_path(self.volume, 1)

    async def detached(self) -> None:
        await self.driver.detach(self.volume, epoch=1)
        await until(lambda: loopdevice.find(self.live) is None)

    def nearly_full(self) -> Path:
        """A file of somebody else, which leaves little room; it is to be removed."""
        ballast = self.mountpoint / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free_bytes() - 80 * MIB)
        return ballast

    def free_bytes(self) -> int:
        return Allocation.of(self.mountpoint).free_bytes()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="pannier-room-") as folder:
        file, mountpoint = Path(folder) / "pool.img", Path(folder) / "pool"
        await create_pool(file, mountpoint=mountpoint, size_bytes=POOL_BYTES)
        driver = ImageDriver(mountpoint, staging=Path(folder) / "staging")
        await driver.open()
        pool = Pool(file, mountpoint, driver, f"data.{uuid.uuid4().hex[:8]}")
        await driver.create(pool.volume, epoch=1, root=ROOT, size_bytes=None)
        try:
            yield pool
        finally:
            with contextlib.suppress(StorageError):
                await driver.detach(pool.volume, epoch=1)
            await driver.close()
            await until(lambda: asyncio.run(close_pool(mountpoint)))


async def until(there: Callable[[], bool]) -> None:
    for _ in range(100):
        if await asyncio.to_thread(there):
            return
        await asyncio.sleep(0.1)
    pytest.fail("not within 10 s")


# -- growing ------------------------------------------------------------------------------------------


async def enlarge(pool: Pool) -> None:
    await grow_pool(pool.file, mountpoint=pool.mountpoint, size_bytes=2 * POOL_BYTES)


async def test_without_a_size_it_grows_with_the_pool(pool: Pool) -> None:
    data = await pool.attached()
    (data / "kept").write_text("this")
    before = os.statvfs(data)
    await pool.detached()
    await enlarge(pool)
    await pool.attached(grow=True)
    after = os.statvfs(data)
    assert after.f_blocks > 1.8 * before.f_blocks
    assert after.f_files > 1.8 * before.f_files
    assert (data / "kept").read_text() == "this"
    await pool.driver.snapshot(pool.volume, epoch=1)


@contextlib.contextmanager
def in_use(data: Path) -> Iterator[Path]:
    """As containers use it: through a mount of their own, which outlives ours."""
    with tempfile.TemporaryDirectory(prefix="pannier-use-") as place:
        subprocess.run(["mount", "--bind", data, place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


async def test_one_that_is_in_use_goes_on_and_is_there_for_the_next(pool: Pool) -> None:
    data = await pool.attached()
    with in_use(data) as theirs:
        with (theirs / "file").open("w") as file:
            await enlarge(pool)
            await pool.attached(grow=True)
            file.write("written meanwhile")
        await pool.driver.detach(pool.volume, epoch=1)
        await pool.attached(grow=True)
        (theirs / "more").write_text("written later")
        assert (data / "more").read_text() == "written later"
    before = os.statvfs(data)
    generation = await pool.driver.snapshot(pool.volume, epoch=1)
    await pool.detached()
    await pool.attached(grow=True)
    assert (data / "file").read_text() == "written meanwhile"
    assert (data / "more").read_text() == "written later"
    assert os.statvfs(data).f_blocks >= before.f_blocks
    assert await pool.driver.snapshot(pool.volume, epoch=1) > generation


async def test_growing_that_was_cut_short_leaves_nothing_behind(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await pool.attached()
    (data / "kept").write_text("this")
    await pool.detached()
    await enlarge(pool)

    class Cut(Exception):
        """As the end of the process."""

    def cut(device: Path) -> None:
        raise Cut

    monkeypatch.setattr("pannier.storage.image.ext4.grow_unmounted", cut)
    with pytest.raises(Cut):
        await pool.attached(grow=True)
    monkeypatch.undo()
    await pool.driver.open()
    assert {each.name for each in pool.live.parents[1].iterdir()} == {
        "generations", "incoming", "live-1",
    }  # fmt: skip
    await pool.attached()
    assert (data / "kept").read_text() == "this"


# -- what the disk refused ----------------------------------------------------------------------------


def fill(path: Path, *, durable: bool = False) -> None:
    """Write until the first error, which is that of the pool and not of the volume."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_DSYNC if durable else 0)
    fd = os.open(path, flags)
    try:
        for _ in range(2 * POOL_BYTES // MIB):
            os.write(fd, os.urandom(MIB))
            os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOSPC, errno.EROFS):
            raise
    finally:
        os.close(fd)


async def test_after_the_disk_refused_a_write_nothing_is_confirmed_until_it_was_attached_anew(
    pool: Pool,
) -> None:
    data = await pool.attached()
    (data / "before").write_text("this")
    kept = await pool.driver.snapshot(pool.volume, epoch=1)
    ballast = pool.nearly_full()
    await asyncio.to_thread(fill, data / "all")
    for _ in range(3):  # whoever asks, and however often
        with pytest.raises(StorageError):
            await pool.driver.snapshot(pool.volume, epoch=1)
    assert await pool.driver.failed() == {pool.volume}
    ballast.unlink()
    with pytest.raises(StorageError, match="mounted anew"):
        await pool.driver.snapshot(pool.volume, epoch=1)
    await pool.detached()
    assert await pool.attached() == data
    assert await pool.driver.failed() == frozenset()
    assert (data / "before").read_text() == "this"
    assert await pool.driver.snapshot(pool.volume, epoch=1) > kept


async def test_what_was_refused_is_remembered_by_the_next_daemon(pool: Pool) -> None:
    data = await pool.attached()
    ballast = pool.nearly_full()
    await asyncio.to_thread(fill, data / "all")
    with pytest.raises(StorageError):
        await pool.driver.snapshot(pool.volume, epoch=1)
    another = ImageDriver(pool.mountpoint, staging=data.parents[1])
    await another.open()
    assert await another.failed() == {pool.volume}
    pool.driver._image(pool.volume, 1)._watched.forget()  # as the end of its process does
    ballast.unlink()
    await another.seal(pool.volume, epoch=1)  # checked on the way
    await another.unseal(pool.volume, epoch=1)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def remount(pool: Pool, how: str) -> None:
    """A file that is open for writing keeps a file system from becoming read-only; a failing disk asks nobody."""
    pool.driver._kept_records.close()
    run("mount", "-o", f"remount,{how}", str(pool.mountpoint))


async def test_while_the_pool_takes_no_writes_what_is_there_can_be_read(pool: Pool) -> None:
    """As after a disk has failed: it is all that there may be of a volume with one copy."""
    data = await pool.attached()
    (data / "kept").write_text("this")
    await pool.detached()
    remount(pool, "ro")
    try:
        assert (await pool.attached() / "kept").read_text() == "this"
        with pytest.raises(OSError, match="Read-only"):
            (data / "more").write_text("that")
    finally:
        remount(pool, "rw")
    await pool.attached()
    (data / "more").write_text("that")


async def test_what_was_only_shown_is_not_attached_beside_who_still_looks_at_it(
    pool: Pool, tmp_path: Path
) -> None:
    await pool.attached()
    await pool.detached()
    remount(pool, "ro")
    try:
        data = await pool.attached()
        run("mount", "--bind", str(data), str(tmp_path))
    finally:
        remount(pool, "rw")
    try:
        with pytest.raises(StorageError, match=r"mounted from /dev/loop\d+ by somebody else"):
            await pool.attached()
        assert list(data.iterdir()) == []  # it is shown still
        assert os.path.ismount(data.parent)
    finally:
        run("umount", str(tmp_path))
    (await pool.attached() / "file").write_text("this")


@pytest.mark.parametrize("step", ["attached", "mount"])
async def test_what_cannot_be_mounted_again_is_shown_as_before(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No loop device is to be had for writing, or the kernel refuses the file system."""
    data = await pool.attached()
    (data / "kept").write_text("this")
    await pool.detached()
    remount(pool, "ro")
    try:
        await pool.attached()
    finally:
        remount(pool, "rw")
    module = loopdevice if step == "attached" else ext4
    real = getattr(module, step)

    def refuses(*args: object, read_only: bool = False, **named: object) -> object:
        if not read_only:
            raise OSError(errno.ENODEV, "No such device")
        return real(*args, read_only=True, **named)

    with monkeypatch.context() as patched:
        patched.setattr(module, step, refuses)
        with pytest.raises(StorageError, match="No such device"):
            await pool.attached()
        assert (data / "kept").read_text() == "this"
        with pytest.raises(OSError, match="Read-only"):
            (data / "more").write_text("that")
    await pool.attached()
    (data / "more").write_text("that")


def limit(pool: Pool, size: str) -> None:
    """Somebody limits what the volume may take of the pool: writes are refused although there is room."""
    run("btrfs", "qgroup", "limit", size, str(pool.live.parent))


async def test_after_two_refusals_with_room_its_writes_go_through_the_page_cache(
    pool: Pool,
) -> None:
    """Direct I/O of programs that the kernel cannot bring together with ours ends so, too."""
    for _ in range(2):
        data = await pool.attached()
        space = await pool.driver.space(pool.volume)
        assert space is not None
        assert space.direct
        limit(pool, "8M")
        await asyncio.to_thread(fill, data / "all")
        with pytest.raises(StorageError):
            await pool.driver.snapshot(pool.volume, epoch=1)
        limit(pool, "none")
        await pool.detached()
    data = await pool.attached()
    space = await pool.driver.space(pool.volume)
    assert space is not None
    assert not space.direct
    (data / "file").write_text("this")
    await pool.driver.snapshot(pool.volume, epoch=1)
    await pool.detached()
    assert (await pool.attached() / "file").read_text() == "this"


# -- stopping before that -----------------------------------------------------------------------------


async def watch(pool: Pool, stopped: asyncio.Event) -> None:
    """What the agent does with a pool, for one volume whose writers are in no container."""
    level, rate, seen = RoomLevel.AMPLE, 0.0, None
    loop = asyncio.get_running_loop()
    while True:
        room, now = await pool.driver.room(note_used=True), loop.time()
        if seen is not None:
            taken, seconds = seen[1] - room.free_bytes, now - seen[0]
            rate = shrinking(rate, taken=taken, seconds=seconds, level=level)
        seen = now, room.free_bytes
        decided = plan(room, before=level, rate=rate, shortest=0.1, longest=2.0)
        level, full = decided.level, decided.level is RoomLevel.FULL
        frozen = frozenset([pool.volume] if full else [])
        await pool.driver.restrict(full=full, limits=decided.limits, frozen=frozen)
        if full:
            stopped.set()
        await asyncio.sleep(decided.next_look)


def writer(file: Path, how: str) -> subprocess.Popen[bytes]:
    """Two of them write less than the volume's size, and more than the pool can take."""
    command = ["dd", "if=/dev/urandom", f"of={file}", "bs=1M", "count=300", how]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


async def stand_still(files: list[Path]) -> None:
    """Wait until nobody writes. At first what was only reserved may let them go on once more."""
    before: list[int] = []
    while before != (before := [file.stat().st_size for file in files]):
        await asyncio.sleep(1)


@pytest.mark.parametrize("how", ["oflag=direct", "conv=notrunc", "oflag=dsync"])
async def test_a_writer_at_the_disks_full_speed_stands_still_before_the_pool_is_full(
    pool: Pool, how: str
) -> None:
    data = await pool.attached()
    stopped = asyncio.Event()
    watching = asyncio.create_task(watch(pool, stopped))
    writers = [writer(data / str(number), how) for number in range(2)]
    try:
        await asyncio.wait_for(stopped.wait(), 60)
        await asyncio.wait_for(stand_still([data / "0", data / "1"]), 60)
        assert pool.free_bytes() > 0
        assert [each.poll() for each in writers] == [None, None]
        with pytest.raises(PoolFull):
            await pool.driver.create("other.1", epoch=1, root=ROOT, size_bytes=64 * MIB)
        await grow_pool(pool.file, mountpoint=pool.mountpoint, size_bytes=8 * POOL_BYTES)
        assert [await asyncio.to_thread(each.wait, 120) for each in writers] == [0, 0]
    finally:
        for each in writers:
            each.kill()
        watching.cancel()
        await pool.driver.restrict(full=False, limits=None, frozen=frozenset())
        for each in writers:
            each.wait()
    assert await pool.driver.failed() == frozenset()
    await pool.driver.snapshot(pool.volume, epoch=1)


NARROW = ImageLimits(dirty_bytes=16 * MIB, growth_bytes=48 * MIB)


async def restrict(pool: Pool, limits: ImageLimits | None) -> None:
    await pool.driver.restrict(full=False, limits=limits, frozen=frozenset())


@pytest.mark.parametrize("how", ["oflag=direct", "conv=notrunc", "conv=fsync"])
async def test_a_writer_that_no_look_could_stop_in_time_is_told_that_there_is_no_space(
    pool: Pool, how: str
) -> None:
    data = await pool.attached()
    await restrict(pool, NARROW)
    before = pool.free_bytes()
    for number in range(2):
        file = writer(data / str(number), how)
        _, told = await asyncio.to_thread(file.communicate, None, 60)
        assert b"No space left" in told
    await pool.driver.write_out(pool.volume)
    assert before - pool.free_bytes() < NARROW.growth_bytes + 32 * MIB  # its own blocks too
    assert os.statvfs(data).f_bavail == 0
    assert await pool.driver.failed() == frozenset()
    await pool.driver.snapshot(pool.volume, epoch=1)


async def test_what_is_taken_between_the_look_and_the_limit_counts(pool: Pool) -> None:
    """Else a fast writer takes it twice, and the pool tells the loop device that it is full."""
    data = await pool.attached()
    before = (await pool.driver.room(note_used=True)).free_bytes
    (data / "meanwhile").write_bytes(os.urandom(44 * MIB))
    await pool.driver.write_out(pool.volume)
    await restrict(pool, NARROW)
    fill(data / "more")
    assert await pool.driver.failed() == frozenset()
    await pool.driver.write_out(pool.volume)
    assert before - pool.free_bytes() < NARROW.growth_bytes + 32 * MIB  # its own blocks too
    await restrict(pool, None)


async def test_the_next_daemon_lets_an_image_grow_again(pool: Pool) -> None:
    data = await pool.attached()
    room = os.statvfs(data).f_bavail
    await restrict(pool, NARROW)
    assert os.statvfs(data).f_bavail < room
    another = ImageDriver(pool.mountpoint, staging=data.parents[1])
    await another.open()
    await another.restrict(full=False, limits=None, frozen=frozenset())
    assert os.statvfs(data).f_bavail == room
    another._image(pool.volume, 1)._watched.forget()  # as the end of its process does


async def test_writers_are_limited_while_everything_is_being_written_out(pool: Pool) -> None:
    """That may take as long as a disk takes for all that memory holds."""
    data = await pool.attached()
    (data / "file").write_bytes(bytes(MIB))
    run("fsfreeze", "--freeze", str(pool.mountpoint))
    try:
        writing_out = asyncio.create_task(pool.driver.write_out(pool.volume))
        await until(lambda: "syncfs" in "".join(map(stack, Path("/proc/self/task").iterdir())))
        await asyncio.wait_for(restrict(pool, NARROW), 10)
        assert not await asyncio.wait_for(pool.driver.refused(pool.volume, epoch=1), 10)
        assert not writing_out.done()
    finally:
        run("fsfreeze", "--unfreeze", str(pool.mountpoint))
    await writing_out


def stack(task: Path) -> str:
    """Where in the kernel a thread waits."""
    with contextlib.suppress(OSError):
        return (task / "stack").read_text()
    return ""


# -- giving room back -----------------------------------------------------------------------------------


async def given_back(pool: Pool) -> None:
    async with asyncio.timeout(60):
        while await pool.driver.gives_back():
            await asyncio.sleep(0.05)


async def test_what_was_deleted_is_free_once_the_kernel_has_given_it_back(pool: Pool) -> None:
    """Not before: whoever looked at the room alone would delete more than is needed."""
    data = await pool.attached()
    (data / "bulk").write_bytes(os.urandom(200 * MIB))
    await pool.driver.write_out(pool.volume)
    await pool.detached()
    await given_back(pool)
    before = pool.free_bytes()
    await pool.driver.delete(pool.volume)
    await given_back(pool)
    assert pool.free_bytes() > before + 190 * MIB


async def test_a_generation_gives_back_what_was_overwritten_since(pool: Pool) -> None:
    data = await pool.attached()
    file = data / "bulk"
    file.write_bytes(os.urandom(100 * MIB))
    generation = await pool.driver.snapshot(pool.volume, epoch=1)
    with file.open("r+b") as opened:
        opened.write(os.urandom(100 * MIB))
        os.fsync(opened.fileno())
    await given_back(pool)
    before = pool.free_bytes()
    await pool.driver.delete_generation(pool.volume, generation)
    await given_back(pool)
    assert pool.free_bytes() > before + 90 * MIB
    (data / "more").write_text("goes on")
    assert await pool.driver.snapshot(pool.volume, epoch=1) > generation
