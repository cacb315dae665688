"""A copy that its node can neither tidy up nor read: it is made anew, and what is there is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from stepping import Fault, Step
from world import Machine, event_loop_policy

from pannier.contract.words import Level
from pannier.core import damage
from pannier.core.errors import StorageError
from pannier.core.pace import CopiesPace
from pannier.core.volume import HistoryEntry, Volume

__all__ = ["event_loop_policy"]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
PACE = CopiesPace()
A_WHILE = PACE.quarantine_lasts + 3 * PACE.quarantine_look
WHY = "volume is quarantined on this node: a subvolume is in it"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, with_upkeep=True) as world:
        yield world


async def copied(world: CopiesWorld) -> tuple[Volume, Machine]:
    volume = await world.saved_volume(world.a)
    replica = world.replica(volume)
    await world.until(lambda: world.current(replica, volume))
    return volume, replica


def spoil(machine: Machine, volume: Volume) -> None:
    machine.disk.spoilt[volume.id] = StorageError(WHY, remedy="see what is in it")


def told(world: CopiesWorld) -> list[HistoryEntry]:
    return [line for line in world.now_record().history if line.what == damage.SET_APART]


async def anew(world: CopiesWorld, replica: Machine, volume: Volume) -> None:
    await world.until(lambda: volume.id in replica.disk.apart, seconds=A_WHILE)
    await world.until(lambda: replica.name in world.now_record().in_sync, seconds=60)
    assert world.current(replica, volume)


@pytest.mark.parametrize("written", [True, False])
async def test_it_is_made_anew_by_itself_and_what_was_there_is_kept(
    world: CopiesWorld, written: bool
) -> None:
    volume, replica = await copied(world)
    kept = set(replica.disk.homes[volume.id].generations)
    spoil(replica, volume)
    if written:
        world.put(world.a, volume)
    await anew(world, replica, volume)
    assert set(replica.disk.apart[volume.id].generations) == kept
    (line,) = told(world)
    assert (line.node, line.detail) == (replica.name, WHY)
    (found,) = (
        one
        for one in await replica.ask(lambda run: run.service.doctor())
        if one.subject == "volume vol" and "is kept in" in one.what
    )
    assert found.level == Level.WARNING


async def test_one_that_passes_by_itself_is_left_alone(world: CopiesWorld) -> None:
    volume, replica = await copied(world)
    spoil(replica, volume)
    await asyncio.sleep(PACE.quarantine_lasts / 2)
    del replica.disk.spoilt[volume.id]
    await asyncio.sleep(A_WHILE)
    assert not replica.disk.apart
    assert not told(world)


async def test_nothing_is_set_apart_while_the_holder_is_away(world: CopiesWorld) -> None:
    """It may have what nobody else has."""
    volume, replica = await copied(world)
    spoil(replica, volume)
    await world.down(world.a)
    await asyncio.sleep(A_WHILE)
    assert not replica.disk.apart
    assert replica.name in world.now_record().in_sync
    await world.a.start()
    await world.mount(world.a, "vol")
    await anew(world, replica, volume)


async def test_nothing_is_set_apart_where_the_holder_is_known_to_be_damaged(
    world: CopiesWorld,
) -> None:
    volume, replica = await copied(world)
    await world.a.up.custody.note(volume, damage.DAMAGED, "the image's block at 4096 is not")
    spoil(replica, volume)
    await asyncio.sleep(A_WHILE)
    assert not replica.disk.apart


async def test_what_was_set_apart_before_is_never_replaced(world: CopiesWorld) -> None:
    volume, replica = await copied(world)
    spoil(replica, volume)
    await anew(world, replica, volume)
    first = replica.disk.apart[volume.id]
    spoil(replica, volume)
    await asyncio.sleep(2 * A_WHILE)
    assert replica.disk.apart[volume.id] is first
    assert volume.id in replica.disk.spoilt
    del replica.disk.apart[volume.id]  # a person did
    await world.until(lambda: volume.id in replica.disk.apart, seconds=A_WHILE)


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
async def test_power_fails_while_it_is_set_apart(world: CopiesWorld, fault: Fault) -> None:
    volume, replica = await copied(world)
    spoil(replica, volume)

    def once(step: Step) -> Fault | None:
        if step.label != "driver.set_apart":
            return None
        world.faults = lambda step: None
        return fault

    world.faults = once
    await world.until(lambda: replica.run is None, seconds=A_WHILE)
    await replica.start()
    await anew(world, replica, volume)
    assert len(told(world)) == 1
