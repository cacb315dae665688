"""Hand-overs: their rules one by one, and once more on real directories instead of a disk in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from world import Fault, Machine, Step, World, event_loop_policy

from pannier.contract.views import HandoverReply
from pannier.core.errors import Conflict, NodeNotFound, PannierError, Stale, VolumeInUse
from pannier.storage.base import Driver
from pannier.storage.directory.driver import DirectoryDriver
from pannier.storage.directory.root import create_directory

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        await world.create(world.a, "vol")
        await world.write_once(world.a, "vol", b"precious")
        world.steps.clear()
        yield world


def labels(world: World, of: str) -> list[str]:
    return [step.label for step in world.steps if step.of == of]


def grant(world: World) -> tuple[str, int]:
    found = world.now_record("vol").grant
    return found.node, found.epoch


async def test_the_order_is_unmount_seal_send_record_drop(world: World) -> None:
    await world.move(world.a, "vol", "b")
    await asyncio.sleep(60)
    wanted = ["mounts.unmount", "driver.seal", "driver.send", "store.commit", "driver.drop_live"]
    assert [label for label in labels(world, "a") if label in wanted] == wanted


async def test_the_bulk_is_sent_while_it_is_in_use(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b", wait_seconds=100))
    await asyncio.sleep(10)
    world.write(world.a, container, "late", b"write")
    world.stop_container(world.a, container)
    steps = await moving
    assert labels(world, "a").count("driver.snapshot") > 2
    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases == ["copying", "waiting", "switching", "done"]
    assert any(container in user for step in steps for user in step.in_use_by)
    assert world.contents("vol") == {"by-a": b"precious", "late": b"write"}


async def test_who_only_looks_on_is_not_waited_for_and_keeps_what_it_has(world: World) -> None:
    """A backup program has a file open, so that the kernel refuses an ordinary unmount."""
    await world.mount(world.a, "vol")
    await asyncio.sleep(100)
    table = world.a.table
    for looker in ("cadvisor", "process in vol"):
        table.containers[looker] = table.mounts["vol"]
        table.onlookers.add(looker)
    steps = await world.move(world.a, "vol", "b", wait_seconds=1)
    assert grant(world) == ("b", 2)
    assert all(not step.in_use_by for step in steps)
    assert {"cadvisor", "process in vol"} <= set(table.containers), "nobody was killed"
    await world.write_once(world.b, "vol", b"on")
    assert world.contents("vol") == {"by-a": b"precious", "by-b": b"on"}


async def test_who_begins_to_write_between_the_look_and_the_unmount_keeps_the_volume(
    world: World,
) -> None:
    await world.mount(world.a, "vol")
    await asyncio.sleep(100)
    table = world.a.table

    def begin(step: Step) -> None:
        """At the last question to the store before the unmount."""
        if (step.of, step.label) == ("a", "store.get"):
            table.containers["process in vol"] = table.mounts["vol"]

    world.faults = begin
    with pytest.raises(VolumeInUse):
        await world.move(world.a, "vol", "b", wait_seconds=1)
    assert grant(world) == ("a", 1)


async def test_no_container_waits_for_the_deletion_of_what_a_move_leaves_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tree the kernel frees its cached pages: seconds for a big volume."""

    async def slow(*_: object, **__: object) -> None:
        deleted.append(asyncio.get_running_loop().time())
        await asyncio.sleep(30)

    deleted: list[float] = []
    for machine in (world.a, world.b):
        for name in ("drop_live", "delete_generation"):
            monkeypatch.setattr(machine.up.driver, name, slow)
    container = await world.run_container(world.a, "vol")
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b", wait_seconds=100))
    for number in range(10):
        await asyncio.sleep(2)
        world.write(world.a, container, "file", b"%d" % number)
    world.stop_container(world.a, container)
    stopped = asyncio.get_running_loop().time()
    await world.unmount(world.a, "vol")
    await world.mount(world.b, "vol")
    assert asyncio.get_running_loop().time() - stopped < 1
    await moving
    assert not deleted
    await asyncio.sleep(120)
    assert len(deleted) > 5


async def test_a_volume_that_stays_in_use_stays_where_it_is(world: World) -> None:
    container = await world.run_container(world.a, "vol")
    with pytest.raises(VolumeInUse, match=f"in use on node a by .*{container}"):
        await world.move(world.c, "vol", "b", wait_seconds=5)
    world.write(world.a, container, "file", b"goes on")
    assert grant(world) == ("a", 1)


async def test_a_way_back_sends_only_what_was_written_since(world: World) -> None:
    for _ in range(200):
        await asyncio.sleep(0)
    container = await world.run_container(world.a, "vol")
    for number in range(50):
        world.write(world.a, container, f"file{number}", bytes(1000))
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol")
    there = (await world.move(world.a, "vol", "b"))[-1]
    await world.write_once(world.b, "vol")
    back = (await world.move(world.b, "vol", "a"))[-1]
    assert there.sent_bytes > 50_000
    assert back.sent_bytes < 2_000


async def test_two_that_want_it_get_it_one_after_the_other(world: World) -> None:
    mounting = [asyncio.ensure_future(world.write_once(m, "vol")) for m in (world.b, world.c)]
    await asyncio.gather(*mounting)
    assert grant(world)[1] == 3
    assert set(world.contents("vol")) == {"by-a", "by-b", "by-c"}


