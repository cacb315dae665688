"""A volume with one copy gets a second one while it is in use: nobody is stopped, and nobody else writes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import event_loop_policy

from pannier.cluster.registry import encode
from pannier.core.errors import StoreUnavailable
from pannier.core.volume import Durability
from pannier.store.base import Change

__all__ = ["event_loop_policy"]

CATALOG = "catalog.json"


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


def ask_for(world: CopiesWorld, *, copies: int = 2, interval: float = 1.0) -> None:
    """Another node changes the record."""
    entry, record = world.data.get("volumes/vol"), world.now_record()
    assert entry is not None
    spec = replace(record.spec, copies=copies, durability=Durability.FSYNC, interval=interval)
    world.data.commit((Change(entry.key, encode(replace(record, spec=spec)), entry.revision),))


async def in_sync(world: CopiesWorld) -> None:
    await world.until(lambda: len(world.now_record().in_sync) == 1)


async def test_containers_run_on_while_the_second_copy_is_made(world: CopiesWorld) -> None:
    volume = await world.create(world.a, "vol")
    container = await world.run_container(world.a, "vol")
    world.write(world.a, container, "before", b"1")
    frozen = list[str]()

    def look() -> bool:
        if world.a.table.stands_still(container):
            frozen.append("now")
        return len(world.now_record().in_sync) == 1

    ask_for(world)
    await world.until(look)
    assert not frozen
    world.put(world.a, volume, "after", b"2")
    await world.sync(world.a, "vol")
    assert world.current(world.replica(world.now_record()), volume)


async def test_a_memory_of_one_copy_serves_nothing_once_there_was_a_second(
    world: CopiesWorld,
) -> None:
    """After a power cut the node remembers less than it knew. Its successor may be writing by then."""
    await world.volume(world.a, copies="1")
    await world.until(lambda: b'"vol"' in (world.a.state / CATALOG).read_bytes())
    earlier = (world.a.state / CATALOG).read_bytes()
    assert b'"copies":1' in earlier
    ask_for(world)
    await in_sync(world)
    world.a.power_off()
    (world.a.state / CATALOG).write_bytes(earlier)
    world.cut_store("a")
    await world.a.start()
    with pytest.raises(StoreUnavailable):
        await world.mount(world.a, "vol")


async def test_one_copy_is_served_from_memory_as_before(world: CopiesWorld) -> None:
    await world.volume(world.a, copies="1")
    await world.until(lambda: b'"vol"' in (world.a.state / CATALOG).read_bytes())
    world.a.power_off()
    world.cut_store("a")
    await world.a.start()
    await world.mount(world.a, "vol")


async def test_no_copy_is_in_sync_before_this_node_has_noted_that_there_are_two(
    world: CopiesWorld,
) -> None:
    """Else its daemon, killed and started again without the store, would go on beside the successor."""
    await world.volume(world.a, copies="1")
    await world.until(lambda: b'"vol"' in (world.a.state / CATALOG).read_bytes())
    folder = world.a.state / CATALOG
    folder.unlink()
    folder.mkdir()  # it cannot be written
    ask_for(world)
    with pytest.raises(AssertionError):
        await in_sync(world)
    folder.rmdir()
    await in_sync(world)
    assert b'"copies":2' in folder.read_bytes()


async def test_another_interval_is_kept_from_then_on(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    await in_sync(world)
    ask_for(world, interval=20.0)
    await world.until(lambda: world.a.up.replicator.replicated("vol").volume.spec.interval == 20.0)
    assert world.now_record().in_sync == volume.replicas
