"""A daemon that ends in good order is no loss, and leaves no writer without a lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import event_loop_policy

from pannier.agent.lease import Lease
from pannier.core.pace import Pace
from pannier.core.volume import Volume

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


async def is_up(world: CopiesWorld, name: str) -> bool:
    return name in await world.b.up.registry.alive()


async def unused_volume(world: CopiesWorld) -> Volume:
    """Synced, and no container has it any more."""
    volume = await world.synced_volume(world.a)
    await world.unmount(world.a, "vol")
    world.losing(volume)
    return volume


async def leave(world: CopiesWorld) -> None:
    await world.a.ask(lambda run: run.leaving.prepare())
    await world.a.ask(lambda run: run.leaving.announce())


async def test_what_nobody_uses_may_be_taken_over_at_once(world: CopiesWorld) -> None:
    volume = await unused_volume(world)
    world.put(world.a, volume, "unsynced", b"2")
    await leave(world)
    assert not await is_up(world, "a")
    await world.down(world.a)
    await world.mount(world.b, "vol")
    assert world.copy(world.b, volume)["unsynced"] == b"2"


async def test_the_others_know_that_it_is_no_loss_before_the_lease_ends(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, known = Lease.end, []

    async def look_and_end(lease: Lease) -> None:
        found = await world.b.up.registry.node("a")
        known.append(found and found.record.stopping)
        await end(lease)

    monkeypatch.setattr(Lease, "end", look_and_end)
    await unused_volume(world)
    await world.a.ask(lambda run: run.leaving.prepare())
    assert await is_up(world, "a")
    await world.a.ask(lambda run: run.leaving.announce())
    assert known == [True]


async def test_what_is_used_keeps_the_lease(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await leave(world)
    assert await is_up(world, "a")


async def test_so_does_what_is_used_between_the_two(world: CopiesWorld) -> None:
    await unused_volume(world)
    await world.a.ask(lambda run: run.leaving.prepare())
    await world.mount(world.a, "vol")
    await world.a.ask(lambda run: run.leaving.announce())
    assert await is_up(world, "a")


async def test_a_store_that_does_not_answer_is_not_waited_for(world: CopiesWorld) -> None:
    await unused_volume(world)
    await world.a.ask(lambda run: run.leaving.prepare())
    world.a.up.line.cut()
    await world.a.ask(lambda run: run.leaving.announce())
    await world.down(world.a)
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    await world.mount(world.b, "vol")


async def standing_still(world: CopiesWorld) -> str:
    """A container whose volume this node cannot prove to hold any more."""
    await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    await asyncio.sleep(15)
    world.cut_store("a")
    world.isolate("a")
    await world.until(lambda: world.a.table.stands_still(container))
    return container


async def test_what_stands_still_is_ended_with_the_daemon(world: CopiesWorld) -> None:
    """Nobody else would ever let it go on."""
    container = await standing_still(world)
    await world.a.ask(lambda run: run.leaving.prepare())
    assert container not in world.a.table.containers
    assert not world.a.table.frozen


async def test_it_goes_on_where_the_doubt_ends_in_time(world: CopiesWorld) -> None:
    container = await standing_still(world)
    leaving = asyncio.ensure_future(world.a.ask(lambda run: run.leaving.prepare()))
    await asyncio.sleep(1)
    world.mend_links()
    world.mend_store()
    await leaving
    assert container in world.a.table.containers
    assert not world.a.table.frozen


async def test_it_is_ended_also_while_somebody_keeps_the_volumes_lock(world: CopiesWorld) -> None:
    """Who has it may wait for a store that never answers; the daemon is killed after 20 s."""
    container = await standing_still(world)
    [volume] = world.a.up.catalog.volumes()
    async with world.a.up.custody.lock(volume):
        await asyncio.wait_for(
            world.a.ask(lambda run: run.leaving.prepare()), USUAL.node.leave_within + 1
        )
    assert container not in world.a.table.containers
    assert not world.a.table.frozen