async def test_a_move_elsewhere_is_refused_while_one_is_under_way(world: World) -> None:
    await world.run_container(world.a, "vol")
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b", wait_seconds=20))
    await asyncio.sleep(5)
    with pytest.raises(Conflict, match="on its way to node b"):
        await world.move(world.a, "vol", "c", wait_seconds=20)
    with pytest.raises(VolumeInUse):
        await moving


async def test_moving_to_where_it_is_does_nothing(world: World) -> None:
    assert [step.phase for step in await world.move(world.c, "vol", "a")] == ["done"]
    assert grant(world) == ("a", 1)


async def test_a_node_that_is_unknown_or_down_gets_nothing(world: World) -> None:
    with pytest.raises(NodeNotFound, match="the nodes are a, b, c"):
        await world.move(world.a, "vol", "x")
    world.b.power_off()
    await asyncio.sleep(20)
    with pytest.raises(Conflict, match="node b is down; volume vol stays on a"):
        await world.move(world.a, "vol", "b")


async def test_whoever_asks_with_an_old_epoch_is_sent_to_read_again(world: World) -> None:
    await world.write_once(world.b, "vol")

    def asked(epoch: int, peer: str) -> Coroutine[Any, Any, HandoverReply]:
        return world.a.ask(lambda run: run.handovers.asked("vol", epoch=epoch, peer=peer))

    for epoch in (1, 3):
        with pytest.raises(Stale, match=r"held by node b .epoch 2"):
            await asked(epoch, "c")
    again = await asked(1, "b")
    assert again.state == "given"


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER])
async def test_a_transfer_that_breaks_leaves_the_volume_in_use_where_it_was(
    world: World, fault: Fault
) -> None:
    world.fail_at_label("sender.send", fault)
    with pytest.raises(PannierError):
        await world.move(world.a, "vol", "b")
    assert grant(world) == ("a", 1)
    world.cut_store()
    await world.write_once(world.a, "vol", b"goes on without any store")


async def test_writing_resumes_only_when_a_late_change_cannot_arrive_any_more(
    world: World,
) -> None:
    """The record is written anew: what was sent for its old revision is void."""
    world.fail_at_label("store.commit", Fault.LATE)
    with pytest.raises(PannierError):
        await world.move(world.a, "vol", "b")
    container = await world.run_container(world.a, "vol")
    world.write(world.a, container, "file", b"after an unknown outcome")
    await asyncio.sleep(60)
    assert grant(world) == ("a", 1)
    assert "file" in world.contents("vol")


async def test_given_and_given_on_before_the_answer_is_looked_up(world: World) -> None:
    """The first giver must not take its tree up again, though the record names a third node."""
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER, of="a")
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b"))
    while grant(world)[0] == "a":
        await asyncio.sleep(0)
    world.cut_store("a")
    await world.write_once(world.c, "vol")
    world.mend_store()
    await asyncio.wait({moving})
    assert grant(world) == ("c", 3)
    await world.write_once(world.a, "vol")


async def test_a_holder_that_restarted_before_it_had_its_tree_can_give_on(world: World) -> None:
    world.fail_at_label("driver.promote", Fault.CUT_BEFORE, of="b")
    await world.move(world.a, "vol", "b")
    await asyncio.sleep(1)
    await world.b.start()
    await world.write_once(world.c, "vol")
    assert grant(world) == ("c", 3)


async def test_a_mount_that_waits_at_the_new_holder_does_not_hinder_its_giving_on(
    world: World,
) -> None:
    """It counts as use, and there is no tree yet of which a generation could be made."""
    world.fail_at_label("driver.promote", Fault.CUT_BEFORE, of="b")
    await world.move(world.a, "vol", "b")
    await asyncio.sleep(1)
    await world.b.start()
    with world.b.up.use.awaiting("vol"):
        moving = asyncio.ensure_future(world.move(world.b, "vol", "c", wait_seconds=30))
        await asyncio.sleep(5)
    assert (await moving)[-1].phase == "done"
    assert grant(world) == ("c", 3)


async def test_a_store_that_goes_after_the_change_does_not_make_it_a_failure(world: World) -> None:
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b"))
    while grant(world)[0] == "a":
        await asyncio.sleep(0)
    world.cut_store("a")
    assert (await moving)[-1].phase == "done"
    world.mend_store()


class RealWorld(World):
    """The same nodes on the directory driver: real trees, manifests and renames."""

    def make_driver(self, machine: Machine) -> Driver:
        return DirectoryDriver(machine.state / "directory")

    def inspect(self) -> None:
        """The disks in memory are empty here; what is on the real ones, the test looks at."""


@pytest.mark.root
def test_real_directories_move_round_and_come_back(tmp_path: Path) -> None:
    async def play() -> None:
        world = RealWorld(tmp_path)
        for machine in world.machines.values():
            await create_directory(machine.state / "directory")
        async with world:
            await world.create(world.a, "vol", driver="directory")
            for number, machine in enumerate((world.a, world.b, world.c, world.a, world.a)):
                await world.mount(machine, "vol")
                tree = machine.table.mounts["vol"]
                assert sorted(file.name for file in tree.iterdir()) == [
                    f"file{n}" for n in range(number)
                ]
                (tree / f"file{number}").write_text("x" * number)
                await world.unmount(machine, "vol")
            assert grant(world) == ("a", 4)

    asyncio.run(play())
