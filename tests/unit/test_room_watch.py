"""A pool that gets full stops its writers; a disk that refused a write is not believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from world import Machine, SparseSnapshotDriver, World, event_loop_policy

from pannier.core.volume import Volume
from pannier.engine.base import Container

__all__ = ["event_loop_policy"]

GIB = 1 << 30


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


def still(machine: Machine, container: str) -> bool:
    return machine.table.stands_still(container)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.1)


async def in_use(world: World) -> tuple[Volume, str]:
    volume = await world.create(world.a, "vol")
    container = await world.run_container(world.a, "vol")
    started(world, container)
    return volume, container


def started(world: World, container: str) -> None:
    """The engine says that a container runs."""
    found = Container(id=container, name=container, service=None, running=True)
    world.a.engine.put(found, volumes=("vol",))


async def test_a_full_pool_stops_its_writers_until_there_is_room_again(world: World) -> None:
    volume, container = await in_use(world)
    await asyncio.sleep(5)
    assert not still(world.a, container)
    world.a.disk.free_bytes = 50 << 20
    await until(lambda: still(world.a, container))
    shown = await world.a.ask(lambda run: run.service.volume("vol"))
    assert "room for 50" in shown.stands_still
    await asyncio.sleep(60)
    assert still(world.a, container)
    world.a.disk.free_bytes = 100 * GIB
    await until(lambda: not still(world.a, container))
    world.write(world.a, container, "file", b"goes on")
    await until(lambda: len(world.record("vol").history) >= 3)  # type: ignore[union-attr]
    assert [entry.what for entry in world.record("vol").history] == [  # type: ignore[union-attr]
        "created", "stopped", "continued",
    ]  # fmt: skip
    assert volume.id


async def test_what_is_written_faster_than_looked_at_is_limited_first(world: World) -> None:
    await in_use(world)
    driver = world.sparse_driver(world.a)
    world.a.disk.free_bytes = 2 * GIB
    await until(lambda: driver.limits)
    assert not driver.full
    world.a.disk.free_bytes = 100 * GIB
    await until(lambda: driver.limits is None)


async def test_a_daemon_that_starts_on_a_pool_with_room_lets_go_on_what_was_stopped(
    world: World,
) -> None:
    _, container = await in_use(world)
    world.a.disk.free_bytes = 50 << 20
    await until(lambda: still(world.a, container))
    world.a.crash()
    world.a.disk.free_bytes = 100 * GIB
    await world.a.start()
    await until(lambda: not still(world.a, container))


async def test_after_a_refused_write_the_containers_end_and_the_volume_is_mounted_anew(
    world: World,
) -> None:
    volume, container = await in_use(world)
    world.write(world.a, container, "file", b"kept")
    world.a.disk.refused.add(volume.id)
    await until(lambda: container not in world.a.table.containers)
    await until(lambda: volume.id not in world.a.disk.attached)
    again = await world.run_container(world.a, "vol", "m2")
    world.write(world.a, again, "file", b"more")
    await until(lambda: world.record("vol").history[-1].what == "mounted anew")  # type: ignore[union-attr]


@pytest.mark.parametrize("full", [True, False])
async def test_a_daemon_that_ends_leaves_nobody_standing_still(world: World, full: bool) -> None:
    _, container = await in_use(world)
    if full:
        world.a.disk.free_bytes = 50 << 20
        await until(lambda: still(world.a, container))
    await world.a.up.leave()
    assert not still(world.a, container)
    assert (container in world.a.table.containers) is not full


async def test_a_container_that_the_engine_is_starting_is_not_frozen_by_its_group(
    world: World,
) -> None:
    """The engine would wait for it. Its writes wait in the kernel until it runs."""
    volume = await world.create(world.a, "vol")
    world.a.disk.free_bytes = GIB
    container = await world.run_container(world.a, "vol")
    world.a.disk.free_bytes = 50 << 20
    await until(lambda: volume.id in world.sparse_driver(world.a).frozen)
    await asyncio.sleep(10)
    assert not still(world.a, container)
    assert volume.id in world.sparse_driver(world.a).frozen
    started(world, container)
    await until(lambda: still(world.a, container))
    assert volume.id not in world.sparse_driver(world.a).frozen


async def test_what_was_removed_gives_its_room_before_writers_stand_still(tmp_path: Path) -> None:
    """The oldest first, one after the other, and nothing while there is room."""
    async with World(tmp_path, driver=SparseSnapshotDriver, with_upkeep=True) as world:

        async def removed(name: str) -> str:
            made = await world.create(world.a, name)
            await world.a.ask(lambda run: run.service.remove_volume(name))
            await asyncio.sleep(2)
            return made.id

        ids = [await removed("first"), await removed("second")]
        await asyncio.sleep(60)
        assert set(ids) <= set(world.a.disk.homes)
        world.a.disk.free_bytes = 500 << 20
        await until(lambda: ids[0] not in world.a.disk.homes)
        assert ids[1] in world.a.disk.homes
        world.a.disk.free_bytes = 100 * GIB
        await asyncio.sleep(60)
        assert ids[1] in world.a.disk.homes
        left = await world.a.ask(lambda run: run.service.trash())
        assert [volume.name for volume in left] == ["second"]
