"""A volume that a node can neither tidy nor remove: its own trouble, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import World, event_loop_policy

from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import Level
from pannier.core.errors import StorageError
from pannier.core.pace import NodePace, Pace

__all__ = ["event_loop_policy"]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
DAY = 600.0
WHY, REMEDY = "a subvolume is in it", "btrfs subvolume delete /var/lib/pannier/pool/x"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, with_upkeep=True, pace=Pace(node=NodePace(trash=DAY))) as world:
        for name in ("bad", "good"):
            await world.create(world.a, name)
            await world.write_once(world.a, name, b"precious")
        yield world


def spoil(world: World, name: str) -> str:
    record = world.now_record(name)
    world.a.disk.spoilt[record.id] = StorageError(WHY, remedy=REMEDY)
    return record.id


async def test_a_mount_is_refused_with_the_reason_until_it_is_mended(world: World) -> None:
    ident = spoil(world, "bad")
    with pytest.raises(StorageError, match=WHY) as refused:
        await world.mount(world.a, "bad")
    assert refused.value.remedy == REMEDY
    await world.run_container(world.a, "good")
    del world.a.disk.spoilt[ident]
    await world.run_container(world.a, "bad")


async def test_show_and_doctor_say_why_and_what_to_do(world: World) -> None:
    spoil(world, "bad")
    shown = await world.a.ask(lambda run: run.service.volume("bad"))
    assert isinstance(shown, LiveVolumeView)
    assert WHY in shown.quarantine
    assert REMEDY in shown.quarantine
    other = await world.a.ask(lambda run: run.service.volume("good"))
    assert isinstance(other, LiveVolumeView)
    assert other.quarantine == ""
    findings = await world.a.ask(lambda run: run.service.doctor())
    told = [one for one in findings if one.subject == "volume bad"]
    assert [(one.level, one.what, one.remedy) for one in told] == [(Level.PROBLEM, WHY, REMEDY)]


async def test_its_node_keeps_its_lease(world: World) -> None:
    spoil(world, "bad")
    await asyncio.sleep(60)
    assert world.b.up.catalog.is_up("a")
    await world.a.ask(lambda run: run.service.status())


async def test_others_are_purged_and_it_goes_when_it_can(world: World) -> None:
    ident = spoil(world, "bad")
    record = world.now_record("good")
    del world.a.disk.spoilt[ident]
    await world.remove(world.a, "bad")
    await world.remove(world.a, "good")
    world.a.disk.spoilt[ident] = StorageError(WHY, remedy=REMEDY)
    await asyncio.sleep(2 * DAY)
    assert record.id not in world.a.disk.homes
    assert ident in world.a.disk.homes
    del world.a.disk.spoilt[ident]
    await asyncio.sleep(120)
    assert ident not in world.a.disk.homes
