"""A pool that is short of room: what gives way, who is told, and what must not happen beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from world import Fault, Machine, Run, SparseSnapshotDriver, World, event_loop_policy

from pannier.core.errors import (
    Conflict,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    PoolFull,
    VolumeNotFound,
)
from pannier.core.freeing import Freeable, Rank
from pannier.core.generation import Generation
from pannier.node.freeing import Freeing

__all__ = ["event_loop_policy"]

GIB = 1 << 30
TIGHT, FULL, AMPLE = 2 * GIB, 50 << 20, 100 * GIB
"""Room went fast here, so much is kept free. After a start nothing is known of that, and TIGHT is not."""


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, driver=SparseSnapshotDriver, with_upkeep=True) as world:
        yield world


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(90):
        while not what():
            await asyncio.sleep(0.1)


async def remove(world: World, name: str) -> None:
    await world.a.ask(lambda run: run.service.remove_volume(name))


async def removed(world: World, *names: str) -> list[str]:
    """Volumes with something in them that were removed one after the other. Returns their ids."""
    ids = []
    for name in names:
        ids.append((await world.create(world.a, name)).id)
        await world.write_once(world.a, name)
        await remove(world, name)
    return ids


def there(machine: Machine, ids: list[str]) -> list[str]:
    return [each for each in ids if each in machine.disk.homes]


async def said_of(world: World, name: str) -> list[tuple[str, str, str]]:
    events = await world.b.ask(lambda run: run.service.history(name))
    return [(event.kind, event.node, event.detail) for event in events]


# -- the trash --------------------------------------------------------------------------------------


async def test_who_was_removed_for_room_is_told_by_name_and_by_node(world: World) -> None:
    ids = await removed(world, "first")
    world.a.disk.free_bytes = TIGHT
    await until(lambda: not there(world.a, ids))
    assert await said_of(world, "first") == [
        ("volume.purged", "a", "the pool was nearly full"),
    ]
    assert await said_of(world, ids[0]) == await said_of(world, "first")

    async def all_events(run: Run) -> list[str]:
        return [event.kind async for event in run.service.events(follow=False)]

    assert await world.c.ask(all_events) == ["volume.purged"]
    with pytest.raises(VolumeNotFound):
        await world.restore(world.a, "first")


async def test_a_clock_that_was_set_back_does_not_change_what_is_older(world: World) -> None:
    ids = await removed(world, "first")
    world.wall -= 1e6
    ids += await removed(world, "second")
    world.a.disk.free_bytes = TIGHT
    await until(lambda: there(world.a, ids) != ids)
    assert there(world.a, ids) == ids[1:]


async def test_nothing_more_is_deleted_until_the_kernel_has_given_room_back(world: World) -> None:
    ids = await removed(world, "first", "second")
    world.a.disk.free_bytes = TIGHT
    await until(lambda: len(there(world.a, ids)) == 1)
    world.a.disk.gives_back = True
    await asyncio.sleep(10)
    assert there(world.a, ids) == ids[1:]
    world.a.disk.free_bytes, world.a.disk.gives_back = AMPLE, False
    await asyncio.sleep(60)
    assert there(world.a, ids) == ids[1:]


async def test_a_mount_waits_for_room_that_is_on_its_way(world: World) -> None:
    """The trash is empty by then, and the kernel has not yet freed what was in it."""
    ids = await removed(world, "first")
    await world.create(world.a, "second")
    world.a.disk.free_bytes, world.a.disk.gives_back = FULL, True
    await until(lambda: not there(world.a, ids))
    mounting = asyncio.create_task(world.mount(world.a, "second"))
    await asyncio.sleep(5)
    assert not mounting.done()
    world.a.disk.free_bytes, world.a.disk.gives_back = AMPLE, False
    await mounting


async def test_a_mount_waits_for_what_was_removed_just_before(world: World) -> None:
    for name in ("first", "second"):
        await world.create(world.a, name)
    world.a.disk.free_bytes = FULL
    await refused_mount(world, "second")
    await remove(world, "first")
    mounting = asyncio.create_task(world.mount(world.a, "second"))
    await until(lambda: len(world.a.disk.homes) == 1)
    assert not mounting.done()
    world.a.disk.free_bytes = AMPLE
    await mounting


async def test_where_nothing_gives_room_a_mount_is_refused_soon(world: World) -> None:
    await world.create(world.a, "only")
    world.a.disk.free_bytes = FULL
    await refused_mount(world, "only")
    began = asyncio.get_running_loop().time()
    with pytest.raises(PoolFull):
        await world.mount(world.a, "only")
    assert asyncio.get_running_loop().time() - began < 1


async def refused_mount(world: World, name: str) -> None:
    await asyncio.sleep(
        10
    )  # until it is known that the pool is full, and that nothing can be freed
    with pytest.raises(PoolFull):
        await world.mount(world.a, name)


async def test_what_the_kernel_never_gives_back_does_not_keep_others_from_giving_way(
    world: World,
) -> None:
    ids = await removed(world, "first", "second")
    world.a.disk.gives_back = True
    world.a.disk.free_bytes = TIGHT
    await until(lambda: not there(world.a, ids))


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("step", ["store.commit", "driver.delete"])
async def test_power_that_fails_on_the_way_leaves_it_there_or_gone(
    world: World, step: str, fault: Fault
) -> None:
    ids = await removed(world, "first")
    world.fail_at_label(step, fault, of="a")
    world.a.disk.free_bytes = FULL
    await until(lambda: world.a.run is None)
    await world.a.start()
    await until(lambda: not there(world.a, ids))
    assert world.trashed(ids[0]) is None


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LATE])
async def test_an_answer_that_never_comes_is_asked_for(world: World, fault: Fault) -> None:
    ids = await removed(world, "first")
    world.fail_at_label("store.commit", fault, of="a")
    world.a.disk.free_bytes = TIGHT
    await until(lambda: not there(world.a, ids))


async def test_without_the_store_nobody_knows_what_was_removed_and_nothing_goes(
    world: World,
) -> None:
    ids = await removed(world, "first")
    world.a.disk.parts.add("other.1")
    world.cut_store()
    world.a.disk.free_bytes = FULL
    await until(lambda: not world.a.disk.parts)
    await asyncio.sleep(30)
    assert there(world.a, ids) == ids
    world.mend_store()
    await until(lambda: not there(world.a, ids))


async def test_a_copy_of_what_was_removed_gives_its_room_where_that_is_needed(
    world: World,
) -> None:
    volume = await world.create(world.a, "vol", copies="2")
    (copy,) = (world.machines[name] for name in world.record("vol").replicas)  # type: ignore[union-attr]
    home = world.a.disk.homes[volume.id]
    copy.disk.homes[volume.id] = replace(home, live={}, generations={Generation(1, 1): {}})
    await world.remove(world.a, "vol")
    copy.disk.free_bytes = TIGHT
    await until(lambda: not there(copy, [volume.id]) and not there(world.a, [volume.id]))


async def test_two_pools_that_are_short_at_once_free_what_each_of_them_has(world: World) -> None:
    on_a = await removed(world, "first")
    volume = await world.create(world.b, "second")
    await world.b.ask(lambda run: run.service.remove_volume("second"))
    world.a.disk.free_bytes = world.b.disk.free_bytes = TIGHT
    await until(lambda: not there(world.a, on_a) and not there(world.b, [volume.id]))


async def test_files_may_count_on_what_the_trash_gives(tmp_path: Path) -> None:
    world = World(tmp_path, driver=SparseSnapshotDriver, with_upkeep=True)
    world.a.disk.free_bytes = 1200 << 20  # scarce, and not tight
    async with world:
        await removed(world, "first")
        await world.create(world.a, "vol")
        await world.run_container(world.a, "vol")
        await asyncio.sleep(60)
        limits = world.sparse_driver(world.a).limits
        assert limits is not None
        assert limits.growth_bytes == (1200 << 20) - (32 << 20) + len(b"x")


async def test_a_container_that_comes_while_the_trash_gives_room_waits_for_it(
    world: World,
) -> None:
    await removed(world, "first", "second")
    await asyncio.sleep(1)
    world.a.disk.gives_back = True
    world.a.disk.free_bytes = FULL
    await until(lambda: world.sparse_driver(world.a).full)
    created = asyncio.ensure_future(world.a.ask(lambda run: run.docker.create("new", {})))
    await asyncio.sleep(5)
    assert not created.done()
    world.a.disk.free_bytes, world.a.disk.gives_back = AMPLE, False
    await created
    await world.write_once(world.a, "new")


async def test_the_oldest_leave_a_trash_that_gets_larger_than_it_may_be(tmp_path: Path) -> None:
    world = World(tmp_path, driver=SparseSnapshotDriver, with_upkeep=True)
    world.trash_bytes = 25
    async with world:
        ids = []
        for number in range(4):
            volume = await world.create(world.a, f"v{number}")
            await world.write_once(world.a, volume.name, b"ten bytes!")
            await world.remove(world.a, volume.name)
            ids.append(volume.id)
        await until(lambda: there(world.a, ids) == ids[2:])
        await asyncio.sleep(60)
        assert there(world.a, ids) == ids[2:]
        assert await said_of(world, "v0") == [
            ("volume.purged", "a", "the trash was larger than trash_size")
        ]


# -- by hand ------------------------------------------------------------------------------------------


async def test_whoever_empties_the_trash_frees_it_on_every_node(world: World) -> None:
    volume = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    await world.write_once(world.b, "vol")
    assert there(world.a, [volume.id])
    assert there(world.b, [volume.id])
    await world.remove(world.b, "vol")
    gone = await world.c.ask(lambda run: run.service.empty_trash())
    assert [each.id for each in gone] == [volume.id]
    await until(lambda: not there(world.a, [volume.id]) and not there(world.b, [volume.id]))
    assert await world.c.ask(lambda run: run.service.empty_trash()) == []
    assert (await said_of(world, "vol"))[-1] == ("volume.purged", "c", "by local")


async def test_one_of_several_is_given_up_by_its_id(world: World) -> None:
    ids = await removed(world, "vol", "vol")
    with pytest.raises(Conflict, match=ids[1]):
        await world.a.ask(lambda run: run.service.purge_volume("vol"))
    await world.b.ask(lambda run: run.service.purge_volume(ids[1]))
    await until(lambda: there(world.a, ids) == ids[:1])
    await world.b.ask(lambda run: run.service.purge_volume("vol"))
    await until(lambda: not there(world.a, ids))
    with pytest.raises(VolumeNotFound):
        await world.b.ask(lambda run: run.service.purge_volume("vol"))


async def test_a_person_who_heard_no_answer_is_told_the_truth(world: World) -> None:
    ids = await removed(world, "vol")
    world.fail_at_label("store.commit", Fault.LOSE_REQUEST, of="b")
    with pytest.raises(OutcomeUnknown):
        await world.b.ask(lambda run: run.service.purge_volume("vol"))
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER, of="b")
    await world.b.ask(lambda run: run.service.purge_volume("vol"))
    await until(lambda: not there(world.a, ids))


async def test_files_of_a_volume_that_does_not_stand_still_are_not_removed_from_outside(
    world: World,
) -> None:
    await world.create(world.a, "vol")
    with pytest.raises(Conflict, match="does not stand still"):
        await world.a.ask(lambda run: run.service.clean_volume("vol", paths=["old"]))
    with pytest.raises(NotHolder, match="held by node a"):
        await world.b.ask(lambda run: run.service.clean_volume("vol", paths=["old"]))


# -- generations that only save sending ---------------------------------------------------------------


async def moved_away(world: World) -> str:
    """A volume that b holds, of which a keeps a generation. Returns its id."""
    volume = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    await world.write_once(world.b, "vol")
    await asyncio.sleep(30)
    assert world.a.disk.homes[volume.id].generations
    return volume.id


async def test_what_a_move_left_behind_gives_its_room_after_the_trash(world: World) -> None:
    volume_id = await moved_away(world)
    (gone,) = await removed(world, "first")
    world.a.disk.free_bytes = TIGHT
    await until(lambda: gone not in world.a.disk.homes)
    assert world.a.disk.homes[volume_id].generations
    await until(lambda: not world.a.disk.homes[volume_id].generations)
    assert (await said_of(world, "vol"))[-1][:2] == ("volume.freed", "a")
    world.a.disk.free_bytes = AMPLE
    await asyncio.sleep(10)
    await world.write_once(world.a, "vol", b"back")


async def test_parts_of_broken_transfers_go_last_and_only_once_writers_stand_still(
    world: World,
) -> None:
    world.a.disk.parts.add("other.1")
    world.a.disk.free_bytes = TIGHT
    await asyncio.sleep(30)
    assert world.a.disk.parts
    world.a.disk.free_bytes = FULL
    await until(lambda: not world.a.disk.parts)


async def _race(directory: Path, seed: int) -> bool:
    """While a frees the generation that it has left, b gives it the volume back with just that generation.

    Returns whether a freed it.
    """
    async with World(directory, driver=SparseSnapshotDriver, names=("a", "b"), seed=seed) as world:
        volume = await world.create(world.a, "vol")
        await world.write_once(world.a, "vol")
        await world.move(world.a, "vol", "b")
        await asyncio.sleep(12)  # what the move left behind is tidied away
        world.delay = lambda: world.random.random() * 0.05
        spare = Freeable(rank=Rank.SPARE, volume=volume.id, name="vol")
        moving = asyncio.ensure_future(world.move(world.b, "vol", "a"))
        await asyncio.sleep(world.random.random())
        freed = await world.a.ask(lambda run: run.node.freeing._free(spare))
        with contextlib.suppress(PannierError):  # refused at just that moment
            await moving
        return freed


async def test_a_generation_that_is_freed_is_never_what_a_move_relies_on(tmp_path: Path) -> None:
    freed = [await _race(tmp_path / str(seed), seed) for seed in range(60)]
    assert any(freed)


async def _loses(directory: Path, seed: int) -> bool:
    try:
        await _race(directory, seed)
    except AssertionError:
        return True
    return False


async def test_without_the_record_written_anew_that_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake that was made on purpose."""

    async def careless(self: Freeing, found: Freeable) -> bool:
        volume = self._cluster.catalog.volume(found.name)
        assert volume is not None
        driver = self._drivers.of(volume)
        async with self._custody.lock(volume):
            with self._reception.refusing(volume):
                record = (await self._cluster.fresh(volume.name)).record
                spare = self._spare(record, await self._local(record, driver))
                for generation in spare:
                    await driver.delete_generation(record.id, generation)
                return bool(spare)

    monkeypatch.setattr(Freeing, "_free_spare", careless)
    assert any([await _loses(tmp_path / str(seed), seed) for seed in range(60)])
