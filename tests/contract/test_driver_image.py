"""What only volumes as images do: their size, their loop device, their end, and what a peer may send."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from test_driver_kit import SIZE, Nodes, image_nodes, pools, portrait, workplace

from pannier.core.errors import Corrupt, InvalidInput, StorageError
from pannier.core.line import OnTop
from pannier.host.mountinfo import mount_at
from pannier.storage.image import ext4, live, loopdevice
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


def live_image(nodes: Nodes, *, epoch: int = 1) -> Path:
    return nodes.a._home(nodes.volume).live(epoch) / IMAGE  # type: ignore[attr-defined]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def elsewhere(directory: Path) -> Iterator[int]:
    """A file that is open for writing in a mount namespace of its own, which copied ``directory``."""
    script = f"exec 3>>{directory}/elsewhere; echo ready; read _"
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    fd = os.open(f"/proc/{holder.pid}/fd/3", os.O_WRONLY | os.O_APPEND)
    try:
        yield fd
    finally:
        os.close(fd)
        holder.communicate(b"\n")


async def until_detached(image: Path) -> None:
    """Other programs may look at the device for a moment."""
    for _ in range(100):
        if loopdevice.find(image) is None:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{image} is still attached")


def fill(path: Path) -> int:
    """Write a file until there is no room; the bytes written."""
    written = 0
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                written += file.write(bytes(1 << 20))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return written


# -- size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 << 20, SIZE])
async def test_files_can_fill_exactly_the_size(nodes: Nodes, size: int) -> None:
    await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=size)
    data = await nodes.attached(nodes.a, epoch=1)
    found = os.statvfs(data)
    assert size <= found.f_bavail * found.f_frsize < size + (1 << 20)
    written = fill(data / "all")
    assert size - (2 << 20) <= written <= size + (1 << 20)


async def test_a_size_that_the_pool_does_not_have_is_refused(nodes: Nodes) -> None:
    total = (await nodes.a.capacity()).total_bytes
    with pytest.raises(InvalidInput, match="more than the pool"):
        await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=2 * total)
    assert nodes.volume not in await nodes.a.volumes()


async def test_the_smallest_size_is_one_and_a_smaller_one_is_refused(nodes: Nodes) -> None:
    smallest = ext4.SMALLEST_ROOM
    with pytest.raises(InvalidInput, match="too small") as caught:
        await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=smallest - 1)
    assert "8M or more" in str(caught.value.remedy)
    await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=smallest)
    data = await nodes.attached(nodes.a, epoch=1)
    assert fill(data / "all") >= smallest


async def test_without_a_size_it_is_as_large_as_the_pool_and_takes_nothing(nodes: Nodes) -> None:
    await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=None)
    total = (await nodes.a.capacity()).total_bytes
    assert live_image(nodes).stat().st_size == total
    assert await nodes.a.used_bytes(nodes.volume) < 2 << 20


async def test_there_are_inodes_for_small_files(nodes: Nodes) -> None:
    data = await nodes.create()
    assert os.statvfs(data).f_ffree >= SIZE // 8192


# -- attached -----------------------------------------------------------------------------------------


async def test_what_is_not_used_has_no_loop_device(nodes: Nodes) -> None:
    await nodes.create()
    assert loopdevice.find(live_image(nodes)) is not None
    await nodes.a.detach(nodes.volume, epoch=1)
    await nodes.a.detach(nodes.volume, epoch=1)
    await until_detached(live_image(nodes))


async def test_how_it_is_mounted_is_said(nodes: Nodes) -> None:
    data = await nodes.create()
    mount = mount_at(data.parent)
    assert mount is not None
    assert mount.fstype == "ext4"
    shown = run("findmnt", "-no", "OPTIONS", str(data.parent)).strip().split(",")
    assert {"nosuid", "nodev", "noatime", "data_err=abort"} <= set(shown)
    device = loopdevice.find(live_image(nodes))
    assert device is not None
    assert (device.settings / "loop/dio").read_text().strip() == "1"
    assert (device.settings / "loop/autoclear").read_text().strip() == "1"
    assert (device.settings / "queue/logical_block_size").read_text().strip() == "4096"
    errors = f"/sys/fs/ext4/loop{device.number}/errors_count"
    assert Path(errors).read_text().strip() == "0"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("queue/write_cache", "write through"),
        ("queue/iostats", "0"),
        ("queue/discard_max_bytes", "0"),
    ],
)
async def test_a_number_whose_settings_lose_data_is_made_anew(
    nodes: Nodes, workplace: Path, setting: str, value: str
) -> None:
    """Whoever had the loop device before may have left it so."""
    scratch = workplace / "scratch"
    scratch.write_bytes(bytes(1 << 20))
    used = Path(run("losetup", "--find", "--show", str(scratch)).strip())
    stale = loopdevice.LoopDevice.numbered(int(used.name.removeprefix("loop")))
    (stale.settings / setting).write_text(value)
    run("losetup", "--detach", str(used))
    await nodes.create()
    device = loopdevice.find(live_image(nodes))
    assert device is not None
    assert (device.settings / "queue/write_cache").read_text().strip() == "write back"
    assert (device.settings / "queue/iostats").read_text().strip() == "1"
    assert (device.settings / "queue/discard_max_bytes").read_text().strip() != "0"


async def test_an_image_is_not_attached_twice(nodes: Nodes, workplace: Path) -> None:
    await nodes.create()
    await nodes.a.detach(nodes.volume, epoch=1)
    other = run("losetup", "--find", "--show", str(live_image(nodes))).strip()
    try:
        with pytest.raises(StorageError, match=f"{other} has the image"):
            await nodes.a.attach(nodes.volume, epoch=1, grow=False)
    finally:
        run("losetup", "--detach", other)
    await nodes.a.attach(nodes.volume, epoch=1, grow=False)


async def test_an_image_with_copy_on_write_is_refused(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    await nodes.a.detach(nodes.volume, epoch=1)
    image = live_image(nodes)
    copy = image.with_name("copy")
    run("cp", "--reflink=never", "--sparse=always", str(image), str(copy))
    copy.rename(image)
    with pytest.raises(StorageError, match="copy-on-write"):
        await nodes.a.attach(nodes.volume, epoch=1, grow=False)


# -- what a peer may send -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        ("tune2fs", "-e", "panic"),
        ("tune2fs", "-E", "mount_opts=errors=panic"),
        ("tune2fs", "-O", "project,quota"),
        ("tune2fs", "-O", "ea_inode"),
        ("tune2fs", "-O", "^has_journal"),
        ("dd", "if=/dev/zero", "bs=4096", "count=1", "conv=notrunc"),
        ("truncate", "-s", "16M"),
    ],
    ids=lambda change: " ".join(change[:3]),
)
async def test_a_file_system_that_is_none_of_ours_is_not_mounted(
    nodes: Nodes, change: tuple[str, ...]
) -> None:
    await nodes.create()
    await nodes.a.detach(nodes.volume, epoch=1)
    image = str(live_image(nodes))
    run(*change, f"of={image}" if change[0] == "dd" else image)
    with pytest.raises(
        Corrupt, match=r"no ext4|features|no journal|stop the machine|mount options|smaller"
    ):
        await nodes.a.attach(nodes.volume, epoch=1, grow=False)
    await until_detached(live_image(nodes))


async def test_a_link_in_the_place_of_an_image_is_not_followed(
    nodes: Nodes, workplace: Path
) -> None:
    await nodes.create()
    await nodes.a.detach(nodes.volume, epoch=1)
    image = live_image(nodes)
    target = workplace / "elsewhere"
    image.rename(image.with_name("aside"))
    target.write_bytes(b"precious")
    image.symlink_to(target)
    with pytest.raises(StorageError):
        await nodes.a.attach(nodes.volume, epoch=1, grow=False)
    assert target.read_bytes() == b"precious"


# -- the end ------------------------------------------------------------------------------------------


async def test_a_sealed_volume_takes_no_write_through_any_copy_of_its_mount(nodes: Nodes) -> None:
    data = await nodes.create()
    with elsewhere(data) as fd:
        os.write(fd, b"before\n")
        generation = await nodes.a.seal(nodes.volume, epoch=1)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, b"after\n")
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert (there / "elsewhere").read_bytes() == b"before\n"


async def test_what_stays_after_it_was_sealed_leaves_a_copy_of_the_mount_behind(
    nodes: Nodes,
) -> None:
    """A hand-over failed, and a container that sees the whole host keeps its dead mount for ever."""
    data = await nodes.create()
    with elsewhere(data) as fd:
        os.write(fd, b"before\n")
        for _ in range(2):  # and it fails again
            await nodes.a.seal(nodes.volume, epoch=1)
            await nodes.resume(nodes.a, epoch=1)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(fd, b"after\n")
            with (data / "elsewhere").open("ab") as file:
                file.write(b"here\n")
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
        left = live_image(nodes).stat().st_ino
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert (there / "elsewhere").read_bytes() == b"before\nhere\nhere\n"
    assert live_image(nodes).stat().st_ino == left
    await nodes.a.seal(nodes.volume, epoch=1)
    await until_detached(live_image(nodes))


async def test_a_run_that_ended_while_it_left_a_copy_behind_is_made_good(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await nodes.create()

    def end(*_: object, **__: object) -> None:
        raise SystemExit

    with elsewhere(data) as fd:
        os.write(fd, b"before\n")
        await nodes.a.seal(nodes.volume, epoch=1)
        await nodes.a.unseal(nodes.volume, epoch=1)
        steps = ((ext4, "mount"), (ext4, "shut_down"), (ext4, "unmount"), (live, "exchange"))
        for module, step in steps:
            with monkeypatch.context() as patch:
                patch.setattr(module, step, end)
                with pytest.raises(SystemExit):
                    await nodes.a.attach(nodes.volume, epoch=1, grow=False)
            await nodes.a.open()
        again = await nodes.attached(nodes.a, epoch=1)
        assert (again / "elsewhere").read_bytes() == b"before\n"
        (again / "new").write_text("x")
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, b"after\n")


async def test_what_only_a_copy_of_an_earlier_mount_keeps_is_sealed_too(nodes: Nodes) -> None:
    """An idle volume was detached, and a container that sees the whole host still has its mount."""
    data = await nodes.create()
    with elsewhere(data) as fd:
        await nodes.a.detach(nodes.volume, epoch=1)
        os.write(fd, b"before\n")
        generation = await nodes.a.seal(nodes.volume, epoch=1)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, b"after\n")
        await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert (there / "elsewhere").read_bytes() == b"before\n"


async def test_what_a_copy_of_an_earlier_mount_keeps_is_mounted_again(nodes: Nodes) -> None:
    """As a container with ``-v /:/host`` has one: there is one file system of an image, never two."""
    data = await nodes.create()
    with elsewhere(data) as fd:
        await nodes.a.detach(nodes.volume, epoch=1)
        os.write(fd, b"one\n")
        early = await nodes.a.snapshot(nodes.volume, epoch=1)  # with what only memory holds
        await nodes.a.attach(nodes.volume, epoch=1, grow=False)
        os.write(fd, b"two\n")
        assert (data / "elsewhere").read_bytes() == b"one\ntwo\n"
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert (there / "elsewhere").read_bytes() == b"one\ntwo\n"
    await nodes.transfer(nodes.a, nodes.b, early)
    await nodes.b.promote(nodes.volume, early, epoch=3, size_bytes=None, on_top=OnTop.NOTHING)
    earlier = await nodes.attached(nodes.b, epoch=3)
    assert (earlier / "elsewhere").read_bytes() == b"one\n"


async def test_a_crash_right_before_the_shutdown_is_finished_by_the_next_start(
    nodes: Nodes,
) -> None:
    data = await nodes.create()
    with elsewhere(data) as fd:
        os.write(fd, b"before\n")
        live_image(nodes).parents[1].joinpath("shut-1").touch()
        nodes.a._image(nodes.volume, 1)._watched.forget()  # type: ignore[attr-defined]
        again = ImageDriver(data.parents[2] / "pool-a", staging=data.parents[1])
        await again.open()
        with pytest.raises(OSError, match="Input/output error"):
            os.write(fd, b"after\n")
    await until_detached(live_image(nodes))
    await again.seal(nodes.volume, epoch=1)


async def test_a_file_system_that_found_itself_damaged_is_not_believed(nodes: Nodes) -> None:
    """It can be neither written nor frozen, and still it is given up, checked and used again."""
    data = await nodes.create()
    (data / "synced").write_text("x")
    kept = await nodes.a.snapshot(nodes.volume, epoch=1)
    device = loopdevice.find(live_image(nodes))
    assert device is not None
    Path(f"/sys/fs/ext4/loop{device.number}/trigger_fs_error").write_text("1")
    with pytest.raises(StorageError):
        await nodes.a.snapshot(nodes.volume, epoch=1)
    assert await nodes.a.failed() == {nodes.volume}  # type: ignore[attr-defined]
    assert await nodes.a.seal(nodes.volume, epoch=1) > kept
    assert await nodes.a.failed() == frozenset()  # type: ignore[attr-defined]
    await nodes.resume(nodes.a, epoch=1)
    assert (data / "synced").read_text() == "x"
    await nodes.a.snapshot(nodes.volume, epoch=1)


async def test_a_generation_in_use_is_what_a_power_cut_would_leave(nodes: Nodes) -> None:
    """Its journal is replayed at the next mount, and the check of the file system finds nothing."""
    data = await nodes.create()
    (data / "synced").write_text("x")
    (data / "folder").mkdir()
    before = portrait(data)
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    (data / "later").write_text("y")
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(await nodes.attached(nodes.b, epoch=2)) == before
    await nodes.b.detach(nodes.volume, epoch=2)
    image = nodes.b._home(nodes.volume).live(2) / IMAGE  # type: ignore[attr-defined]
    run("e2fsck", "-fn", str(image))


async def test_a_run_that_ended_while_it_was_frozen_is_made_good(
    nodes: Nodes, workplace: Path
) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    fd = os.open(data, os.O_RDONLY)
    fcntl.ioctl(fd, FIFREEZE, 0)
    os.close(fd)
    await nodes.a.open()
    await nodes.a.restrict(  # type: ignore[attr-defined]
        full=False, limits=None, frozen=frozenset()
    )
    (data / "g").write_text("y")


@pytest.mark.parametrize("step", ["shut_down", "unmount"])
async def test_a_run_that_ended_in_the_midst_of_sealing_is_made_good(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")

    def end(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(ext4, step, end)
        with pytest.raises(SystemExit):
            await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.open()
    again = await nodes.attached(nodes.a, epoch=1)
    (again / "g").write_text("y")
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert sorted(os.listdir(await nodes.attached(nodes.b, epoch=2))) == ["f", "g"]


async def test_who_reads_in_the_staging_mount_itself_is_not_waited_for(nodes: Nodes) -> None:
    """As a backup program on the node, which reads all that it finds."""
    data = await nodes.create()
    (data / "f").write_text("x")
    with (data / "f").open(), (data / "f").open() as late:
        generation = await nodes.a.seal(nodes.volume, epoch=1)
        await nodes.transfer(nodes.a, nodes.b, generation)
        await nodes.resume(nodes.a, epoch=1)
        (data / "f").write_text("y")
        with suppress(OSError):  # what memory still has, or an error: never what is new
            assert late.read() in ("", "x")
    assert (data / "f").read_text() == "y"


async def test_a_frozen_file_system_is_not_left_so(nodes: Nodes) -> None:
    data = await nodes.create()
    await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.resume(nodes.a, epoch=1)
    fd = os.open(data, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)
    (data / "f").write_text("x")


# Attaches, writes a synced line, detaches, over and over, until it is killed.
BUSY = """
import asyncio, os, sys
from pathlib import Path
import structlog
from pannier.storage.image.driver import ImageDriver

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main(pool, staging, volume, log):
    driver = ImageDriver(Path(pool), staging=Path(staging))
    await driver.open()
    for number in range(10_000):
        await driver.attach(volume, epoch=1, grow=False)
        with open(driver.data_path(volume, 1) / "log", "a") as file:
            file.write(f"{number}\\n")
            file.flush()
            os.fsync(file.fileno())
        print(number, file=log, flush=True)
        await driver.detach(volume, epoch=1)

