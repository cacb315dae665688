"""A crowded journal: what was removed gives way to what is written, and nobody takes over with what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import Fault, Step, event_loop_policy

from pannier.core.errors import Conflict
from pannier.core.generation import Generation
from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]

RECORD = 8 << 10
"""More than a record of these tests takes."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    """a holds, b has the copies."""
    wishes: dict[str, Any] = {"driver": SparseSnapshotDriver, "names": ("a", "b")}
    async with CopiesWorld(tmp_path, with_upkeep=True, **wishes) as world:
        yield world


def give_room(world: CopiesWorld, records: int) -> None:
    """So many records may live in b's journal."""
    world.b.disk.journal = replace(world.b.disk.journal, most_bytes=records * RECORD)


async def written(world: CopiesWorld, name: str = "vol") -> Volume:
    """A volume with a record on b that no generation has yet."""
    volume = await world.synced_volume(world.a, name)
    await world.until(lambda: follows(world, name))
    world.put(world.a, volume, "last", b"record")
    await world.sync(world.a, name)
    assert world.b.disk.homes[volume.id].records
    return world.now_record(name)


def follows(world: CopiesWorld, name: str = "vol") -> bool:
    replicated = world.a.up.replicator.replicated(name)
    return replicated.progress["b"].follows(replicated.line)


async def removed(world: CopiesWorld, name: str) -> Volume:
    volume = await written(world, name)
    await world.unmount(world.a, name)
    await world.remove(world.a, name)
    return volume


def has_records(world: CopiesWorld, volume: Volume) -> bool:
    home = world.b.disk.homes.get(volume.id)
    return home is not None and bool(home.records)


async def given_up(world: CopiesWorld) -> Volume:
    """A removed volume of which b had to give up the records."""
    volume = await removed(world, "old")
    give_room(world, 1)
    await world.until(lambda: not has_records(world, volume))
    give_room(world, 100)
    return volume


def trashed(world: CopiesWorld, volume: Volume) -> Volume:
    found = world.trashed(volume.id)
    assert found is not None
    return found


# -- what gives way ---------------------------------------------------------------------------------


async def test_however_many_volumes_were_tried_and_removed_sync_calls_go_with_records(
    world: CopiesWorld,
) -> None:
    give_room(world, 6)
    old = [await removed(world, f"old-{number}") for number in range(12)]
    await written(world)
    before, replicated = len(world.sent), world.a.up.replicator.replicated("vol")
    detours = replicated.detour.number
    for number in range(3):
        world.put(world.a, replicated.volume, f"more-{number}")
        await world.sync(world.a)
    assert (replicated.detour.number, len(world.sent)) == (detours, before)
    kept = [has_records(world, volume) for volume in old]
    assert kept == sorted(kept), "the oldest go first"
    assert True in kept
    assert all(world.trashed(volume.id) for volume in old), "each can be restored"


async def test_as_long_as_there_is_room_nothing_is_given_up(world: CopiesWorld) -> None:
    volume = await removed(world, "old")
    await asyncio.sleep(60)
    assert has_records(world, volume)
    assert trashed(world, volume).in_sync == ("b",)


async def test_what_generations_have_goes_first_and_costs_nothing(world: CopiesWorld) -> None:
    """After a restart of the copy, what was freed since its records were written is there again."""
    volume = await written(world, "old")
    home = world.b.disk.homes[volume.id]
    back = list(home.records)
    await world.save(world.a, "old")
    await world.until(lambda: not home.records)
    await world.unmount(world.a, "old")
    await world.remove(world.a, "old")
    home.records = back
    give_room(world, 1)
    await world.until(lambda: not home.records)
    assert trashed(world, volume).in_sync == ("b",)
    assert [entry.what for entry in trashed(world, volume).history][-1] == "removed"


async def test_what_a_takeover_begins_with_is_not_freed_by_a_later_generation(
    world: CopiesWorld,
) -> None:
    volume = await written(world)
    world.losing(volume)
    await world.down(world.a)
    base = max(world.generations(world.b, volume))
    later = Generation(base.epoch, base.sequence + 1, base.identity)
    home = world.b.disk.homes[volume.id]
    async with world.b.up.promises.taking(volume, revision=1):
        home.generations[later] = home.with_records(base)
        give_room(world, 1)
        await asyncio.sleep(10)
        assert home.records
        assert home.with_records(base)["last"] == b"record"
    world.b.up.promises._refused.clear()
    await world.until(lambda: not home.records)


async def test_the_records_of_a_copy_are_needed_as_long_as_the_volume_is_there(
    world: CopiesWorld,
) -> None:
    volume = await written(world)
    world.losing(volume)
    await world.down(world.a)
    give_room(world, 1)
    await asyncio.sleep(60)
    assert has_records(world, volume)
    await world.mount(world.b, "vol")
    assert world.contents("vol")["last"] == b"record"
    await world.until(lambda: not has_records(world, volume))
    assert world.contents("vol")["last"] == b"record"


