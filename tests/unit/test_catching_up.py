"""Copies that were away are brought up to date a few at a time, and nobody who is in a hurry waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import event_loop_policy

from pannier.copies.catching_up import CatchUps

__all__ = ["event_loop_policy"]


class Crowd:
    """Copies that catch up, each until it is told to end."""

    def __init__(self, *, at_once: int) -> None:
        self.turns = CatchUps(at_once=at_once)
        self.rest = 0.0
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def come(self, volume: str, *, size: int, node: str = "b") -> asyncio.Task[None]:
        self._ends[volume] = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._catch_up(volume, size, node)))
        return self._tasks[-1]

    async def _catch_up(self, volume: str, size: int, node: str) -> None:
        async with self.turns.turn(volume, node, size=size, rest=lambda took: self.rest):
            self.running.append(volume)
            await self._ends[volume].wait()
            self.running.remove(volume)

    async def end(self, volume: str) -> None:
        self._ends[volume].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_the_smallest_comes_first_and_no_more_than_so_many() -> None:
    crowd = Crowd(at_once=2)
    for number, size in enumerate((50, 40, 30, 10, 20)):
        crowd.come(f"v{number}", size=size)
    await crowd.settle()
    # The first two found nobody before them.
    assert (crowd.running, crowd.turns.waiting("b")) == (["v0", "v1"], 3)
    await crowd.end("v0")
    assert crowd.running == ["v1", "v3"]
    await crowd.end("v1")
    assert crowd.running == ["v3", "v4"]
    await crowd.end("v3")
    assert (crowd.running, crowd.turns.waiting("b")) == (["v4", "v2"], 0)


async def test_a_node_waits_for_no_other_node() -> None:
    crowd = Crowd(at_once=1)
    crowd.come("v0", size=1)
    crowd.come("v1", size=1, node="c")
    await crowd.settle()
    assert crowd.running == ["v0", "v1"]


async def test_what_somebody_waits_for_comes_at_once_and_takes_nobodys_turn() -> None:
    crowd = Crowd(at_once=1)
    for number in range(3):
        crowd.come(f"v{number}", size=number)
    await crowd.settle()
    crowd.turns.hurry("v2", "b")
    crowd.turns.hurry("unknown", "b")
    await crowd.settle()
    assert crowd.running == ["v0", "v2"]
    await crowd.end("v2")
    assert crowd.running == ["v0"]
    await crowd.end("v0")
    assert crowd.running == ["v1"]


async def test_whoever_gives_up_leaves_no_gap() -> None:
    crowd = Crowd(at_once=1)
    first, second = crowd.come("v0", size=1), crowd.come("v1", size=1)
    crowd.come("v2", size=2)
    await crowd.settle()
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await crowd.settle()
    assert (crowd.running[-1], crowd.turns.waiting("b")) == ("v2", 0)


async def test_nobody_has_a_turn_while_there_is_a_rest_and_nobody_in_a_hurry_waits_for_it() -> None:
    crowd = Crowd(at_once=1)
    crowd.rest = 5.0
    for number in range(3):
        crowd.come(f"v{number}", size=number)
    await crowd.settle()
    await crowd.end("v0")
    await asyncio.sleep(4.9)
    assert (crowd.running, crowd.turns.waiting("b")) == ([], 2)
    crowd.turns.hurry("v2", "b")
    await crowd.settle()
    assert crowd.running == ["v2"]
    await asyncio.sleep(0.2)
    assert crowd.running == ["v2"]
    await crowd.end("v2")
    await asyncio.sleep(5)
    assert crowd.running == ["v1"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


async def test_a_node_that_returns_gets_few_copies_at_once_and_all_in_the_end(
    world: CopiesWorld,
) -> None:
    volumes = [await world.volume(world.a, f"vol{n}", copies="3") for n in range(6)]
    await asyncio.sleep(5)
    world.b.power_off()
    for volume in volumes:
        world.put(world.a, volume)
    await world.until(lambda: not any("b" in world.now_record(v.name).in_sync for v in volumes))
    world.slow["b"] = 4.0
    await world.b.start()
    await world.until(lambda: any(world.current(world.b, volume) for volume in volumes))
    await asyncio.sleep(1)
    assert sum(world.current(world.b, volume) for volume in volumes) == 2
    await asyncio.sleep(60)
    assert all(world.current(world.b, volume) for volume in volumes)


async def test_a_copy_that_is_lost_while_it_waits_for_its_turn_gets_all_at_its_turn(
    world: CopiesWorld,
) -> None:
    volumes = [await world.volume(world.a, f"vol{n}", copies="3") for n in range(4)]
    await asyncio.sleep(5)
    world.b.power_off()
    for volume in volumes:
        world.put(world.a, volume)
    await world.until(lambda: not any("b" in world.now_record(v.name).in_sync for v in volumes))
    world.slow["b"] = 4.0
    await world.b.start()
    await asyncio.sleep(1)
    for volume in volumes:
        if not world.current(world.b, volume):
            await world.a.up.acknowledging.lost(volume.name, epoch=volume.grant.epoch, node="b")
    await asyncio.sleep(60)
    assert all(world.current(world.b, volume) for volume in volumes)


@pytest.mark.parametrize("synced", [True, False])
async def test_while_sync_calls_are_made_copies_catch_up_with_rests(
    world: CopiesWorld, synced: bool
) -> None:
    volumes = [await world.volume(world.a, f"vol{n}", copies="3") for n in range(6)]
    busy, *others = volumes
    await asyncio.sleep(5)
    world.b.power_off()
    for volume in volumes:
        world.put(world.a, volume)
    await world.until(lambda: not any("b" in world.now_record(v.name).in_sync for v in volumes))
    world.slow["b"] = 0.1
    await world.b.start()
    loop = asyncio.get_running_loop()

    async def seconds_until(back: int) -> float:
        began = loop.time()
        while sum(world.current(world.b, volume) for volume in others) < back:
            if synced:
                world.put(world.a, busy, f"at {loop.time()}")
                await world.a.up.acknowledging.make_durable(busy.name)
            await asyncio.sleep(0.01)
        return loop.time() - began

    await seconds_until(1)
    took = await seconds_until(len(others))
    assert (took > 1.5) is synced  # 0.2 s without rests: two at a time
