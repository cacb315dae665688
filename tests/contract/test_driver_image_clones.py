"""Clones of images on real pools: what they share, what nodes agree upon, and what a crash leaves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_driver_image_snapshots import Cut, image_of, written
from test_driver_kit import Nodes, image_nodes, pools, sync_everything, workplace

from pannier.core.errors import Corrupt, InvalidInput, PoolFull, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import CloningDriver, LiveTree
from pannier.storage.btrfs import ioctl
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

LITTLE = 1 << 20


@pytest.fixture
async def nodes(image_nodes: Nodes) -> AsyncIterator[Nodes]:
    yield image_nodes
    for driver in (image_nodes.a, image_nodes.b, image_nodes.c):
        await driver.delete(clone_of(image_nodes))


def clone_of(nodes: Nodes) -> str:
    """The id of the clone of a test's volume."""
    return f"{nodes.volume}-clone"


def base_of(generation: Generation) -> Generation:
    return Generation(0, 1, generation.identity)


async def clone(
    nodes: Nodes, driver: object, generation: Generation, *, unborn: bool = False
) -> Nodes:
    """Make a clone on a node, with its first generation alone; the nodes as they see the clone."""
    assert isinstance(driver, CloningDriver)
    new = clone_of(nodes)
    await driver.clone(
        nodes.volume, generation, volume=new, base=base_of(generation), unborn=unborn
    )
    return replace(nodes, volume=new)


async def cloned(nodes: Nodes, generation: Generation) -> tuple[Nodes, Path]:
    """The same on ``a`` with its live tree, in use."""
    there = await clone(nodes, nodes.a, generation)
    await promote(there, base_of(generation))
    return there, await there.attached(nodes.a, epoch=1)


async def promote(there: Nodes, base: Generation) -> None:
    await there.a.promote(there.volume, base, epoch=1, size_bytes=None, on_top=OnTop.NOTHING)


def used_bytes(nodes: Nodes) -> int:
    """What the pool of ``a`` has given away, once all is committed."""
    ioctl.sync_filesystem(nodes.a.pool)
    found = os.statvfs(nodes.a.pool)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


async def test_a_clone_has_what_the_generation_has_and_takes_no_room(nodes: Nodes) -> None:
    """Both are mounted at once, with the same UUID, and neither sees what is written to the other."""
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(48 << 20))
    first = await written(nodes, data, "one")
    (data / "two").write_bytes(b"two")
    before = used_bytes(nodes)
    there, copy = await cloned(nodes, first)
    assert used_bytes(nodes) - before < LITTLE
    assert sorted(each.name for each in copy.iterdir()) == ["bulk", "one"]
    assert (copy / "bulk").read_bytes() == (data / "bulk").read_bytes()
    (copy / "bulk").write_bytes(b"mine")
    (data / "one").unlink()
    sync_everything(copy)
    sync_everything(data)
    assert (copy / "one").stat().st_size == 1 << 20
    assert (data / "bulk").stat().st_size == 48 << 20
    newest = await there.a.snapshot(there.volume, epoch=1)
    assert newest.number == (1, 1)
    assert await there.a.check_file_system(there.volume, newest) == ()  # type: ignore[attr-defined]
    assert image_of(there.a, there.volume, base_of(first)) == image_of(nodes.a, nodes.volume, first)


async def test_of_a_volume_in_use_it_is_what_a_power_cut_leaves(nodes: Nodes) -> None:
    """Its journal is replayed by its first mount."""
    data = await nodes.create()
    for number in range(200):
        (data / f"file{number}").write_bytes(b"x" * number)
    made = await nodes.a.snapshot(nodes.volume, epoch=1)
    (data / "later").write_bytes(b"later")
    _, copy = await cloned(nodes, made)
    assert len(list(copy.iterdir())) == 200


async def test_copies_that_were_made_where_they_are_are_the_same_generation(nodes: Nodes) -> None:
    """Only what was written since is sent between them, in either direction."""
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(24 << 20))
    first = await written(nodes, data, "one")
    await nodes.transfer(nodes.a, nodes.b, first)
    there, copy = await cloned(nodes, first)
    await clone(nodes, nodes.b, first)
    base = base_of(first)
    for node in (there.a, there.b):
        assert (await node.inspect(there.volume)).generations == (base,)
    assert image_of(there.a, there.volume, base) == image_of(there.b, there.volume, base)
    (copy / "two").write_bytes(os.urandom(1 << 20))
    sync_everything(copy)
    second = await there.a.snapshot(there.volume, epoch=1)
    assert await there.transfer(there.a, there.b, second, base) < 4 << 20
    assert image_of(there.a, there.volume, second) == image_of(there.b, there.volume, second)
    await there.transfer(there.b, there.c, base)
    assert await there.transfer(there.b, there.c, second, base) < 4 << 20
    assert image_of(there.a, there.volume, second) == image_of(there.c, there.volume, second)


