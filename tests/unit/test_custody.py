"""What a node does on its own: upkeep, what it takes in, what doctor and events say of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import Fault, Run, World, event_loop_policy

from pannier.cluster.registry import volume_key
from pannier.contract.views import EventView, FindingView
from pannier.core.errors import Corrupt, Denied, NewerFormat, Stale, VolumeNotFound
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.pace import NodePace, Pace
from pannier.storage.base import RootAttributes
from pannier.store.base import ABSENT, Change
from pannier.transport.base import Offer

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
USUAL = Pace()
DAY = 3600.0
"""What a day in the trash is in these tests: fewer turns of the same loop."""
_ROOT = RootAttributes()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, with_upkeep=True, pace=Pace(node=NodePace(trash=DAY))) as world:
        await world.create(world.a, "vol")
        await world.write_once(world.a, "vol", b"precious")
        yield world


def has_data(world: World, name: str) -> bool:
    return bool(world.machines[name].disk.homes)


# -- the trash --------------------------------------------------------------------------------------


async def test_a_removed_volume_is_kept_for_a_day_and_then_freed_everywhere(world: World) -> None:
    await world.write_once(world.b, "vol")
    await world.remove(world.a, "vol")
    await asyncio.sleep(DAY - 300)
    assert has_data(world, "b")
    await asyncio.sleep(600)
    assert not has_data(world, "a")
    assert not has_data(world, "b")
    with pytest.raises(VolumeNotFound):
        await world.restore(world.a, "vol")


async def test_a_clock_that_jumps_deletes_nothing(world: World) -> None:
    await world.remove(world.a, "vol")
    world.wall += 10 * DAY
    await asyncio.sleep(600)
    await world.restore(world.a, "vol")


async def test_a_daemon_that_keeps_crashing_does_not_shorten_the_day(world: World) -> None:
    await world.remove(world.a, "vol")
    for _ in range(int(DAY / 60) + 10):
        world.a.crash()
        await world.a.start()
    await asyncio.sleep(130)
    await world.restore(world.a, "vol")


async def test_a_restored_volume_begins_its_day_anew(world: World) -> None:
    for _ in range(2):
        await world.remove(world.a, "vol")
        await asyncio.sleep(DAY * 0.75)
        await world.restore(world.a, "vol")
        await asyncio.sleep(130)


async def test_data_that_the_store_does_not_know_is_kept(world: World) -> None:
    await world.b.ask(lambda run: run.driver.create("lost.1", epoch=1, root=_ROOT, size_bytes=None))
    await asyncio.sleep(2 * DAY)
    assert "lost.1" in world.b.disk.homes


# -- drain ------------------------------------------------------------------------------------------


async def drain(world: World, name: str) -> None:
    await world.c.ask(lambda run: run.service.drain_node(name, drained=True))


async def test_a_drained_node_gives_its_idle_volumes_away_and_the_used_when_they_become_idle(
    world: World,
) -> None:
    await world.create(world.a, "used")
    container = await world.run_container(world.a, "used")
    await drain(world, "a")
    await asyncio.sleep(300)
    assert world.now_record("vol").grant.node != "a"
    assert world.now_record("used").grant.node == "a"
    world.stop_container(world.a, container)
    await asyncio.sleep(300)
    assert world.now_record("used").grant.node != "a"


async def test_a_volume_that_cannot_go_does_not_keep_the_others(world: World) -> None:
    world.a.disk.homes[world.now_record("vol").id].live.clear()
    await world.create(world.a, "later")
    world.acked.clear()
    await drain(world, "a")
    await asyncio.sleep(300)
    assert world.now_record("later").grant.node != "a"
    world.violations.clear()  # of the tree that this test took away


async def test_nothing_is_given_to_a_node_that_is_down_or_drained(world: World) -> None:
    world.b.power_off()
    await asyncio.sleep(20)
    await drain(world, "a")
    await asyncio.sleep(100)
    assert world.now_record("vol").grant.node == "c"
    await drain(world, "c")
    await asyncio.sleep(200)
    assert world.now_record("vol").grant.node == "c"


# -- what is taken in -------------------------------------------------------------------------------


def offer(world: World, *, epoch: int = 1, volume_id: str = "") -> Offer:
    return Offer(
        volume_id=volume_id or world.now_record("vol").id,
        volume_name="vol",
        driver="btrfs",
        epoch=epoch,
        generation=Generation(epoch, 1),
    )


async def test_a_generation_is_taken_only_from_the_holder_at_its_epoch(world: World) -> None:
    async def admit(what: Offer, peer: str) -> None:
        await world.b.ask(lambda run: run.reception.admit(what, peer=peer))

    await admit(offer(world), "a")
    for wrong, peer in ((offer(world), "c"), (offer(world, epoch=2), "a")):
        with pytest.raises(Stale, match="node a does, at epoch 1"):
            await admit(wrong, peer)
    with pytest.raises(Denied, match="is another one now"):
        await admit(offer(world, volume_id="vol.old"), "a")
    await world.write_once(world.c, "vol")
    with pytest.raises(Stale, match="node c does, at epoch 2"):
        await admit(offer(world), "a")


# -- data that is not there ---------------------------------------------------------------------------


async def test_missing_data_is_an_error_for_mount_move_and_remove_and_never_an_empty_tree(
    world: World,
) -> None:
    del world.a.disk.homes[world.now_record("vol").id]
    with pytest.raises(Corrupt, match="an empty directory is never given instead"):
        await world.mount(world.a, "vol")
    with pytest.raises(Corrupt):
        await world.move(world.a, "vol", "b")
    with pytest.raises(Corrupt):
        await world.remove(world.a, "vol")
    assert world.now_record("vol").grant.node == "a"
    found = await findings(world, "a", "volume vol")
    assert [(f.level, f.what) for f in found] == [
        ("problem", "its data is not on this node's disk")
    ]
    world.violations.clear()  # of the tree that this test took away


# -- newer versions and damage ------------------------------------------------------------------------


async def test_a_volume_of_a_newer_format_is_listed_and_left_alone(world: World) -> None:
    """As on a node that got its older version back."""
    found = world.data.get(volume_key("vol"))
    assert found is not None
    newer = found.value.replace(b'"format":1', b'"format":3')
    world.data.commit((Change(found.key, newer, found.revision),))
    await asyncio.sleep(1)
    with pytest.raises(NewerFormat, match="volume vol"):
        await world.mount(world.a, "vol")
    with pytest.raises(NewerFormat, match="volumes/vol"):
        await world.remove(world.a, "vol")
    with pytest.raises(NewerFormat, match="volumes/vol"):
        await world.move(world.a, "vol", "b")
    assert [volume.name for volume in world.b.up.catalog.volumes()] == ["vol"]
    [first, *_] = await findings(world, "a", "volume vol")
    assert (first.level, "newer version" in first.what) == ("warning", True)
    unchanged = world.data.get(volume_key("vol"))
    assert unchanged is not None
    assert unchanged.value == newer


async def test_what_a_newer_version_removed_is_not_purged(world: World) -> None:
    await world.remove(world.a, "vol")
    [found] = world.data.list("trash/")
    newer = found.value.replace(b'"format":1', b'"format":3')
    world.data.commit((Change(found.key, newer, found.revision),))
    await asyncio.sleep(2 * DAY)
    assert has_data(world, "a")
    assert world.data.list("trash/")


async def test_doctor_names_a_damaged_record(world: World) -> None:
    world.data.commit((Change("nodes/bad", b"{", ABSENT),))
    await asyncio.sleep(1)
    [found] = await findings(world, "a", "record nodes/bad")
    assert (found.level, "cannot be read" in found.what) == ("problem", True)
    assert [volume.name for volume in world.a.up.catalog.volumes()] == ["vol"]


# -- doctor ---------------------------------------------------------------------------------------------


async def findings(world: World, name: str, subject: str) -> list[FindingView]:
    found = await world.machines[name].ask(lambda run: run.service.doctor())
    return [finding for finding in found if finding.subject == subject]


async def test_doctor_has_no_problem_where_there_is_none(world: World) -> None:
    await world.a.engine.activate_plugin()
    found = await world.a.ask(lambda run: run.service.doctor())
    assert {finding.level for finding in found} == {"ok"}


async def test_doctor_goes_on_where_a_check_fails_in_an_unexpected_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> list[str]:
        raise OSError(5, "Input/output error")

    before = await world.a.ask(lambda run: run.service.doctor())
    monkeypatch.setattr(world.a.up.service._doctor, "_pool_problems", fail)
    found = await world.a.ask(lambda run: run.service.doctor())
    (pool,) = [each for each in found if each.subject == "pool"]
    assert (pool.level, pool.what) == ("problem", "[Errno 5] Input/output error")
    others = [each for each in before if not each.subject.startswith("pool")]
    assert [each for each in found if each is not pool] == others


async def test_doctor_names_who_uses_a_volume(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    (found,) = await findings(world, "a", "volume vol")
    assert container in found.what


async def test_doctor_tells_of_a_stray_and_of_data_of_nobody(world: World) -> None:
    await world.write_once(world.b, "vol")
    await asyncio.sleep(USUAL.holding.tidy_after + 1)
    record = world.now_record("vol")
    home = world.a.disk.homes[record.id]
    await world.a.ask(
        lambda run: run.driver._inner.promote(
            record.id, max(home.generations), epoch=1, size_bytes=None, on_top=OnTop.NOTHING
        )
    )
    found = await findings(world, "a", "volume vol")
    assert any("stray of epoch 1" in finding.what for finding in found)
    world.a.disk.homes["lost.1"] = home
    assert await findings(world, "a", "data lost.1")
    world.violations.clear()  # of the tree that this test made


async def test_doctor_tells_of_a_node_that_is_down_and_what_it_holds(world: World) -> None:
    world.a.power_off()
    await asyncio.sleep(20)
    (found,) = await findings(world, "b", "node a")
    assert (found.level, found.what) == ("problem", "down; it holds vol")


async def test_doctor_tells_of_the_store_and_the_engine(world: World) -> None:
    world.cut_store("a")
    await world.a.engine.stop()
    levels = {
        finding.subject: finding.level
        for finding in await world.a.ask(lambda run: run.service.doctor())
    }
    assert levels["store store-of-a"] == "problem"
    assert levels["docker on a"] == "problem"


# -- events -----------------------------------------------------------------------------------------------


async def test_events_tell_every_change_once_on_every_node(world: World) -> None:
    heard: list[EventView] = []

    async def listen(run: Run) -> None:
        async for event in run.service.events(follow=True):
            heard.append(event)

    listening = world.c.up.spawn(listen(world.c.up))
    await asyncio.sleep(1)
    assert [event.kind for event in heard] == ["volume.created"]
    await world.write_once(world.b, "vol")
    await world.remove(world.a, "vol")
    await world.restore(world.a, "vol")
    await asyncio.sleep(1)
    world.b.power_off()
    await asyncio.sleep(20)
    assert [event.kind for event in heard] == [
        "volume.created",
        "volume.moved",
        "volume.removed",
        "volume.restored",
        "node.down",
    ]
    assert all(event.kind.known for event in heard)
    listening.cancel()


# -- starting again ---------------------------------------------------------------------------------------


async def test_a_restarted_daemon_leaves_running_containers_alone(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    world.a.crash()
    world.write(world.a, container, "file", b"meanwhile")
    await world.a.start()
    world.write(world.a, container, "file", b"and after")
    waiting = asyncio.ensure_future(world.mount(world.b, "vol"))
    await asyncio.sleep(30)
    assert not waiting.done()
    world.stop_container(world.a, container)
    await waiting


async def test_what_a_cut_left_sealed_or_undropped_is_settled_at_the_next_start(
    world: World,
) -> None:
    world.fail_at_label("driver.drop_live", Fault.CUT_BEFORE, of="a")
    await world.mount(world.b, "vol")
    await asyncio.sleep(USUAL.holding.tidy_after + 1)
    assert world.a.disk.homes[world.now_record("vol").id].live
    await world.a.start()
    await asyncio.sleep(1)
    home = world.a.disk.homes[world.now_record("vol").id]
    assert not home.live
    assert len(home.generations) == 1, "kept, so that the way back sends only the difference"
