"""A store that answers nobody for an hour: copies are kept up, sync calls do not wait, and no disk fills."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SnapshotDriver, SparseSnapshotDriver
from world import event_loop_policy

from pannier.copies.receiving import KEPT_GENERATIONS
from pannier.core.errors import OutcomeUnknown
from pannier.core.generation import Generation

__all__ = ["event_loop_policy"]

HOUR = 3600.0
STORE_PATIENCE = 5.0
"""A request to a store without a quorum takes so long before it is given up: as long as a sync call waits for a copy."""
AT_ONCE = 0.5
"""Longer than a sync call takes here, and far shorter than any wait for the store."""
MOST = KEPT_GENERATIONS + 2
"""So many generations may be on a copy: those that are kept, the one that comes, and one that just goes."""


def hang_store(world: CopiesWorld) -> None:
    """The store has lost its quorum, and all nodes see that alike."""
    world.cut_store()
    for name in world.machines:
        for label in ("store.get", "store.list", "store.commit"):
            world.slow_steps[name, label] = STORE_PATIENCE


@pytest.mark.parametrize("driver", [SnapshotDriver, SparseSnapshotDriver])
async def test_no_sync_call_waits_for_the_store_and_generations_stay_few(
    tmp_path: Path, driver: type[SnapshotDriver]
) -> None:
    """With generations alone, and with records between them."""
    async with CopiesWorld(tmp_path, driver=driver) as world:
        volume = await world.synced_volume(world.a, copies="3")
        hang_store(world)
        loop = asyncio.get_running_loop()
        end, slowest, most = loop.time() + HOUR, 0.0, 0
        while loop.time() < end:
            world.synced[volume.id].pop("file", None)  # it is overwritten
            world.put(world.a, volume)
            began = loop.time()
            await world.sync(world.a)
            slowest = max(slowest, loop.time() - began)
            copies = [world.generations(machine, volume) for machine in world.machines.values()]
            most = max(most, *map(len, copies[1:]))
            assert len(copies[0]) <= 10
            await asyncio.sleep(2.0)
        assert slowest < AT_ONCE
        assert most <= MOST
        assert set(world.now_record().in_sync) == set(volume.replicas)
        world.slow_steps.clear()
        world.mend_store()
        await world.sync(world.a)


async def test_a_copy_that_has_begun_a_takeover_tidies_nothing_away(tmp_path: Path) -> None:
    """It may have chosen any of what is there, and the store's answer may never have come."""
    async with CopiesWorld(tmp_path) as world:
        volume = await world.synced_volume(world.a)
        replica = world.replica(volume)
        hang_store(world)
        while len(world.generations(replica, volume)) <= KEPT_GENERATIONS:
            world.put(world.a, volume, f"more{len(world.steps)}")
            await world.sync(world.a)
        before, offers = set(world.generations(replica, volume)), len(world.tries)
        world.slow_steps[replica.name, "driver.inspect"] = 2.0
        world.put(world.a, volume, "last")
        await world.until(lambda: len(world.tries) > offers)
        await asyncio.sleep(1.0)  # the offer was admitted, and it is looked at what is here
        with pytest.raises(OutcomeUnknown):
            async with replica.up.promises.taking(volume, revision=1):
                raise OutcomeUnknown("no answer")
        await world.until(lambda: len(world.tries) > offers + 3)
        assert before <= set(world.generations(replica, volume))


@pytest.mark.parametrize("where", ["b", "c"])
async def test_what_is_of_earlier_epochs_goes_when_the_store_answers(
    tmp_path: Path, where: str
) -> None:
    """Nor is it waited for that somebody else, who has the volume's lock, hears from the store."""
    async with CopiesWorld(tmp_path) as world:
        volume = await world.synced_volume(world.a, copies="3")
        await world.unmount(world.a, "vol")
        await world.move(world.a, "vol", "b" if where == "c" else "c")
        holder, copy = world.machines[world.now_record().grant.node], world.machines[where]
        await world.mount(holder, "vol")
        await world.until(lambda: len(world.now_record().in_sync) == 2)
        old = {Generation(1, 0, f"{number:08x}") for number in range(KEPT_GENERATIONS + 1)}
        home = copy.disk.homes[volume.id]
        newest = world.generations(copy, volume)[-1]
        for generation in old:
            home.generations[generation] = home.described[generation] = home.generations[newest]
        hang_store(world)
        async with copy.up.custody.lock(volume):
            for number in range(2 * KEPT_GENERATIONS):
                world.put(holder, volume, f"more{number}")
                began = asyncio.get_running_loop().time()
                await world.sync(holder)
                assert asyncio.get_running_loop().time() - began < AT_ONCE
        for number in range(KEPT_GENERATIONS):
            world.put(holder, volume, f"most{number}")
            await world.sync(holder)
        assert old <= home.generations.keys()
        world.slow_steps.clear()
        world.mend_store()

        def gone() -> bool:
            world.put(holder, volume)
            return not old & home.generations.keys()

        await world.until(gone)
