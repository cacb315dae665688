"""What is gone leaves nothing behind for ever, and what a node still needs is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import Fault, World, event_loop_policy

from pannier.cluster.registry import Purged, encode
from pannier.core.errors import StorageError
from pannier.core.pace import NodePace, Pace
from pannier.core.volume import HistoryEntry
from pannier.node.forgetting import cleared
from pannier.store.base import ABSENT, Change

__all__ = ["event_loop_policy"]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
HISTORY, LOOK = 300.0, 30.0
PACE = Pace(node=NodePace(trash=10.0, turn=10.0, history=HISTORY, forget=LOOK))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, with_upkeep=True, pace=PACE) as world:
        yield world


async def purged(world: World, name: str = "vol") -> str:
    """A volume of node a that was given up: its id."""
    await world.create(world.a, name)
    volume = world.now_record(name).id
    await world.remove(world.a, name)
    await asyncio.sleep(40)
    assert marks(world) == [volume]
    return volume


def marks(world: World) -> list[str]:
    return [entry.key.removeprefix("purged/") for entry in world.data.list("purged/")]


async def test_a_mark_goes_once_its_time_is_over_and_every_node_has_looked(world: World) -> None:
    await purged(world)
    await asyncio.sleep(HISTORY / 2)
    assert marks(world)
    await asyncio.sleep(HISTORY / 2 + 2 * LOOK)
    assert marks(world) == []


async def test_a_takeover_that_was_begun_is_forgotten_with_its_volume(world: World) -> None:
    volume = await world.create(world.a, "vol")
    async with world.b.up.node.promises.taking(volume, revision=1):
        pass
    begun = world.b.state / "takeovers.json"
    await world.remove(world.a, "vol")
    await asyncio.sleep(HISTORY / 2)
    assert volume.id in begun.read_text()
    await asyncio.sleep(HISTORY + 2 * LOOK)
    assert marks(world) == []
    assert volume.id not in begun.read_text()


async def test_a_node_that_is_down_keeps_the_mark_until_it_has_looked(world: World) -> None:
    await purged(world)
    world.c.power_off()
    await asyncio.sleep(2 * HISTORY)
    assert marks(world)
    await world.c.start()
    await asyncio.sleep(3 * LOOK)
    assert marks(world) == []


async def test_what_cannot_be_deleted_yet_keeps_the_mark_and_is_deleted_after_all(
    world: World,
) -> None:
    await world.create(world.a, "vol")
    volume = world.now_record("vol").id
    await world.remove(world.a, "vol")
    world.a.disk.spoilt[volume] = StorageError("a subvolume is in it", remedy="remove it")
    await asyncio.sleep(2 * HISTORY)
    assert marks(world) == [volume]
    del world.a.disk.spoilt[volume]
    await asyncio.sleep(3 * LOOK)
    assert volume not in world.a.disk.homes
    assert marks(world) == []


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("node", ["a", "b"])
async def test_power_that_fails_and_answers_that_are_lost_leave_the_mark_or_none(
    world: World, node: str, fault: Fault
) -> None:
    await purged(world)
    world.fail_at_label("store.commit", fault, of=node)
    await asyncio.sleep(HISTORY + LOOK)
    for machine in world.machines.values():
        if machine.run is None:
            await machine.start()
    await asyncio.sleep(5 * LOOK)
    assert marks(world) == []


@pytest.mark.parametrize("jump", [-1e7, 1e7])
async def test_a_clock_that_jumps_deletes_no_mark_that_is_needed(world: World, jump: float) -> None:
    volume = await purged(world)
    world.b.power_off()
    world.wall += jump
    await asyncio.sleep(3 * LOOK)
    assert marks(world) == [volume]


async def test_a_mark_of_an_earlier_version_says_nothing_and_goes_when_all_have_looked(
    world: World,
) -> None:
    world.data.commit((Change("purged/old.1", encode(Purged()), ABSENT),))
    await asyncio.sleep(3 * LOOK)
    assert marks(world) == []


def test_the_last_node_removes_the_mark_and_nobody_writes_twice() -> None:
    entry = HistoryEntry(at=1.0, what="purged", node="a", epoch=1)
    mark = Purged(name="vol", entry=entry)
    once = cleared(mark, node="b", nodes={"a", "b"})
    assert once is not None
    assert once.cleared == ("b",)
    assert once.entry == entry
    assert cleared(once, node="b", nodes={"a", "b"}) is once
    assert cleared(once, node="a", nodes={"a", "b"}) is None
    assert cleared(once, node="b", nodes={"b"}) is None, "the other has left the cluster"


# -- what Mounts left -------------------------------------------------------------------------------


class Places:
    """The paths and marks of a node: some are shown."""

    def __init__(self, *names: str, shown: str = "") -> None:
        self.paths, self.marks, self.shown = set(names), set(names), shown

    def prepared(self) -> frozenset[str]:
        return frozenset(self.paths)

    def forget(self, name: str) -> bool:
        if name != self.shown:
            self.paths.discard(name)
        return name != self.shown

    def held(self) -> frozenset[str]:
        return frozenset(self.marks)

    def release(self, name: str) -> None:
        self.marks.discard(name)


async def test_paths_and_marks_go_with_their_volume_unless_something_is_shown(
    world: World,
) -> None:
    await world.create(world.a, "there")
    places = Places("there", "gone", "shown", shown="shown")
    forgetting = world.a.up.forgetting
    forgetting._mounts = forgetting._marks = places  # type: ignore[assignment]
    for _ in range(2):
        await world.a.ask(lambda run: run.forgetting.forget_places())
    assert places.paths == places.marks == {"there", "shown"}
