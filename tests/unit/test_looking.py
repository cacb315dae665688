"""Looking into states of a volume, and taking files out of them; whole nodes, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import ACTOR, Machine, SparseSnapshotDriver, event_loop_policy

from pannier.contract.views import SnapshotView, TakeOutProgress
from pannier.core.errors import AlreadyExists, Conflict, InvalidInput, NotFound, NotHolder

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path / "world", driver=SparseSnapshotDriver) as world:
        yield world


async def show(world: CopiesWorld, tree: str, at: Path, *, on: Machine | None = None) -> None:
    """``pannier volume mount vol@TREE --at AT``; on a if nothing else is said."""
    machine = on or world.a
    await machine.ask(lambda run: run.service.show_tree("vol", tree=tree, at=str(at)))


async def take_out(
    machine: Machine, path: str, to: Path, *, tree: str | None = None
) -> list[TakeOutProgress]:
    """``pannier volume cp vol@TREE:PATH TO``."""

    async def collect(stream: AsyncIterator[TakeOutProgress]) -> list[TakeOutProgress]:
        return [progress async for progress in stream]

    return await machine.ask(
        lambda run: collect(run.service.take_out("vol", tree=tree, path=path, to=str(to)))
    )


async def snap(machine: Machine, name: str) -> SnapshotView:
    return await machine.ask(
        lambda run: run.service.by(ACTOR).create_snapshot("vol", name, keep_seconds=None, labels={})
    )


async def test_an_epoch_a_generation_or_a_snapshot_is_shown(
    world: CopiesWorld, tmp_path: Path
) -> None:
    volume = await world.saved_volume(world.a)
    await snap(world.a, "early")
    for tree in ("1", str(world.generations(world.a, volume)[-1]), "early"):
        at = tmp_path / tree
        at.mkdir()
        await show(world, tree, at)
        assert (at / "synced").read_bytes() == b"1"


async def test_a_snapshot_is_shown_on_a_copy_and_a_node_without_one_says_who_has_it(
    world: CopiesWorld, tmp_path: Path
) -> None:
    volume = await world.saved_volume(world.a)
    await snap(world.a, "early")
    replica = world.replica(volume)
    other = next(m for m in (world.b, world.c) if m is not replica)
    with pytest.raises(NotFound, match=f"node {other.name} does not have snapshot early") as told:
        await show(world, "early", tmp_path, on=other)
    assert told.value.remedy == f"type this on node a or {replica.name}"
    (tmp_path / "at").mkdir()
    await show(world, "early", tmp_path / "at", on=replica)
    assert (tmp_path / "at" / "synced").read_bytes() == b"1"


async def test_who_does_not_say_whether_it_has_it_is_named(
    world: CopiesWorld, tmp_path: Path
) -> None:
    volume = await world.saved_volume(world.a)
    await snap(world.a, "early")
    replica = world.replica(volume)
    other = next(m for m in (world.b, world.c) if m is not replica)
    world.cut_link("a", other.name)
    with pytest.raises(NotFound) as told:
        await show(world, "early", tmp_path, on=other)
    assert (
        told.value.remedy == f"type this on node {replica.name}; a did not say whether it is there"
    )


async def test_what_cannot_be_shown_is_told(world: CopiesWorld, tmp_path: Path) -> None:
    await world.saved_volume(world.a)
    with pytest.raises(NotFound, match="nothing of volume vol by the name 7") as refused:
        await show(world, "7", tmp_path)
    assert "1" in refused.value.remedy
    with pytest.raises(NotFound, match="has no snapshot never"):
        await show(world, "never", tmp_path)
    with pytest.raises(NotFound, match="has no snapshot"):
        await show(world, "../1", tmp_path)
    with pytest.raises(InvalidInput, match="not the absolute path of a directory"):
        await show(world, "1", tmp_path / "missing")
    with pytest.raises(Conflict, match="something is mounted at /proc already"):
        await show(world, "1", Path("/proc"))
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="not empty"):
        await show(world, "1", tmp_path)


async def test_a_file_is_taken_out_of_a_snapshot_and_of_what_the_volume_is_now(
    world: CopiesWorld, tmp_path: Path
) -> None:
    volume = await world.synced_volume(world.a)
    world.put(world.a, volume, "file", b"1")
    await snap(world.a, "early")
    world.put(world.a, volume, "file", b"2")
    for tree, content in (("early", b"1"), (None, b"2")):
        to = tmp_path / f"{tree}"
        to.mkdir()
        *_, last = await take_out(world.a, "file", to, tree=tree)
        assert (last.to, last.copied_bytes, last.ended) == (str(to / "file"), 1, True)
        assert (to / "file").read_bytes() == content
        with pytest.raises(AlreadyExists, match="nothing is overwritten"):
            await take_out(world.a, "file", to, tree=tree)


async def test_what_a_volume_is_now_is_with_its_holder(world: CopiesWorld, tmp_path: Path) -> None:
    volume = await world.synced_volume(world.a)
    with pytest.raises(NotHolder, match="is held by node a") as refused:
        await take_out(world.replica(volume), "synced", tmp_path)
    assert refused.value.remedy == "type this on node a, or name a snapshot: vol@SNAPSHOT"


async def test_what_is_made_to_look_at_it_does_not_stay(world: CopiesWorld, tmp_path: Path) -> None:
    volume = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    for number in range(10):
        to = tmp_path / str(number)
        to.mkdir()
        await take_out(world.a, "by-a", to)
    assert len(world.generations(world.a, volume)) <= 2