asyncio.run(main(*sys.argv[1:], sys.stdout))
"""


@pytest.mark.parametrize("seed", range(12))
async def test_a_daemon_that_is_killed_at_any_moment_leaves_what_the_next_one_uses(
    nodes: Nodes, seed: int
) -> None:
    """A mount, a loop device, or neither: nothing synced is lost, and nothing stays behind."""
    await nodes.a.create(nodes.volume, epoch=1, root=nodes.root, size_bytes=None)
    driver = nodes.a
    assert isinstance(driver, ImageDriver)
    await driver.close()  # a pool has one daemon at a time
    places = [str(driver._mountpoint), str(driver._staging), nodes.volume]
    busy = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY, *places, stdout=asyncio.subprocess.PIPE
    )
    assert busy.stdout is not None
    await busy.stdout.readline()
    await asyncio.sleep(random.Random(seed).uniform(0, 0.15))
    busy.kill()
    said = ["0", *(await busy.stdout.read()).decode().split()]
    await busy.wait()
    await driver.open()
    data = await nodes.attached(driver, epoch=1)
    assert (data / "log").read_text().split()[: len(said)] == said
    await driver.detach(nodes.volume, epoch=1)
    await until_detached(live_image(nodes))
    run("e2fsck", "-fn", str(live_image(nodes)))
    assert os.listdir(driver._staging) == []
