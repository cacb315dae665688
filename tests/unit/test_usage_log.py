"""What volumes took hour by hour: each node samples what it has, and whoever is asked puts it together; in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import ACTOR, Machine, event_loop_policy

from pannier.contract.usage import VolumeUsageView
from pannier.core.errors import VolumeNotFound

__all__ = ["event_loop_policy"]

HOUR = 3600.0


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


async def sampled(world: CopiesWorld, *machines: Machine, later: float = 0.0) -> None:
    world.wall += later
    for machine in machines:
        await machine.ask(lambda run: run.service._usage_log.look())


async def usage(machine: Machine, name: str = "vol") -> VolumeUsageView:
    return await machine.ask(lambda run: run.service.by(ACTOR).volume_usage(name))


async def test_all_nodes_tell_what_they_had(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    await world.save(world.a)
    await sampled(world, world.a, replica)
    world.put(world.a, volume, "more", b"12345")
    await sampled(world, world.a, replica, later=HOUR)
    found = await usage(world.c if replica is world.b else world.b)
    held = [(each.node, each.files_bytes) for each in found.samples if each.holds]
    assert held == [("a", 1), ("a", 6)]
    assert [each.node for each in found.samples if not each.holds] == [replica.name] * 2
    assert found.copies_at(found.held[-1]) > 0
    assert not found.silent


async def test_an_hour_has_one_sample(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await sampled(world, world.a, world.a)
    await sampled(world, world.a, later=10.0)
    assert len((await usage(world.a)).held) == 1


async def test_it_goes_with_the_volume(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    await sampled(world, world.a)
    await world.unmount(world.a, "vol")
    await world.move(world.a, "vol", replica.name)
    await sampled(world, replica, later=HOUR)
    assert [each.node for each in (await usage(world.a)).held] == ["a", replica.name]


async def test_a_node_that_does_not_answer_is_named(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await sampled(world, world.a)
    await world.down(world.c)
    found = await usage(world.a)
    assert (found.silent, len(found.held)) == (["c"], 1)


async def test_they_are_there_after_a_restart_and_go_with_the_volume(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await world.volume(world.a, "other", copies="1")
    await sampled(world, world.a)
    world.a.crash()
    await world.a.start()
    assert len((await usage(world.a)).held) == 1
    await world.unmount(world.a, "other")
    gone = world.now_record("other")
    await world.remove(world.a, "other")
    await world.a.ask(lambda run: run.service.by(ACTOR).purge_volume(gone.id))
    await world.until(lambda: gone.id not in {v.id for v in world.a.up.catalog.trashed()})
    await sampled(world, world.a, later=HOUR)
    assert gone.id not in (world.a.state / "usage.json").read_text()
    with pytest.raises(VolumeNotFound):
        await usage(world.a, "other")


async def test_a_clock_that_was_wrong(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await sampled(world, world.a, later=1000 * HOUR)
    await sampled(world, world.a, later=-1000 * HOUR)
    [only] = (await usage(world.a)).held
    assert only.at == pytest.approx(world.wall_time(), abs=60)