async def test_a_copy_of_what_was_received_proves_its_bytes(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    await nodes.transfer(nodes.a, nodes.b, first)
    there = await clone(nodes, nodes.b, first)
    assert isinstance(there.b, ImageDriver)
    assert (await there.b.verify(there.volume, base_of(first))).proved
    assert (await there.b.verify(nodes.volume, first)).proved


async def test_nothing_written_is_no_new_generation(nodes: Nodes) -> None:
    """What was only cloned is in sync with what was only cloned."""
    data = await nodes.create()
    first = await written(nodes, data, "one")
    there = await clone(nodes, nodes.a, first)
    await promote(there, base_of(first))
    assert await there.a.snapshot(there.volume, epoch=1) == base_of(first)
    assert await there.a.seal(there.volume, epoch=1) == base_of(first)
    await there.a.drop_live(there.volume, epoch=1)


async def test_the_other_volume_may_go(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    there, copy = await cloned(nodes, first)
    content = (data / "one").read_bytes()
    await nodes.a.delete(nodes.volume)
    assert (copy / "one").read_bytes() == content
    await there.a.detach(there.volume, epoch=1)
    copy = await there.attached(there.a, epoch=1)
    assert (copy / "one").read_bytes() == content


async def test_it_is_made_larger_with_room_for_what_was_asked(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    there = await clone(nodes, nodes.a, first)
    assert isinstance(there.a, CloningDriver)
    before = os.statvfs(data)
    more = 300 << 20
    with pytest.raises(InvalidInput, match="is more than the pool"):
        await there.a.enlarge(
            there.volume, base_of(first), epoch=1, size_bytes=2 << 30, more_bytes=more
        )
    for _ in range(2):  # the second finds it done
        await there.a.enlarge(
            there.volume, base_of(first), epoch=1, size_bytes=500 << 20, more_bytes=more
        )
    copy = await there.attached(there.a, epoch=1)
    after = os.statvfs(copy)
    grown = (after.f_bavail - before.f_bavail) * after.f_frsize
    assert more <= grown < more + more // 50
    (copy / "large").write_bytes(b"x" * (250 << 20))
    sync_everything(copy)
    newest = await there.a.snapshot(there.volume, epoch=1)
    assert await there.a.check_file_system(there.volume, newest) == ()  # type: ignore[attr-defined]
    await clone(nodes, nodes.a, first)


async def test_what_is_not_there_or_may_be_damaged_is_not_cloned(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    with pytest.raises(Corrupt, match="is not here"):
        await clone(nodes, nodes.a, Generation(1, 9, "0f3a94c1"))
    with pytest.raises(Corrupt, match="is not here"):
        await clone(nodes, nodes.a, replace(first, identity="00000000"))
    with pytest.raises(Corrupt, match="is not here"):
        await clone(nodes, nodes.b, first)
    await nodes.transfer(nodes.a, nodes.b, first)
    there = await clone(nodes, nodes.b, first)
    assert isinstance(there.b, ImageDriver)
    await there.b.quarantine(there.volume)
    with pytest.raises(StorageError, match="was set aside"):
        await clone(nodes, nodes.b, first)
    assert (await there.b.inspect(there.volume)).generations == ()


async def test_a_pool_without_room_makes_none(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    assert isinstance(nodes.a, ImageDriver)
    await nodes.a.restrict(full=True, limits=None, frozen=frozenset())
    try:
        with pytest.raises(PoolFull):
            await clone(nodes, nodes.a, first)
    finally:
        await nodes.a.restrict(full=False, limits=None, frozen=frozenset())
    assert clone_of(nodes) not in await nodes.a.volumes()


@pytest.mark.parametrize("step", ["create_subvolume", "create_snapshot", "destroy_subvolume"])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("after", [False, True])
async def test_a_daemon_that_ends_in_the_midst_leaves_all_or_what_it_knows_to_be_unborn(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, step: str, at: int, after: bool
) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    driver, calls = nodes.a, 0
    assert isinstance(driver, ImageDriver)
    with monkeypatch.context() as patch:
        real = getattr(ioctl, step)

        def cut(*arguments: object, **named: object) -> None:
            nonlocal calls
            calls += 1
            if calls != at:
                real(*arguments, **named)
                return
            if after:
                real(*arguments, **named)
            raise Cut

        patch.setattr(ioctl, step, cut)
        try:
            await clone(nodes, driver, first, unborn=True)
        except Cut:
            assert calls == at
    await driver.close()
    await driver.open()
    new = clone_of(nodes)
    if (await driver.inspect(new)).generations:
        assert await driver.unborn() == {new}
    assert not list((driver.pool / "images").glob(f"{new}/.new-*"))
    there = await clone(nodes, driver, first, unborn=True)
    await promote(there, base_of(first))
    assert (await driver.inspect(new)).live == (LiveTree(1, sealed=False),)
    copy = await there.attached(driver, epoch=1)
    assert [each.name for each in copy.iterdir()] == ["one"]
    assert await driver.unborn() == {new}
    await driver.born(new)
    await driver.born(new)
    assert await driver.unborn() == frozenset()


async def test_what_is_unborn_is_deleted_as_all_else(nodes: Nodes) -> None:
    data = await nodes.create()
    first = await written(nodes, data, "one")
    there = await clone(nodes, nodes.a, first, unborn=True)
    await there.a.delete(there.volume)
    assert isinstance(there.a, CloningDriver)
    assert await there.a.unborn() == frozenset()
    assert there.volume not in await there.a.volumes()


async def test_its_file_system_has_the_uuid_of_the_other_one(nodes: Nodes) -> None:
    """Another one would be written into all of it, since the checksums of ext4 depend on it."""
    data = await nodes.create()
    first = await written(nodes, data, "one")
    there = await clone(nodes, nodes.a, first)
    found = set()
    for volume, generation in ((nodes.volume, first), (there.volume, base_of(first))):
        assert isinstance(there.a, ImageDriver)
        with (there.a._home(volume).tree(generation) / IMAGE).open("rb") as image:
            found.add(image.read(2048)[1024 + 0x68 :][:16])
    assert len(found) == 1
