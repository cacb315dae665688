"""The holder's own disk does not give back what it is to send: it is told, and not tried for ever; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SnapshotDriver, SparseSnapshotDriver
from world import Machine, event_loop_policy

from pannier.contract.views import FindingView
from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import Level
from pannier.core import damage
from pannier.core.delivery import SENT_ANEW
from pannier.core.errors import Unreadable
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace, Pace
from pannier.core.volume import HistoryEntry, Volume

__all__ = ["event_loop_policy"]

PACE = CopiesPace(refused_limit=60.0)
"""With a limit that a test can wait for."""


@pytest_asyncio.fixture(params=[SnapshotDriver, SparseSnapshotDriver])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(
        tmp_path, pace=Pace(copies=PACE), driver=request.param, with_upkeep=True
    ) as world:
        yield world


async def copied(world: CopiesWorld, **options: str) -> tuple[Volume, Machine]:
    volume = await world.saved_volume(world.a, **options)
    replica = world.replica(volume)
    await world.until(lambda: world.current(replica, volume))
    world.tries.clear()
    return volume, replica


def told(world: CopiesWorld, *words: str) -> list[HistoryEntry]:
    wanted = words or (damage.UNREADABLE, damage.WHOLE)
    return [line for line in world.now_record().history if line.what in wanted]


async def findings(world: CopiesWorld, node: Machine) -> list[FindingView]:
    found = await node.ask(lambda run: run.service.doctor())
    return [one for one in found if one.level == Level.PROBLEM and one.subject == "volume vol"]


async def spoilt(world: CopiesWorld, volume: Volume) -> None:
    """Something is written to a place that the holder's disk does not give back."""
    world.a.disk.bad.add(("file", b"lost"))
    world.put(world.a, volume, "file", b"lost")
    await world.until(lambda: told(world))


async def test_it_is_told_once_and_tried_more_and_more_seldom(world: CopiesWorld) -> None:
    volume, _ = await copied(world)
    await spoilt(world, volume)
    await asyncio.sleep(900)
    (line,) = told(world)
    assert (line.what, line.node) == (damage.UNREADABLE, "a")
    assert "'file' cannot be read" in line.detail
    assert not told(world, SENT_ANEW), "the copy refuses nothing"
    times = [at for _, at in world.tries]
    assert len(times) < 40
    assert min(later - at for at, later in list(pairwise(times))[-3:]) >= PACE.refused_limit - 2
    (found,) = await findings(world, world.a)
    assert "on a: 'file' cannot be read" in found.what
    assert "dmesg on a" in found.remedy
    shown = await world.a.ask(lambda run: run.service.volume("vol"))
    assert isinstance(shown, LiveVolumeView)
    assert shown.damage == ["a: 'file' cannot be read"]
    (copy,) = (await world.copies(world.a)).values()
    assert "cannot be read" in copy.error
    assert copy.refused == "", "it is not the copy that fails"


async def test_what_cannot_be_acknowledged_leaves_the_copies_in_sync(world: CopiesWorld) -> None:
    volume, replica = await copied(world)
    await spoilt(world, volume)
    if isinstance(world.make_driver(world.a), SparseSnapshotDriver):
        return  # a record tells what was written, as long as the cut can be read
    await world.sync(world.a)
    assert replica.name not in world.now_record().in_sync


async def test_what_is_written_anew_arrives_as_a_difference_and_ends_it(world: CopiesWorld) -> None:
    volume, replica = await copied(world)
    await spoilt(world, volume)
    await asyncio.sleep(300)
    world.put(world.a, volume, "file", b"from a backup")
    await world.until(lambda: world.current(replica, volume), seconds=3 * PACE.refused_limit)
    await world.until(lambda: len(told(world)) == 2)
    assert [line.what for line in told(world)] == [damage.UNREADABLE, damage.WHOLE]
    assert not await findings(world, world.a)
    await world.until(lambda: replica.name in world.now_record().in_sync)


async def test_a_base_whose_part_here_is_damaged_is_left_for_everything(
    world: CopiesWorld,
) -> None:
    """Of a file system with checksums, a difference may need more than everything does."""
    volume, replica = await copied(world)
    driver = world.a.up.driver
    send, bases = driver.send, frozenset(world.generations(replica, volume))

    def refuse(volume_id: str, generation: Generation, *, base: Generation | None) -> object:
        if base in bases:
            raise Unreadable("the base's part cannot be read")
        return send(volume_id, generation, base=base)

    driver.send = refuse  # type: ignore[method-assign, assignment]
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume), seconds=60)
    await world.until(lambda: len(told(world)) == 2)
    assert told(world)[-1].what == damage.WHOLE


async def test_after_a_move_what_the_bad_disk_has_is_made_anew(world: CopiesWorld) -> None:
    """One copy has everything, and another could not be made: the remedy is to move the volume."""
    volume, replica = await copied(world)
    world.a.disk.bad |= set(world.copy(replica, volume).items())
    third = next(m for m in (world.b, world.c) if m is not replica)
    await world.a.ask(lambda run: run.service.by("tester").set_volume("vol", {"copies": "3"}))
    await world.until(lambda: told(world), seconds=60)
    (found,) = await findings(world, world.a)
    assert f"pannier volume move vol {replica.name}" in found.remedy
    await world.unmount(world.a, "vol")
    await world.mount(replica, "vol")
    await world.until(lambda: "a" in world.now_record().replicas, seconds=60)
    await world.until(lambda: told(world, damage.MADE_ANEW), seconds=900)
    await world.until(lambda: {"a", third.name} <= set(world.now_record().in_sync), seconds=300)
    assert not await findings(world, replica)


async def test_a_restarted_holder_tells_nothing_twice(world: CopiesWorld) -> None:
    volume, _ = await copied(world)
    await spoilt(world, volume)
    await world.down(world.a)
    await world.a.start()
    await asyncio.sleep(300)
    assert len(told(world)) == 1
