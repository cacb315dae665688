"""Snapshots of images on real pools: a generation is sent in any order, and a volume goes back to one."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import cast

import pytest
from test_driver_kit import Nodes, image_nodes, pools, sync_everything, workplace

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import Driver
from pannier.storage.btrfs import ioctl
from pannier.storage.image import live
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

LITTLE = 4 << 20


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


async def written(nodes: Nodes, data: Path, name: str, *, size: int = 1 << 20) -> Generation:
    """A generation with one file more, or with other bytes in it."""
    (data / name).write_bytes(os.urandom(size))
    sync_everything(data)
    return await nodes.a.snapshot(nodes.volume, epoch=1)


def image_of(driver: Driver, volume: str, generation: Generation) -> bytes:
    """A digest of all bytes of a generation."""
    tree = cast("ImageDriver", driver)._home(volume).tree(generation)
    digest = blake2b()
    with open(tree / IMAGE, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


async def test_generations_arrive_in_any_order_and_only_what_differs_is_sent(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(24 << 20))
    made = [await written(nodes, data, name) for name in ("one", "two", "one", "three")]
    await nodes.transfer(nodes.a, nodes.b, made[3])
    assert await nodes.transfer(nodes.a, nodes.b, made[0], made[3]) < LITTLE
    assert await nodes.transfer(nodes.a, nodes.b, made[2], made[0]) < LITTLE
    assert await nodes.transfer(nodes.a, nodes.b, made[1], made[2]) < LITTLE
    made.append(await written(nodes, data, "four"))
    assert await nodes.transfer(nodes.a, nodes.b, made[4], made[3]) < LITTLE
    for generation in made:
        ours, theirs = (image_of(node, nodes.volume, generation) for node in (nodes.a, nodes.b))
        assert ours == theirs, str(generation)


async def test_who_got_them_in_that_order_sends_them_on(nodes: Nodes) -> None:
    """On its pool, the older of two was written later."""
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(24 << 20))
    made = [await written(nodes, data, name) for name in ("one", "two", "one")]
    await nodes.transfer(nodes.a, nodes.b, made[2])
    await nodes.transfer(nodes.a, nodes.b, made[0], made[2])
    await nodes.b.promote(nodes.volume, made[2], epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    await nodes.transfer(nodes.b, nodes.c, made[0])
    await nodes.transfer(nodes.b, nodes.c, made[2], made[0])
    await nodes.transfer(nodes.a, nodes.c, made[1], made[2])
    for generation in made:
        ours, theirs = (image_of(node, nodes.volume, generation) for node in (nodes.a, nodes.c))
        assert ours == theirs, str(generation)


# -- going back ---------------------------------------------------------------------------------------


def holder(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    return nodes.a


async def rolled_back(nodes: Nodes) -> tuple[Generation, Generation]:
    """A volume that is ``one`` again; what it was then and before, as generations."""
    data = await nodes.create()
    first = await written(nodes, data, "one")
    await nodes.transfer(nodes.a, nodes.b, first)
    (data / "one").unlink()
    (data / "two").write_bytes(b"two")
    last = await holder(nodes).seal(nodes.volume, epoch=1)
    await holder(nodes).roll_back(nodes.volume, first, epoch=1)
    return first, last


async def test_a_volume_goes_back_and_on_from_there(nodes: Nodes) -> None:
    first, last = await rolled_back(nodes)
    data = await nodes.attached(nodes.a, epoch=1)
    assert [each.name for each in data.iterdir()] == ["one"]
    (data / "three").write_bytes(b"three")
    sync_everything(data)
    newest = await nodes.a.snapshot(nodes.volume, epoch=1)
    assert newest > last > first
    await nodes.transfer(nodes.a, nodes.b, last, first)
    assert await nodes.transfer(nodes.a, nodes.b, newest, last) < LITTLE
    for generation in (first, last, newest):
        ours, theirs = (image_of(node, nodes.volume, generation) for node in (nodes.a, nodes.b))
        assert ours == theirs, str(generation)
    await nodes.b.promote(nodes.volume, newest, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert sorted(each.name for each in there.iterdir()) == ["one", "three"]


async def test_what_it_went_back_to_is_a_new_generation_though_nothing_is_written(
    nodes: Nodes,
) -> None:
    """Also when the daemon was restarted, and where it is sealed at once, as for a move."""
    first, last = await rolled_back(nodes)
    driver = holder(nodes)
    await driver.close()
    await driver.open()
    sealed = await driver.seal(nodes.volume, epoch=1)
    assert sealed > last
    assert image_of(driver, nodes.volume, sealed) == image_of(driver, nodes.volume, first)
    await driver.drop_live(nodes.volume, epoch=1)


async def test_it_goes_back_to_what_it_had_received(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    second = await written(nodes, data, "two")
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.transfer(nodes.a, nodes.b, second, first)
    taker = nodes.b
    assert isinstance(taker, ImageDriver)
    await taker.promote(nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(taker, epoch=2)
    (there / "three").write_bytes(b"three")
    await taker.seal(nodes.volume, epoch=2)
    await taker.roll_back(nodes.volume, first, epoch=2)
    there = await nodes.attached(taker, epoch=2)
    assert [each.name for each in there.iterdir()] == ["one"]
    newest = await taker.snapshot(nodes.volume, epoch=2)
    await nodes.transfer(taker, nodes.c, first)
    await nodes.transfer(taker, nodes.c, newest, first)
    assert image_of(taker, nodes.volume, newest) == image_of(nodes.c, nodes.volume, newest)


async def test_only_what_is_sealed_goes_back_and_only_to_what_is_there(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    with pytest.raises(StorageError, match="is not sealed"):
        await holder(nodes).roll_back(nodes.volume, first, epoch=1)
    await holder(nodes).seal(nodes.volume, epoch=1)
    with pytest.raises(Corrupt, match="is not here"):
        await holder(nodes).roll_back(nodes.volume, Generation(1, 9), epoch=1)
    with pytest.raises(StorageError, match="no live tree"):
        await holder(nodes).roll_back(nodes.volume, first, epoch=2)


class Cut(Exception):
    """The daemon ends here."""


@pytest.mark.parametrize("step", ["create_snapshot", "sync_filesystem", "exchange", "destroy"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_daemon_that_ends_in_the_midst_leaves_the_one_or_the_other(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    (data / "one").rename(data / "two")
    driver = holder(nodes)
    await driver.seal(nodes.volume, epoch=1)
    with monkeypatch.context() as patch:
        owner, name = {
            "exchange": (live, "exchange"),
            "destroy": (ioctl, "destroy_subvolume"),
        }.get(step, (ioctl, step))
        real = getattr(owner, name)

        def cut(*arguments: object, **named: object) -> None:
            if after:
                real(*arguments, **named)
            raise Cut

        patch.setattr(owner, name, cut)
        with pytest.raises(Cut):
            await driver.roll_back(nodes.volume, first, epoch=1)
    await driver.close()
    await driver.open()
    await driver.unseal(nodes.volume, epoch=1)
    data = await nodes.attached(driver, epoch=1)
    done = step == "destroy" or (step == "exchange" and after)
    assert [each.name for each in data.iterdir()] == (["one"] if done else ["two"])
    await driver.seal(nodes.volume, epoch=1)
    await driver.roll_back(nodes.volume, first, epoch=1)
    data = await nodes.attached(driver, epoch=1)
    assert [each.name for each in data.iterdir()] == ["one"]


async def test_what_a_volume_takes_is_told_apart(nodes: Nodes) -> None:
    """Each piece of the disk counts once: for the files, else for generations, else for snapshots."""
    driver, volume = holder(nodes), nodes.volume
    data = await nodes.create()
    (data / "content").touch()

    async def overwritten() -> Generation:
        with (data / "content").open("r+b") as file:
            file.write(os.urandom(8 << 20))
            os.fsync(file.fileno())
        return await nodes.save(driver, epoch=1)

    named = await overwritten()
    alone = await driver.shares(volume, named=[])
    assert alone.files_bytes >= 8 << 20
    assert alone.generations_bytes < 1 << 20
    other = await overwritten()
    await overwritten()
    unnamed = await driver.shares(volume, named=[])
    assert unnamed.snapshots_bytes == 0
    both = await driver.shares(volume, named=[named])
    assert both.files_bytes == unnamed.files_bytes
    assert both.generations_bytes + both.snapshots_bytes == unnamed.generations_bytes
    for part in (both.generations_bytes, both.snapshots_bytes):
        assert 7 << 20 < part < 10 << 20
    await nodes.transfer(driver, nodes.b, named)
    copied = await cast("ImageDriver", nodes.b).shares(volume, named=[named])
    assert copied.files_bytes >= 8 << 20
    assert (copied.generations_bytes, copied.snapshots_bytes) == (0, 0)
    await driver.delete_generation(volume, named)
    await driver.delete_generation(volume, other)
    left = await driver.shares(volume, named=[named])
    assert left.snapshots_bytes == 0
    assert left.generations_bytes < 1 << 20
