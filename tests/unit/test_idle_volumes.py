"""A volume that nobody uses costs no loop device; one that is used keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from world import SparseSnapshotDriver, World, event_loop_policy

from pannier.agent import custody
from pannier.core.pace import Pace

__all__ = ["event_loop_policy"]

PACE = Pace().agent
A_LOOK = 2 * PACE.idle_look
STARTING = PACE.starting
"""So long an answered Mount counts as a use by itself."""


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def test_it_is_detached_some_time_after_its_container(world: World) -> None:
    volume = await world.create(world.a, "vol")
    assert volume.id not in world.a.disk.attached
    container = await world.run_container(world.a, "vol")
    await asyncio.sleep(STARTING + 3 * PACE.linger)
    assert volume.id in world.a.disk.attached
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    await asyncio.sleep(PACE.linger / 2)
    assert volume.id in world.a.disk.attached, "a restart finds it so"
    await asyncio.sleep(PACE.linger + A_LOOK)
    assert volume.id not in world.a.disk.attached


async def test_it_stays_for_as_long_as_it_is_used(world: World) -> None:
    volume = await world.create(world.a, "vol")
    container = await world.run_container(world.a, "vol")
    await asyncio.sleep(3 * PACE.busy_look)
    assert volume.id in world.a.disk.attached
    world.write(world.a, container, "file", b"there")


async def test_a_word_of_the_engine_that_was_lost_keeps_nothing_attached_for_ever(
    world: World,
) -> None:
    volume = await world.create(world.a, "vol")
    container = await world.run_container(world.a, "vol")
    await asyncio.sleep(STARTING + A_LOOK)
    world.stop_container(world.a, container)
    await asyncio.sleep(PACE.busy_look + PACE.linger + 2 * A_LOOK)
    assert volume.id not in world.a.disk.attached


# -- shown since a time at which its disk took no writes --------------------------------------------


def steps(world: World) -> list[str]:
    return [step.label for step in world.steps if step.label in ("mounts.unmount", "driver.attach")]


async def test_what_was_only_shown_is_taken_down_before_it_is_attached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    monkeypatch.setattr(custody, "takes_no_writes", lambda path: True)
    world.steps.clear()
    await world.run_container(world.a, "vol")
    assert steps(world) == ["mounts.unmount", "driver.attach"]


async def test_it_stays_for_a_container_that_is_being_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is not there yet: it would start on an empty directory."""
    await world.create(world.a, "vol")
    await world.mount(world.a, "vol", "first")
    monkeypatch.setattr(custody, "takes_no_writes", lambda path: True)
    world.steps.clear()
    await world.mount(world.a, "vol", "second")
    assert steps(world) == ["driver.attach"]
    world.start_container(world.a, "vol")
