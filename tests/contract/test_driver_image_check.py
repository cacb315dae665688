"""An image has no checksums of the file system: what a disk changed is found by those of what was sent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_driver_kit import Nodes, image_nodes, overwrite, pools, workplace

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import CheckedDriver, FileSystemDriver, Reading
from pannier.storage.commands import run
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.sums import SUMS

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


@pytest.fixture
def holder(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    assert isinstance(nodes.a, CheckedDriver)
    return nodes.a


@pytest.fixture
def copy(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.b, ImageDriver)
    return nodes.b


def block() -> bytes:
    """Some bytes that are nowhere else."""
    return os.urandom(4096)


async def written(nodes: Nodes, data: Path, content: bytes) -> Generation:
    """The generation after a file was written."""
    with (data / "file").open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    return await nodes.a.snapshot(nodes.volume, epoch=1)


async def test_what_was_received_is_proved_and_what_was_made_here_is_read(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    first = await written(nodes, data, block() * 600)
    await nodes.transfer(holder, copy, first)
    mine, theirs = [await each.verify(nodes.volume, first) for each in (holder, copy)]
    assert theirs == Reading(proved=True, digest=mine.digest)
    assert not mine.proved
    second = await written(nodes, data, block() * 300)  # and blocks are given back
    await nodes.transfer(holder, copy, second, first)
    mine, again = [await each.verify(nodes.volume, second) for each in (holder, copy)]
    assert again == Reading(proved=True, digest=mine.digest)
    assert again.digest != theirs.digest


async def test_a_byte_that_the_disk_of_a_copy_changed_is_found(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    wanted = block()
    first = await written(nodes, data, block() + wanted + block())
    await nodes.transfer(holder, copy, first)
    (data / "other").write_bytes(block())
    second = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(holder, copy, second, first)
    overwrite(copy, wanted)
    found = await copy.verify(nodes.volume, second)
    assert (found.proved, len(found.damaged)) == (False, 1)
    assert not (await holder.verify(nodes.volume, second)).damaged


async def test_a_byte_that_the_holders_disk_changed_is_found_by_comparing(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    wanted = block()
    generation = await written(nodes, data, wanted)
    await nodes.transfer(holder, copy, generation)
    await holder.detach(nodes.volume, epoch=1)
    overwrite(holder, wanted)
    mine, theirs = [await each.verify(nodes.volume, generation) for each in (holder, copy)]
    assert theirs.proved
    assert not mine.proved
    assert mine.digest != theirs.digest


async def test_what_a_copy_writes_as_a_holder_has_no_old_checksums(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    generation = await written(nodes, data, block())
    await nodes.transfer(holder, copy, generation)
    await copy.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(copy, epoch=2)
    (there / "file").write_bytes(block())
    own = await copy.snapshot(nodes.volume, epoch=2)
    assert not (copy._home(nodes.volume).tree(own) / SUMS).exists()
    assert not (await copy.verify(nodes.volume, own)).proved


async def test_a_former_holder_knows_the_checksums_of_what_it_gets(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    first = await written(nodes, data, block())
    await nodes.transfer(holder, copy, first)
    last = await holder.seal(nodes.volume, epoch=1)
    await nodes.transfer(holder, copy, last, first)
    await copy.promote(nodes.volume, last, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(copy, epoch=2)
    wanted = block()
    (there / "new").write_bytes(wanted)
    newer = await copy.snapshot(nodes.volume, epoch=2)
    await nodes.transfer(copy, holder, newer, last)
    mine, theirs = [await each.verify(nodes.volume, newer) for each in (copy, holder)]
    assert mine.digest == theirs.digest
    assert not theirs.proved  # what it wrote itself is not
    overwrite(holder, wanted)
    assert (await holder.verify(nodes.volume, newer)).damaged


async def test_a_live_image_is_read_without_being_disturbed(
    nodes: Nodes, holder: ImageDriver
) -> None:
    data = await nodes.create()
    (data / "file").write_bytes(block())
    assert not (await holder.verify(nodes.volume, None)).proved
    (data / "file").write_bytes(block())
    os.sync()


# -- the file system in it --------------------------------------------------------------------------


async def test_a_sound_file_system_has_no_findings_while_it_is_written(
    nodes: Nodes, holder: ImageDriver
) -> None:
    assert isinstance(holder, FileSystemDriver)
    data = await nodes.create()
    with (data / "deleted").open("wb") as file:
        file.write(block())
        (data / "deleted").unlink()
        (data / "new").write_bytes(block())
        os.sync()
        assert await holder.check_file_system(nodes.volume, None) == ()
        generation = await holder.snapshot(nodes.volume, epoch=1)
        assert await holder.check_file_system(nodes.volume, generation) == ()


async def test_what_would_be_mended_is_told_and_stays_as_it_is(
    nodes: Nodes, holder: ImageDriver
) -> None:
    data = await nodes.create()
    (data / "file").write_bytes(block())
    number = (data / "file").stat().st_ino
    await holder.detach(nodes.volume, epoch=1)
    image = holder._home(nodes.volume).live(1) / IMAGE
    await run(["debugfs", "-w", "-R", f"clri <{number}>", str(image)], timeout_s=30)
    os.sync()
    before = image.read_bytes()
    found = await holder.check_file_system(nodes.volume, None)
    assert any("file" in line for line in found), found
    assert image.read_bytes() == before
    assert not (holder._home(nodes.volume).path / "incoming" / "repair").exists()


async def test_one_that_is_not_here_is_an_error(nodes: Nodes, holder: ImageDriver) -> None:
    await nodes.create()
    with pytest.raises(StorageError):
        await holder.check_file_system(nodes.volume, Generation(1, 99))


# -- looking into it --------------------------------------------------------------------------------


async def test_a_former_state_is_shown_read_only_until_it_is_unmounted(
    nodes: Nodes, holder: ImageDriver, tmp_path: Path
) -> None:
    data = await nodes.create()
    old = await written(nodes, data, b"old")
    (data / "file").write_bytes(b"new")
    os.sync()
    for tree, content in ((old, b"old"), (1, b"new")):
        await holder.show(nodes.volume, tree=tree, at=tmp_path)
        try:
            (data / "file").write_bytes(b"newer")
            assert (tmp_path / "file").read_bytes() == content
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / "more").touch()
            await holder.delete_generation(nodes.volume, old)
        finally:
            await run(["umount", str(tmp_path)], timeout_s=30)
        assert os.listdir(tmp_path) == []
        (data / "file").write_bytes(b"new")
        os.sync()
    assert not holder._home(nodes.volume).shown.exists()
    assert [path.name for path in holder._staging.iterdir()] == [f"{nodes.volume}.1"]


async def test_what_a_crash_left_is_put_in_order_before_it_is_shown(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver, tmp_path: Path
) -> None:
    data = await nodes.create()
    with (data / "file").open("wb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())
        generation = await holder.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(holder, copy, generation)
    await copy.show(nodes.volume, tree=generation, at=tmp_path)
    try:
        assert (tmp_path / "file").read_bytes() == b"synced"
    finally:
        await run(["umount", str(tmp_path)], timeout_s=30)
    assert (await copy.verify(nodes.volume, generation)).proved


_KILLED = """
import os, sys, time
from pathlib import Path
from pannier.storage.image.showing import open_root
from pannier.storage.keys import NoKeys
root = open_root(Path(sys.argv[1]), volume="v", keys=NoKeys(), aside=Path(sys.argv[2]))
print(os.fstat(root).st_dev, file=sys.stderr, flush=True)  # what is logged goes to stdout
time.sleep(600)
"""


async def test_what_is_opened_is_mounted_nowhere_and_ends_with_its_descriptor(
    nodes: Nodes, holder: ImageDriver
) -> None:
    data = await nodes.create()
    old = await written(nodes, data, b"old")
    (data / "file").write_bytes(b"new")
    async with holder.opened(nodes.volume, tree=old) as root:
        device = os.fstat(root).st_dev
        image = backing(device)
        assert not is_mounted_somewhere(device)
        file = os.open("file", os.O_RDONLY, dir_fd=root)
        assert os.read(file, 10) == b"old"
        os.close(file)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("more", dir_fd=root)
        await holder.delete_generation(nodes.volume, old)
    await until(lambda: backing(device) != image)
    assert not holder._home(nodes.volume).shown.exists()


async def test_a_kill_leaves_nothing_mounted_or_attached(nodes: Nodes, holder: ImageDriver) -> None:
    data = await nodes.create()
    old = await written(nodes, data, b"old")
    home = holder._home(nodes.volume)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _KILLED, home.tree(old), home.shown, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        device = int(await process.stderr.readline())
        image = backing(device)
        assert image
        assert not is_mounted_somewhere(device)
    finally:
        process.kill()
        await process.wait()
    await until(lambda: backing(device) != image)


def is_mounted_somewhere(device: int) -> bool:
    number = f" {os.major(device)}:{os.minor(device)} "
    return number in Path("/proc/self/mountinfo").read_text()


def backing(device: int) -> str:
    """The file that a loop device has; empty without one. Others attach devices, too."""
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop")
    try:
        return (folder / "backing_file").read_text()
    except FileNotFoundError:
        return ""


async def until(found: Callable[[], bool]) -> None:
    """The kernel ends a mount a moment after its last descriptor."""
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.05)


async def test_what_is_not_here_is_not_shown(
    nodes: Nodes, holder: ImageDriver, tmp_path: Path
) -> None:
    await nodes.create()
    for tree in (7, Generation(1, 99)):
        with pytest.raises(StorageError):
            await holder.show(nodes.volume, tree=tree, at=tmp_path)
    assert os.listdir(tmp_path) == []
