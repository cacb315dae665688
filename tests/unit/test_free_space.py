"""A node tells how much of its pool is free."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from world import World, event_loop_policy

from pannier.cluster.registry import decode
from pannier.core.node import Node
from pannier.node.free_space import report_free_space
from pannier.storage.base import Capacity

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


def room(world: World) -> int:
    entry = world.data.get("nodes/a")
    assert entry is not None
    return decode(entry, Node).room


@pytest.mark.parametrize(("free", "tenths"), [(0, 0), (99, 0), (100, 1), (999, 9), (1000, 10)])
async def test_the_record_has_tenths_and_changes_only_with_them(
    world: World, monkeypatch: pytest.MonkeyPatch, free: int, tenths: int
) -> None:
    async def capacity() -> Capacity:
        return Capacity(total_bytes=1000, free_bytes=free)

    run = world.a.up
    monkeypatch.setattr(run.driver, "capacity", capacity)
    for _ in range(2):
        await world.a.ask(lambda run: report_free_space(run.drivers, run.membership))
        assert room(world) == tenths
    assert len([s for s in world.steps if s.label == "store.commit" and s.of == "a"]) <= 2


async def test_without_the_store_it_stays_as_it_is(world: World) -> None:
    world.cut_store("a")
    await world.a.ask(lambda run: report_free_space(run.drivers, run.membership))
    assert room(world) == 10
