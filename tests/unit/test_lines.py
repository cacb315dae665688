"""Sync calls by records: what is confirmed is on the copies without a generation, and a takeover has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import event_loop_policy

from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def following(world: CopiesWorld, **options: str) -> Volume:
    """A volume whose copies get records."""
    volume = await world.synced_volume(world.a, **options)
    world.put(world.a, volume, "first", b"1")
    await world.sync(world.a)
    line = world.a.up.replicator.replicated("vol").line
    assert line is not None
    assert all(p.follows(line) for p in world.progress(world.a, volume).values())
    return world.now_record()


async def test_a_synced_write_makes_no_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    before = len(world.sent)
    for number in range(5):
        world.put(world.a, volume, f"file-{number}", b"x")
        await world.sync(world.a)
    assert len(world.sent) == before
    assert world.current(world.replica(volume), volume)


async def test_a_takeover_puts_the_records_on_top_of_the_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    world.put(world.a, volume, "record", b"yes")
    await world.sync(world.a)
    world.losing(volume)
    await world.down(world.a)
    other = world.replica(volume)
    await world.mount(other, "vol")
    assert world.contents("vol")["record"] == b"yes"


async def test_a_generation_frees_the_records_before_it(world: CopiesWorld) -> None:
    volume = await following(world)
    for number in range(3):
        world.put(world.a, volume, f"file-{number}", b"x")
        await world.sync(world.a)
    other = world.replica(volume)
    assert other.disk.homes[volume.id].records
    world.put(world.a, volume, "late", b"x")
    await world.until(lambda: not other.disk.homes[volume.id].records)
    assert world.current(other, volume)


async def test_what_the_trace_does_not_tell_goes_with_a_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    run = world.a.up.replicator.replicated("vol").line
    world.put(world.a, volume, "untold", b"x")
    world.a.disk.untold.add(volume.id)
    await world.sync(world.a)
    assert world.current(world.replica(volume), volume)
    now = world.a.up.replicator.replicated("vol").line
    assert run is not None
    assert now is not None
    assert now.run != run.run


async def test_a_full_journal_is_answered_by_a_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    other.disk.journal_full = True
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.current(other, volume)
    assert world.now_record().in_sync == (other.name,)


async def test_a_copy_that_lost_its_generations_keeps_no_records(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    await world.sparse_driver(other).quarantine(volume.id)
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.current(other, volume)


async def test_of_three_copies_one_may_be_slow_or_gone(world: CopiesWorld) -> None:
    volume = await following(world, copies="3")
    one, two = (world.machines[name] for name in volume.replicas)
    world.cut_link("a", two.name)
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.now_record().in_sync == (one.name,)
    world.mend_links()
    await world.until(lambda: set(world.now_record().in_sync) == {one.name, two.name})
    world.put(world.a, volume, "again", b"x")
    before = len(world.sent)
    await world.sync(world.a)
    assert len(world.sent) == before
    assert world.current(two, volume)


async def test_an_interrupted_caller_is_answered_when_nothing_is_new(world: CopiesWorld) -> None:
    volume = await following(world)
    assert await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))
    world.put(world.a, volume, "more", b"x")
    assert not await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))
    await world.sync(world.a)
    assert await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))
