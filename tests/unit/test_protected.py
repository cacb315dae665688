"""A protected volume is removed by nobody and nothing, before a person takes that back; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from world import ACTOR, Machine, World, event_loop_policy

from pannier.cluster.registry import encode, trash_key
from pannier.core.errors import Conflict, Stale
from pannier.core.pace import Pace
from pannier.core.volume import HistoryEntry, Volume
from pannier.store.base import ABSENT, Change

__all__ = ["event_loop_policy"]

SHORT = Pace(node=replace(Pace().node, trash=300.0))
"""The trash keeps what is removed for some minutes only."""


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, with_upkeep=True, pace=SHORT) as world:
        yield world


async def protect(machine: Machine, *, protected: bool) -> None:
    """``pannier volume set``."""
    options = {"protected": "true" if protected else "false"}
    await machine.ask(lambda run: run.service.by(ACTOR).set_volume("vol", options))


async def test_neither_docker_nor_a_person_removes_it(world: World) -> None:
    await world.create(world.a, "vol", protected="true")
    for machine in (world.a, world.b):
        with pytest.raises(Conflict, match="volume vol is protected"):
            await world.remove(machine, "vol")
        with pytest.raises(Conflict) as caught:
            await machine.ask(lambda run: run.service.by(ACTOR).remove_volume("vol"))
        assert caught.value.remedy.endswith("pannier volume set vol -o protected=false")
    await world.write_once(world.a, "vol")
    assert world.a.disk.homes[world.now_record().id].live[1].sealed is False


async def test_it_is_removed_once_that_is_taken_back_and_protected_by_any_node(
    world: World,
) -> None:
    await world.create(world.a, "vol")
    await protect(world.b, protected=True)
    with pytest.raises(Conflict, match="is protected"):
        await world.remove(world.c, "vol")
    await protect(world.c, protected=False)
    await world.remove(world.b, "vol")
    assert world.record("vol") is None


async def test_it_is_not_given_up_with_its_node_either(world: World) -> None:
    volume = await world.create(world.a, "vol", protected="true")
    world.a.power_off()
    await asyncio.sleep(60)
    with pytest.raises(Conflict, match="volume vol is protected"):
        await world.b.ask(lambda run: run.service.by(ACTOR).remove_node("a", lost=True))
    assert world.now_record().grant == volume.grant
    assert world.b.up.catalog.node("a") is not None


async def test_no_end_of_the_trash_takes_it(world: World) -> None:
    """A node of an earlier version may have put it there, which knows nothing of this."""
    volume = await world.create(world.a, "vol", protected="true")
    await world.create(world.a, "other")
    into_the_trash(world, volume)
    await world.remove(world.a, "other")
    other = world.a.up.catalog.trashed()
    await asyncio.sleep(600)
    assert len(other) == 2
    assert [each.id for each in world.a.up.catalog.trashed()] == [volume.id]
    await world.a.ask(lambda run: run.service.by(ACTOR).empty_trash())
    with pytest.raises(Conflict, match="is protected") as caught:
        await world.a.ask(lambda run: run.service.by(ACTOR).purge_volume("vol"))
    assert f"pannier volume restore {volume.id}, then" in caught.value.remedy
    assert volume.id in world.a.disk.homes
    await world.restore(world.b, "vol")
    await protect(world.b, protected=False)
    await world.remove(world.b, "vol")
    await world.a.ask(lambda run: run.service.by(ACTOR).purge_volume("vol"))
    assert world.trashed(volume.id) is None


async def test_one_that_is_protected_at_the_last_moment_stays(world: World) -> None:
    """The record that is to be changed is not the one that was looked at before."""
    await world.create(world.a, "vol")
    removing = asyncio.ensure_future(world.remove(world.b, "vol"))
    await protect(world.c, protected=True)
    try:
        await removing
    except (Conflict, Stale):
        assert world.now_record().spec.protected
    else:
        assert world.record("vol") is None


async def test_the_registry_itself_refuses(world: World) -> None:
    volume = await world.create(world.a, "vol", protected="true")
    registry = world.a.up.registry
    with pytest.raises(Conflict):
        await registry.trash_volume(replace(volume, removed_at=1.0), expect=1)
    entry = HistoryEntry(at=1.0, what="purged", node="a", epoch=1)
    with pytest.raises(Conflict):
        await registry.purge_volume(replace(volume, removed_at=1.0), expect=1, entry=entry)


def into_the_trash(world: World, volume: Volume) -> None:
    entry = world.data.get("volumes/vol")
    assert entry is not None
    removed = replace(world.now_record(), removed_at=world.wall_time())
    world.data.commit(
        (
            Change(entry.key, None, entry.revision),
            Change(trash_key(volume.id), encode(removed), ABSENT),
        )
    )
