"""A machine whose name another one has acts as no node: it serves nothing, not even what has one copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import event_loop_policy

from pannier.core.errors import Unavailable
from pannier.store.base import ABSENT, Change

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


def take_name(world: CopiesWorld) -> None:
    """Another machine has the lease of node a from now on."""
    found = world.data.get("alive/a")
    world.data.commit((Change("alive/a", b"another", found.revision if found else ABSENT),))


def free_name(world: CopiesWorld) -> None:
    found = world.data.get("alive/a")
    assert found is not None
    world.data.commit((Change("alive/a", None, found.revision),))


async def test_its_containers_end_also_of_a_volume_with_one_copy(world: CopiesWorld) -> None:
    await world.create(world.a, "single")
    container = await world.run_container(world.a, "single")
    take_name(world)
    await world.until(lambda: world.a.table.stands_still(container))
    await world.until(lambda: container not in world.a.table.containers)
    free_name(world)
    await world.mount(world.a, "single", "m2")


async def test_they_go_on_where_the_name_is_free_again_in_time(world: CopiesWorld) -> None:
    await world.create(world.a, "single")
    container = await world.run_container(world.a, "single")
    take_name(world)
    await world.until(lambda: world.a.table.stands_still(container))
    free_name(world)
    await world.until(lambda: not world.a.table.stands_still(container))
    assert container in world.a.table.containers


async def test_what_an_earlier_run_has_frozen_goes_on_when_this_one_has_the_lease(
    world: CopiesWorld,
) -> None:
    await world.create(world.a, "single")
    container = await world.run_container(world.a, "single")
    take_name(world)
    await world.until(lambda: world.a.table.stands_still(container))
    world.a.crash()
    await world.a.start()
    for _ in range(100):
        await asyncio.sleep(0.05)
        assert world.a.table.stands_still(container)
    free_name(world)
    await world.until(lambda: not world.a.table.stands_still(container))
    assert container in world.a.table.containers


async def test_after_a_start_it_serves_and_changes_nothing_and_says_why(world: CopiesWorld) -> None:
    await world.create(world.a, "single")
    world.a.power_off()
    take_name(world)
    await world.a.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20.0):
            await world.mount(world.a, "single")
    with pytest.raises(Unavailable, match="boot another has that name"):
        await world.create(world.a, "new")
    status = await world.a.up.service.status()
    assert any("another machine has this node's name" in problem for problem in status.problems)
    free_name(world)
    await world.mount(world.a, "single", "m2")
    status = await world.a.up.service.status()
    assert not any("this node's name" in problem for problem in status.problems)