async def test_what_a_node_does_not_copy_any_more_gives_way(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"driver": SparseSnapshotDriver}
    async with CopiesWorld(tmp_path, with_upkeep=True, **wishes) as world:
        volume = await world.synced_volume(world.a)
        copy = world.replica(volume)
        await world.until(
            lambda: world.progress(world.a, volume)[copy.name].follows(
                world.a.up.replicator.replicated("vol").line
            )
        )
        world.put(world.a, volume, "last", b"record")
        await world.sync(world.a)
        home = copy.disk.homes[volume.id]
        assert home.records
        await world.down(copy)
        await world.until(lambda: copy.name not in world.now_record().replicas, seconds=3600.0)
        copy.disk.journal = replace(copy.disk.journal, most_bytes=1)
        await copy.start()
        await world.until(lambda: not home.records)
        assert home.generations


# -- what must not come of it -----------------------------------------------------------------------


async def test_a_copy_that_gave_up_records_counts_again_when_it_has_a_generation(
    world: CopiesWorld,
) -> None:
    volume = await given_up(world)
    now = trashed(world, volume)
    assert now.in_sync == ()
    assert (now.history[-1].what, now.history[-1].node) == ("freed", "b")
    await world.restore(world.a, "old")
    assert world.now_record("old").removed_in is None
    await world.mount(world.a, "old")
    await world.until(lambda: world.now_record("old").in_sync == ("b",))
    assert world.current(world.b, volume)
    assert world.contents("old")["last"] == b"record"


async def test_it_takes_nothing_over_before_that(world: CopiesWorld) -> None:
    volume = await given_up(world)
    world.losing(volume)
    await world.down(world.a)
    await world.restore(world.b, "old")
    with pytest.raises(Conflict, match="accept-loss"):
        await world.recover(world.b, "old", accept=False)


async def test_the_trash_stays_in_the_order_of_its_removal(world: CopiesWorld) -> None:
    first = await given_up(world)
    second = await removed(world, "new")
    for machine in (world.a, world.b):
        catalog = machine.up.catalog
        await world.until(lambda catalog=catalog: len(catalog.trashed()) == 2)  # type: ignore[misc]
        assert [each.id for each in catalog.trashed()] == [first.id, second.id]
    give_room(world, 1)
    await world.until(lambda: not has_records(world, second))
    assert [each.id for each in world.a.up.catalog.trashed()] == [first.id, second.id]


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("step", ["store.commit", "driver.drop_records"])
async def test_power_that_fails_on_the_way_leaves_it_in_sync_or_not(
    world: CopiesWorld, step: str, fault: Fault
) -> None:
    volume = await removed(world, "old")
    world.fail_at_label(step, fault, of="b")
    give_room(world, 1)
    await world.until(lambda: world.b.run is None)
    assert has_records(world, volume) or trashed(world, volume).in_sync == ()
    await world.b.start()
    await world.until(lambda: not has_records(world, volume))
    assert [entry.what for entry in trashed(world, volume).history].count("freed") == 1


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_an_answer_that_never_comes_is_asked_for(world: CopiesWorld, fault: Fault) -> None:
    volume = await removed(world, "old")
    world.fail_at_label("store.commit", fault, of="b")
    give_room(world, 1)
    await world.until(lambda: not has_records(world, volume))
    assert trashed(world, volume).in_sync == ()


async def test_a_volume_that_is_restored_meanwhile_keeps_its_records(world: CopiesWorld) -> None:
    volume = await removed(world, "old")
    restoring: list[asyncio.Task[Volume]] = []

    def restore_first(step: Step) -> None:
        if (step.of, step.label) == ("b", "store.commit") and not restoring:
            restoring.append(asyncio.ensure_future(world.restore(world.a, "old")))

    world.faults = restore_first
    world.slow_steps["b", "store.commit"] = 1.0
    give_room(world, 1)
    await world.until(lambda: bool(restoring) and restoring[0].done())
    await asyncio.sleep(10)
    assert world.now_record("old").in_sync == ("b",)
    assert world.current(world.b, volume)


# -- a journal that is full all the same --------------------------------------------------------------


async def test_a_full_journal_is_not_tried_by_each_sync_call(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await written(world)
    driver, tries = world.sparse_driver(world.b), []
    keep = driver.keep

    def counted(place: Any, encoded: Any) -> None:
        tries.append(place)
        keep(place, encoded)

    monkeypatch.setattr(driver, "keep", counted)
    world.b.disk.journal_full = True
    for number in range(20):
        world.put(world.a, volume, f"more-{number}")
        await world.sync(world.a)
    assert 0 < len(tries) <= 3
    assert world.now_record().in_sync == ("b",)
    world.b.disk.journal_full = False
    await asyncio.sleep(15)
    world.put(world.a, volume, "more")
    await world.sync(world.a)
    await world.until(lambda: follows(world))


async def test_a_volume_that_filled_its_own_share_goes_on_with_its_next_generation(
    world: CopiesWorld,
) -> None:
    volume = await written(world)
    world.b.disk.journal_full = True
    world.put(world.a, volume, "more")
    await world.sync(world.a)
    world.b.disk.journal_full = False
    assert follows(world), "a generation has made room"
