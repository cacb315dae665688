"""A volume is taken back to a snapshot: all copies follow, and nothing of what it was is lost; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import ACTOR, Died, Fault, Machine, event_loop_policy

from pannier.contract.views import SnapshotView
from pannier.core.errors import Conflict, NotFound, OutcomeUnknown, PannierError, VolumeInUse
from pannier.core.generation import Generation
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]

BEFORE, AFTER = {"file": b"1"}, {"file": b"2", "more": b"3"}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def prepared(world: CopiesWorld, **options: str) -> Volume:
    """A volume that nobody uses: it was BEFORE at the snapshot ``first``, and is AFTER now."""
    volume = await world.volume(world.a, **options)
    world.losing(volume)  # what it is to have is what is compared here
    await write(world, volume, BEFORE)
    await world.a.ask(
        lambda run: run.service.by(ACTOR).create_snapshot(
            "vol", "first", keep_seconds=None, labels={}
        )
    )
    await write(world, volume, AFTER)
    await world.unmount(world.a, "vol")
    return world.now_record()


async def write(world: CopiesWorld, volume: Volume, content: dict[str, bytes]) -> None:
    for file, value in content.items():
        world.put(world.a, volume, file, value)
    if volume.replicas:
        await world.until(lambda: set(world.now_record().in_sync) == set(volume.replicas))
        await world.a.ask(lambda run: run.acknowledging.make_durable("vol"))


async def roll_back(machine: Machine, snapshot: str) -> SnapshotView:
    """``pannier volume rollback``, typed on ``machine``."""
    return await machine.ask(lambda run: run.service.by(ACTOR).roll_back_volume("vol", snapshot))


def kept(machine: Machine, volume: Volume, generation: Generation | str) -> dict[str, bytes] | None:
    found = generation if isinstance(generation, Generation) else Generation.parse(generation)
    home = machine.disk.homes.get(volume.id)
    return dict(home.generations[found]) if home and found in home.generations else None


def named(world: CopiesWorld, name: str) -> Snapshot:
    return world.now_record().snapshot(name)


async def test_every_copy_follows_and_what_it_was_is_kept(world: CopiesWorld) -> None:
    volume = await prepared(world, copies="3")
    made = await roll_back(world.a, "first")
    assert world.contents("vol") == BEFORE
    for machine in (world.b, world.c):
        assert world.copy(machine, volume) == BEFORE, "when it is answered"
    assert made.name.startswith("before-rollback-")
    machines = (world.a, world.b, world.c)
    await world.until(lambda: all(kept(m, volume, made.generation) == AFTER for m in machines))
    line = world.now_record().history[-1]
    assert (line.what, line.detail) == (
        "rolled back",
        f"to first, by {ACTOR}; what it was before is {made.name}",
    )
    again = await roll_back(world.c, made.name)
    assert again.name not in ("first", made.name), "also within one second"
    assert world.contents("vol") == AFTER
    assert world.now_record().grant == volume.grant


async def test_it_goes_on_from_there(world: CopiesWorld) -> None:
    volume = await prepared(world)
    await roll_back(world.b, "first")
    await world.mount(world.a, "vol")
    world.put(world.a, volume, "later", b"4")
    await world.a.ask(lambda run: run.acknowledging.make_durable("vol"))
    await world.down(world.a)
    replica = world.replica(volume)
    await world.mount(replica, "vol")
    assert world.contents("vol") == {**BEFORE, "later": b"4"}


async def test_the_only_copy_is_taken_back_too(world: CopiesWorld) -> None:
    await prepared(world, copies="1")
    made = await roll_back(world.b, "first")
    assert world.contents("vol") == BEFORE
    await world.move(world.a, "vol", "b")
    assert world.contents("vol") == BEFORE
    await roll_back(world.a, made.name)
    assert world.contents("vol") == AFTER


async def test_what_the_holder_loses_after_the_answer_the_copy_has(world: CopiesWorld) -> None:
    volume = await prepared(world)
    await roll_back(world.a, "first")
    await world.down(world.a)
    await world.mount(world.replica(volume), "vol")
    assert world.contents("vol") == BEFORE


async def test_not_while_it_is_in_use(world: CopiesWorld) -> None:
    await prepared(world)
    await world.mount(world.a, "vol", "again")
    with pytest.raises(VolumeInUse, match="in use on node a"):
        await roll_back(world.b, "first")
    assert world.contents("vol") == AFTER
    assert [each.name for each in world.now_record().snapshots] == ["first"]


async def test_not_to_what_is_not_there(world: CopiesWorld) -> None:
    volume = await prepared(world)
    with pytest.raises(NotFound, match="has no snapshot second"):
        await roll_back(world.b, "second")
    world.a.disk.homes[volume.id].generations.pop(named(world, "first").generation)
    with pytest.raises(Conflict, match="does not have its snapshot first"):
        await roll_back(world.b, "first")
    assert world.contents("vol") == AFTER


@pytest.mark.parametrize("number", range(22))
@pytest.mark.parametrize("copies", ["1", "2"])
async def test_power_fails_at_any_step(tmp_path: Path, number: int, copies: str) -> None:
    """It is what it was or what it shall be, on all copies, and nothing of either is lost."""
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        volume = await prepared(world, copies=copies)
        world.fail_at(number, Fault.CUT_AFTER if number % 2 else Fault.CUT_BEFORE)
        answered = False
        try:
            await asyncio.wait_for(roll_back(world.a, "first"), 30)
            answered = True
        except (PannierError, Died, TimeoutError):
            pass
        world.faults = lambda step: None
        for machine in world.machines.values():
            if machine.run is None:
                await machine.start()
        await asyncio.sleep(30)
        holder = world.machines[world.now_record().grant.node]
        await world.mount(holder, "vol", "look")
        now = world.contents("vol")
        assert now in (BEFORE, AFTER)
        assert now == BEFORE or not answered
        for name in world.now_record().in_sync:
            await world.until(lambda name=name: world.copy(world.machines[name], volume) == now)  # type: ignore[misc]
        if now == BEFORE:
            (before,) = (s for s in world.now_record().snapshots if s.name != "first")
            assert kept(holder, volume, before.generation) == AFTER
        await world.unmount(holder, "vol", "look")
        await asyncio.sleep(120)
        await roll_back(holder, "first")
        assert world.contents("vol") == BEFORE


async def test_a_store_that_gives_no_answer_leaves_it_what_it_was(world: CopiesWorld) -> None:
    volume = await prepared(world)
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER, of="a")
    with pytest.raises(OutcomeUnknown):
        await roll_back(world.a, "first")
    assert world.contents("vol") == AFTER
    await world.mount(world.a, "vol")
    assert not world.a.disk.homes[volume.id].live[1].sealed
