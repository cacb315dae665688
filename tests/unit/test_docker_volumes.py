"""Docker's Mount, while the volume is elsewhere: it waits, gives up in time, and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import Fault, World, event_loop_policy

from pannier.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    NotHolder,
    OutcomeUnknown,
    PeerUnavailable,
    StoreUnavailable,
    VolumeNotFound,
)
from pannier.core.pace import Pace

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        await world.create(world.a, "vol")
        yield world


def now() -> float:
    return asyncio.get_running_loop().time()


async def until_awaited(world: World) -> None:
    """Until the holder was asked."""
    while not any(step.label == "peer.handover" for step in world.steps):
        await asyncio.sleep(0.1)


async def test_a_mount_waits_for_the_holders_container_and_then_has_its_data(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    waiting = asyncio.ensure_future(world.mount(world.b, "vol"))
    await until_awaited(world)
    world.write(world.a, container, "file", b"last words")
    await asyncio.sleep(30)
    assert not waiting.done()
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    await waiting
    assert world.contents("vol") == {"file": b"last words"}


async def test_a_mount_whose_time_is_over_names_the_holder_and_its_container(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    began = now()
    with pytest.raises(DeadlineExceeded, match=rf"still on node a \(.*{container}.*stop-first"):
        await world.mount(world.b, "vol")
    assert now() - began < USUAL.node.mount_budget + 10, "Docker would have hung up"
    assert world.now_record("vol").grant.node == "a"


async def test_a_mount_that_gave_up_does_not_take_the_volume_later(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    with pytest.raises(DeadlineExceeded):
        await world.mount(world.b, "vol")
    await asyncio.sleep(60)
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    await asyncio.sleep(60)
    assert world.now_record("vol").grant.node == "a"


@pytest.mark.parametrize("how", ["isolated", "without power"])
async def test_a_holder_that_stays_silent_ends_the_wait_with_its_name(
    world: World, how: str
) -> None:
    if how == "isolated":
        world.isolate("a")
    else:
        world.a.power_off()
    began = now()
    with pytest.raises(PeerUnavailable, match=r"held by node a .epoch 1.*start node a"):
        await world.mount(world.b, "vol")
    assert USUAL.node.mount_silence < now() - began < USUAL.node.mount_silence + 10


async def test_a_holder_that_comes_back_in_time_is_waited_for(world: World) -> None:
    world.a.power_off()
    waiting = asyncio.ensure_future(world.mount(world.b, "vol"))
    await asyncio.sleep(USUAL.node.mount_silence / 2)
    await world.a.start()
    await waiting
    assert world.now_record("vol").grant.node == "b"


async def test_each_answer_begins_the_silence_anew(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    waiting = asyncio.ensure_future(world.mount(world.b, "vol"))
    for _ in range(3):
        await asyncio.sleep(8)
        world.isolate("a")
        await asyncio.sleep(USUAL.node.mount_silence / 2)
        world.mend_links()
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    await waiting


async def test_a_cancelled_mount_is_no_use(world: World) -> None:
    task = world.a.up.spawn(world.a.up.docker.mount("vol", "m"))
    await asyncio.sleep(0)
    world.delay = lambda: 1.0
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.sleep(30)
    world.delay = lambda: 0.0
    assert task.cancelled()
    assert world.a.up.use._mount_ids.ages("vol", now()) == {}
    assert world.a.table.mounts.keys() == {"vol"}, "half done would be worse than not wanted"
    await world.mount(world.b, "vol")


async def test_an_abandoned_mount_is_no_use(world: World) -> None:
    await world.mount(world.a, "vol", "m")
    await world.a.ask(lambda run: run.docker.abandon("vol", "m"))
    began = now()
    await world.mount(world.b, "vol")
    assert now() - began < 10


async def test_a_mount_that_was_just_answered_is_a_use(world: World) -> None:
    await world.mount(world.a, "vol")
    waiting = asyncio.ensure_future(world.mount(world.b, "vol"))
    await asyncio.sleep(20)
    container = world.start_container(world.a, "vol")
    await asyncio.sleep(50)
    assert not waiting.done()
    world.stop_container(world.a, container)
    await waiting


async def test_lost_answers_of_the_holder_do_not_end_the_wait(world: World) -> None:
    world.fail_at_label("peer.handover", Fault.LOSE_ANSWER)
    await world.mount(world.b, "vol")
    assert world.now_record("vol").grant.node == "b"


async def test_a_holder_mounts_without_the_store(world: World) -> None:
    world.cut_store()
    await world.write_once(world.a, "vol")


async def test_a_holder_mounts_without_the_store_also_after_a_restart(world: World) -> None:
    await asyncio.sleep(1)  # until the copy of what it knows is on disk
    world.cut_store()
    world.a.power_off()
    await world.a.start()
    await world.write_once(world.a, "vol")


async def test_without_the_store_nothing_sealed_is_served(world: World) -> None:
    """It may have been given away: only a fresh record can tell."""
    record = world.now_record("vol")
    await world.a.ask(lambda run: run.driver.seal(record.id, epoch=1))
    world.cut_store("a")
    with pytest.raises(StoreUnavailable):
        await world.mount(world.a, "vol")
    world.mend_store()
    await world.write_once(world.a, "vol")


async def test_a_node_without_the_driver_says_so_at_once(world: World) -> None:
    """Also the holder itself, where its configuration has lost it: no loop without an end."""
    for machine in (world.a, world.b):
        machine.up.drivers._open.clear()
        with pytest.raises(NotHolder, match=f"node {machine.name} has no btrfs driver"):
            await asyncio.wait_for(world.mount(machine, "vol"), 5.0)


async def test_an_unknown_volume_is_an_error_and_no_directory(world: World) -> None:
    with pytest.raises(VolumeNotFound):
        await world.mount(world.b, "other")
    assert world.b.table.mounts == {}


async def test_an_unknown_volume_without_the_store_is_not_called_absent(world: World) -> None:
    world.cut_store("b")
    with pytest.raises(StoreUnavailable):
        await world.mount(world.b, "other")
    with pytest.raises(StoreUnavailable, match="nothing was created"):
        await world.create(world.b, "other")


async def test_docker_is_answered_from_memory(world: World) -> None:
    world.cut_store()
    world.isolate("b")
    steps = len(world.steps)
    docker = world.b.up.docker
    assert docker.get("vol").status["holder"] == "a"
    assert [volume.name for volume in docker.list()] == ["vol"]
    with pytest.raises(VolumeNotFound):
        docker.get("other")
    assert len(world.steps) == steps


async def test_a_repeated_creation_changes_nothing(world: World) -> None:
    before = world.record("vol")
    await world.b.ask(lambda run: run.docker.create("vol", {}))
    assert world.record("vol") == before
    with pytest.raises(AlreadyExists, match="size is none, not 1G"):
        await world.b.ask(lambda run: run.docker.create("vol", {"size": "1G"}))


async def test_unmounts_that_nobody_knows_are_no_error(world: World) -> None:
    for name in ("vol", "other"):
        await world.unmount(world.b, name, "never given")


async def test_a_drained_node_keeps_what_its_docker_waits_for(tmp_path: Path) -> None:
    """Else the volume would be given away between its arrival and its mount, again and again."""
    async with World(tmp_path, with_upkeep=True) as world:
        await world.create(world.a, "vol")
        await world.a.ask(lambda run: run.service.drain_node("b", drained=True))
        world.delay = lambda: 0.5
        await world.mount(world.b, "vol")
        assert world.now_record("vol").grant.node == "b"


async def test_an_outcome_that_is_unknown_is_not_a_failure_of_the_mount(world: World) -> None:
    for fault in (Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE):
        world.fail_at_label("store.commit", fault)
        target = world.b if world.now_record("vol").grant.node == "a" else world.a
        try:
            await world.write_once(target, "vol", fault.value.encode())
        except OutcomeUnknown:
            await world.write_once(target, "vol", fault.value.encode())
        assert world.now_record("vol").grant.node == target.name


async def test_of_two_nodes_that_mount_it_at_once_one_gets_it(world: World) -> None:
    """And not both in turn, for ever."""
    mounts = [asyncio.ensure_future(world.mount(machine, "vol")) for machine in (world.b, world.c)]
    done, waiting = await asyncio.wait(mounts, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    record = world.now_record("vol")
    assert record.grant.node == ("b" if mounts[0] in done else "c")
    assert record.grant.epoch <= 4
    for one in waiting:
        one.cancel()
