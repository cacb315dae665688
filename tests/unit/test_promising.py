"""Without the store a holder goes on for as long as all who could take over promise not to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Machine, event_loop_policy

from pannier.core.errors import PannierError, Unavailable
from pannier.core.pace import Pace
from pannier.core.volume import Grant, Volume

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        await asyncio.sleep(15)
        yield world


async def syncing(world: CopiesWorld, volume: Volume, seconds: float, machine: Machine) -> int:
    """Write and sync for a while; how often it was acknowledged."""
    end, done = asyncio.get_running_loop().time() + seconds, 0
    while asyncio.get_running_loop().time() < end:
        world.put(machine, volume, f"file{done}", b"1")
        await world.sync(machine)
        done += 1
        await asyncio.sleep(0.5)
    return done


@pytest.mark.parametrize("copies", ["2", "3"])
@pytest.mark.parametrize("of", [("a",), ("a", "b", "c")])
async def test_a_store_that_is_away_stops_nothing(
    world: CopiesWorld, copies: str, of: tuple[str, ...]
) -> None:
    volume = await world.synced_volume(world.a, copies=copies)
    container = await world.run_container(world.a, "vol", "m2")
    world.cut_store(*of)
    assert await syncing(world, volume, 200, world.a) > 350
    assert container in world.a.table.containers
    assert not world.a.disk.homes[volume.id].live[1].sealed
    world.mend_store()
    await asyncio.sleep(10)
    assert container in world.a.table.containers
    assert world.now_record().grant == Grant("a", 1)
    assert await syncing(world, volume, 10, world.a) > 15


async def test_who_has_promised_takes_nothing_over(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    world.cut_store("a")
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    mounting = asyncio.ensure_future(world.mount(replica, "vol"))
    await syncing(world, volume, 15, world.a)
    assert world.now_record().grant == Grant("a", 1)
    world.losing(volume)
    world.a.power_off()
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="has promised"):
        await replica.ask(lambda run: run.takeover.take("vol", epoch=1))
    mounting.cancel()
    await world.mount(replica, "vol")
    took = asyncio.get_running_loop().time() - began
    assert 0.85 * USUAL.holding.promise - 2 <= took <= USUAL.holding.promise + 1
    assert world.now_record().grant == Grant(replica.name, 2)


async def test_a_node_that_takes_over_promises_nothing_and_confirms_nothing(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    fresh = await replica.up.cluster.fresh("vol")
    world.cut_store("a")
    async with replica.up.promises.taking(fresh.record, revision=fresh.revision):
        assert replica.up.promising.promise({volume.id: 1}, seconds=10, peer="a") == []
        world.put(world.a, volume, "more", b"1")
        with pytest.raises(Unavailable):
            await world.sync(world.a)
        assert "being taken over" in world.progress(world.a, volume)[replica.name].error


async def test_a_promise_is_given_to_the_holder_alone_and_for_its_epoch(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    promising = world.replica(volume).up.promising
    assert promising.promise({volume.id: 1}, seconds=10, peer="c") == []
    assert promising.promise({volume.id: 2}, seconds=10, peer="a") == []
    assert promising.promise({"unknown": 1}, seconds=10, peer="a") == []
    assert promising.promise({volume.id: 1}, seconds=10, peer="a") == [volume.id]


async def test_a_promise_lasts_no_longer_than_its_limit(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    run = world.replica(volume).up
    run.promising.promise({volume.id: 1}, seconds=1e6, peer="a")
    assert run.promises.seconds_left(volume.id) == USUAL.holding.promise


async def test_without_the_store_and_one_of_two_rivals_nothing_goes_on(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    world.cut_store("a")
    world.cut_link("a", "c")
    world.put(world.a, volume, "more", b"1")
    for _ in range(20):
        with pytest.raises(PannierError):
            await world.sync(world.a)
        await asyncio.sleep(0.5)
    assert container not in world.a.table.containers, "c may have taken it over"


async def test_a_replica_that_restarts_while_the_store_is_away_promises_on(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    replica = world.replica(volume)
    world.cut_store()
    await syncing(world, volume, 20, world.a)
    replica.crash()
    await asyncio.sleep(0.5)
    await replica.start()
    await asyncio.sleep(1)
    await syncing(world, volume, 60, world.a)
    assert container in world.a.table.containers


async def test_a_holder_that_restarts_while_the_store_is_away_acknowledges_nothing(
    world: CopiesWorld,
) -> None:
    """It cannot know whom it had made its rivals; nor whether one of them took over."""
    volume = await world.synced_volume(world.a)
    world.cut_store()
    await asyncio.sleep(5)
    world.a.crash()
    await world.a.start()
    for _ in range(20):
        with pytest.raises(PannierError):
            await world.sync(world.a)
        await asyncio.sleep(1)
    world.mend_store()
    await asyncio.sleep(5)
    await world.mount(world.a, "vol")
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)
