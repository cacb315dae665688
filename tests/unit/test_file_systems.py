"""Each node checks the file system in its own copy; nothing is mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import SparseSnapshotDriver, event_loop_policy

from pannier.contract.views import FileSystemView
from pannier.core.errors import Conflict, VolumeNotFound

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def check(world: CopiesWorld) -> dict[str, FileSystemView]:
    """``pannier volume check vol``, typed on a node without a copy."""
    found = await world.c.ask(lambda run: run.service.check_volume("vol"))
    return {each.node: each for each in found}


async def test_every_copy_is_checked(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    found = await check(world)
    assert {name: each.state for name, each in found.items()} == {"a": "sound", "b": "sound"}
    assert found["a"].generation is None  # as it is now
    assert found["b"].generation == str(max(world.generations(world.b, volume)))


async def test_what_is_damaged_is_told_and_stays_as_it_is(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    home = world.b.disk.homes[volume.id]
    home.damaged |= set(home.generations)
    found = (await check(world))["b"]
    assert (found.state, found.findings) == ("damaged", ["Inode 12 has an invalid size."])
    assert home.damaged
    assert world.now_record().in_sync == ("b",)


async def test_a_node_that_does_not_answer_is_named(world: CopiesWorld) -> None:
    await world.saved_volume(world.a)
    world.cut_link("b", "c")
    found = await check(world)
    assert (found["a"].state, found["b"].state) == ("sound", "unknown")
    assert found["b"].error


async def test_a_copy_that_is_gone_is_told(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    world.careless.add("b")
    world.b.disk.homes[volume.id].generations.clear()
    assert (await check(world))["b"].state == "nothing"


async def test_a_tree_of_files_has_no_file_system_of_its_own(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path) as world:
        await world.saved_volume(world.a)
        with pytest.raises(Conflict, match="tree of files") as refused:
            await check(world)
        assert refused.value.remedy == "pannier volume verify vol reads all of it"
        with pytest.raises(VolumeNotFound):
            await world.c.ask(lambda run: run.service.check_volume("other"))
