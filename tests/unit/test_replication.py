"""Copies are kept up to date: whole nodes in one process, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from swarm_world import volume
from world import Fault, Machine, Step, event_loop_policy

from pannier.cluster.registry import encode
from pannier.copies.replicated import Circle, ReplicaProgress, Replicated
from pannier.copies.replication import Replicator
from pannier.core.errors import PeerUnavailable, PoolFull
from pannier.core.generation import Generation
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.store.base import Change

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]

A_WHILE = 10.0


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


@pytest_asyncio.fixture
async def large(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, names=("a", "b", "c", "d")) as world:
        yield world


async def written_for(
    world: CopiesWorld, machine: Machine, volume: Volume, seconds: float, *, every: float = 0.5
) -> None:
    """A container that writes for a while."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        world.put(machine, volume)
        await asyncio.sleep(every)


def change_record(world: CopiesWorld, name: str = "vol", **changes: Any) -> None:
    """Somebody else changes a volume's record."""
    entry = world.data.get(f"volumes/{name}")
    assert entry is not None
    record = replace(world.now_record(name), **changes)
    world.data.commit((Change(entry.key, encode(record), entry.revision),))


def drain(world: CopiesWorld, name: str, *, drained: bool = True) -> None:
    node = world.a.up.catalog.node(name)
    assert node is not None
    world._put(f"nodes/{name}", replace(node, drained=drained))


# -- sending ------------------------------------------------------------------------------------------


async def test_what_is_written_reaches_every_replica(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="3")
    assert set(volume.replicas) == {"b", "c"}
    for number in range(5):
        world.put(world.a, volume, f"file{number}")
        await asyncio.sleep(3)
        assert world.current(world.b, volume)
        assert world.current(world.c, volume)
    assert all(transfer.base is not None for transfer in world.sent[2:]), "differences only"


async def test_nothing_is_made_or_sent_while_nothing_is_written(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    await asyncio.sleep(A_WHILE)
    before = (list(world.sent), len(world.tries), world.generations(world.a, volume))
    await asyncio.sleep(600)
    assert (world.sent, len(world.tries), world.generations(world.a, volume)) == before


async def test_no_more_often_than_the_interval(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, interval="5s")
    await written_for(world, world.a, volume, 60, every=0.1)
    assert 11 <= len(world.sent) <= 14


async def test_a_slow_replica_delays_nobody(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="3")
    world.slow["c"] = 20.0
    await written_for(world, world.a, volume, 60)
    assert len(world.sent_to("b")) >= 50
    assert 2 <= len(world.sent_to("c")) <= 3
    await world.until(lambda: world.current(world.c, volume))
    transfers = world.sent_to("c")
    assert [t.base for t in transfers[1:]] == [t.generation for t in transfers[:-1]]


async def test_an_absent_replica_delays_nobody_and_gets_the_difference_on_its_return(
    world: CopiesWorld,
) -> None:
    volume = await world.volume(world.a, copies="3")
    world.put(world.a, volume, "bulk", b"x" * 10_000)
    await asyncio.sleep(A_WHILE)
    last = world.generations(world.c, volume)[-1]
    await world.down(world.c)
    await written_for(world, world.a, volume, 120)
    assert world.sent_to("c")[-1].generation == last
    assert len(world.sent_to("b")) > 100
    await world.c.start()
    await world.until(lambda: world.current(world.c, volume), seconds=2 * USUAL.copies.retry_limit)
    after = [t for t in world.sent_to("c") if t.generation > last]
    assert after[0].base == last
    assert sum(t.bytes for t in after) < 2_000, "not the bulk again"


async def test_an_absent_replica_is_tried_more_and_more_seldom(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    await asyncio.sleep(A_WHILE)
    await world.down(world.machines[volume.replicas[0]])
    world.tries.clear()
    await written_for(world, world.a, volume, 300)
    times = [at for _, at in world.tries]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[:5] == pytest.approx([1, 2, 4, 8, 16], abs=0.5)
    assert all(pause <= USUAL.copies.retry_limit + 1 for pause in pauses)
    assert len(times) < 20


async def test_a_replica_that_comes_back_during_an_attempt_is_tried_at_once(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt began before the node was back, and waits for an answer that cannot come."""
    now = asyncio.get_running_loop().time
    begun: list[float] = []

    async def unanswered(*_: object) -> None:
        begun.append(now())
        await asyncio.sleep(10)
        raise PeerUnavailable("no answer in time", remedy="wait")

    volume = await world.volume(world.a)
    await asyncio.sleep(A_WHILE)
    replica = world.machines[volume.replicas[0]]
    await world.down(replica)
    monkeypatch.setattr(Replicator, "_send", unanswered)
    world.put(world.a, volume)
    await asyncio.sleep(120)
    tries = len(begun)
    await world.until(lambda: len(begun) > tries, seconds=60)
    await replica.start()
    await asyncio.sleep(15)
    assert begun[tries + 1] - begun[tries] < 12


async def test_while_nothing_is_written_the_holder_keeps_no_generation_that_nobody_needs(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it asks the store for that once, not again and again."""
    volume = await world.volume(world.a, "vol", copies="2")
    await written_for(world, world.a, volume, 10)
    await asyncio.sleep(10)
    assert len(world.generations(world.a, volume)) == 1
    tidied: list[str] = []
    monkeypatch.setattr(Replicator, "_tidy", lambda _, each: tidied.append(each.volume.name))
    await asyncio.sleep(20)
    assert tidied == []


@pytest.mark.parametrize("away", [60, 600])
async def test_the_holders_generations_stay_few_while_a_replica_is_away(
    world: CopiesWorld, away: float
) -> None:
    volume = await world.volume(world.a, copies="3")
    await asyncio.sleep(A_WHILE)
    await world.down(world.c)
    await written_for(world, world.a, volume, away)
    assert len(world.generations(world.a, volume)) <= 10
    assert len(world.generations(world.b, volume)) <= 5


async def test_the_difference_is_still_there_after_a_restart_of_the_holders_daemon(
    world: CopiesWorld,
) -> None:
    """It does not know what the absent replica has; it keeps all that it could be."""
    volume = await world.volume(world.a, copies="3")
    await world.unmount(world.a, "vol")
    await world.move(world.a, "vol", "b")
    await world.until(lambda: world.now_record().grant.node == "b")
    await world.mount(world.b, "vol")
    await written_for(world, world.b, volume, 30)
    await world.until(lambda: world.current(world.c, volume))
    last = world.generations(world.c, volume)[-1]
    assert last.epoch == 2
    await world.down(world.c)
    await written_for(world, world.b, volume, 30)
    world.b.crash()
    await world.b.start()
    await written_for(world, world.b, volume, 60)
    assert len(world.generations(world.b, volume)) <= 14
    world.sent.clear()
    await world.c.start()
    await world.until(lambda: world.current(world.c, volume))
    assert world.sent_to("c")[0].base == last


async def test_a_lost_confirmation_costs_no_second_whole_transfer(world: CopiesWorld) -> None:
    """The replica has it and the holder does not know: it may be all that both have in common."""
    volume = await world.volume(world.a)
    replica = world.machines[volume.replicas[0]]
    world.put(world.a, volume, "bulk", b"x" * 10_000)
    await asyncio.sleep(A_WHILE)
    world.sent.clear()
    world.fail_at_label("sender.send", Fault.LOSE_ANSWER, of="a")
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume))
    world.cut_link("a", replica.name)
    assert not world.sent
    await written_for(world, world.a, volume, 60)
    world.mend_links()
    await world.until(lambda: world.current(replica, volume))
    assert sum(t.bytes for t in world.sent) < 2_000, world.sent


async def test_a_replica_whose_copy_was_lost_gets_everything_again(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    replica = world.machines[volume.replicas[0]]
    world.put(world.a, volume, "bulk", b"x" * 10_000)
    await asyncio.sleep(A_WHILE)
    await world.down(replica)
    del replica.disk.homes[volume.id]
    await replica.start()
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume))


async def test_copies_are_kept_up_while_the_store_is_away(world: CopiesWorld) -> None:
    """And the holder's disk does not fill with generations."""
    volume = await world.volume(world.a)
    replica = world.machines[volume.replicas[0]]
    await asyncio.sleep(A_WHILE)
    world.cut_store()
    await written_for(world, world.a, volume, 600)
    (copy,) = world.progress(world.a, volume).values()
    assert copy.current_at is not None
    assert world.a.clock() - copy.current_at <= 2.1
    assert len(world.generations(world.a, volume)) <= 10
    world.mend_store()
    await written_for(world, world.a, volume, 60)
    await world.until(lambda: world.current(replica, volume))
    assert len(world.generations(world.a, volume)) <= 10
    assert len(world.generations(replica, volume)) <= 10


@pytest.mark.parametrize("target", ["b", "c", "d"])
async def test_a_move_of_a_volume_with_three_copies_sends_no_copy_everything_again(
    large: CopiesWorld, target: str
) -> None:
    volume = await large.volume(large.a, copies="3")
    assert set(volume.replicas) == {"b", "c"}
    large.put(large.a, volume, "bulk", b"x" * 10_000)
    await written_for(large, large.a, volume, 30)
    container = await large.run_container(large.a, "vol", "m2")
    moving = asyncio.ensure_future(large.move(large.c, "vol", target))
    await written_for(large, large.a, volume, 3)
    large.stop_container(large.a, container)
    await moving
    assert set(large.now_record().in_sync) == set(large.now_record().replicas)
    large.sent.clear()
    await large.mount(large.machines[target], "vol")
    await written_for(large, large.machines[target], volume, 20)
    record = large.now_record()
    assert len(record.replicas) == 2
    for name in record.replicas:
        await large.until(partial(large.current, large.machines[name], volume))
    assert not [transfer for transfer in large.sent if transfer.base is None]


async def test_a_move_does_not_wait_for_a_slow_third_copy(large: CopiesWorld) -> None:
    volume = await large.volume(large.a, copies="3")
    await written_for(large, large.a, volume, 10)
    large.slow["c"] = 100.0
    await large.unmount(large.a, "vol")
    done = (await large.move(large.a, "vol", "b"))[-1]
    assert done.pause_seconds is not None
    assert done.pause_seconds < 1
    assert large.now_record().in_sync == ("a",)


async def test_a_full_pool_is_said_and_overcome(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.volume(world.a)
    await asyncio.sleep(A_WHILE)

    async def full(*_: object, **__: object) -> Generation:
        raise PoolFull("no room for a generation")

    with monkeypatch.context() as patched:
        patched.setattr(world.a.up.driver, "snapshot", full)
        await written_for(world, world.a, volume, 20)
        (copy,) = (await world.copies(world.a)).values()
        assert copy.error == "no room for a generation"
        assert copy.lag_seconds is not None
        assert copy.lag_seconds >= 18
    await asyncio.sleep(A_WHILE)
    (copy,) = (await world.copies(world.a)).values()
    assert copy.error == ""
    assert copy.lag_seconds is not None
    assert copy.lag_seconds <= 1.1


async def test_an_unforeseen_failure_does_not_end_the_sending_for_ever(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.volume(world.a)
    await asyncio.sleep(A_WHILE)

    async def broken(*_: object, **__: object) -> Generation:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(world.a.up.driver, "snapshot", broken)
        await asyncio.sleep(A_WHILE)
    world.violations = [found for found in world.violations if "a bug" not in found]
    world.put(world.a, volume)
    await world.until(lambda: world.current(world.machines[volume.replicas[0]], volume))


# -- how far they are ---------------------------------------------------------------------------------


async def test_the_lag_is_no_more_than_the_interval_while_nothing_is_written(
    world: CopiesWorld,
) -> None:
    volume = await world.volume(world.a, copies="3")
    world.put(world.a, volume)
    await asyncio.sleep(A_WHILE)
    for _ in range(20):
        await asyncio.sleep(7.3)
        copies = await world.copies(world.c)
        assert set(copies) == {"b", "c"}
        for copy in copies.values():
            assert copy.generation == str(world.generations(world.a, volume)[-1])
            assert copy.lag_seconds is not None
            assert copy.lag_seconds <= 1.1
            assert copy.error == ""


async def test_the_lag_grows_while_a_replica_is_behind_and_says_why(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="3")
    await asyncio.sleep(A_WHILE)
    await world.down(world.c)
    before = asyncio.get_running_loop().time()
    await written_for(world, world.a, volume, 60)
    copies = await world.copies(world.a)
    lag = copies["c"].lag_seconds
    passed = asyncio.get_running_loop().time() - before
    assert lag is not None
    assert passed - 2 <= lag <= passed + 12
    assert "cannot be reached" in copies["c"].error
    assert copies["b"].lag_seconds is not None
    assert copies["b"].lag_seconds <= 2.1
    await world.c.start()
    await world.until(lambda: world.current(world.c, volume))
    await asyncio.sleep(2)
    copies = await world.copies(world.a)
    assert copies["c"].error == ""
    assert copies["c"].lag_seconds is not None
    assert copies["c"].lag_seconds <= 2.1


async def test_a_copy_that_was_never_made_has_no_lag_but_an_error(world: CopiesWorld) -> None:
    world.cut_link("a", "b")
    await world.volume(world.a, copies="3")
    await asyncio.sleep(A_WHILE)
    copies = await world.copies(world.a)
    assert copies["b"].generation is None
    assert copies["b"].lag_seconds is None
    assert copies["b"].error
    assert copies["c"].lag_seconds is not None


# -- hand-overs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["b", "c"])
async def test_a_move_loses_nothing_and_the_former_holder_is_a_copy(
    world: CopiesWorld, target: str
) -> None:
    volume = await world.volume(world.a)
    await written_for(world, world.a, volume, 20)
    await world.unmount(world.a, "vol")
    await world.move(world.c, "vol", target)
    record = world.now_record()
    assert (record.grant.node, record.replicas) == (target, ("a",))
    await world.mount(world.machines[target], "vol")
    world.sent.clear()
    await written_for(world, world.machines[target], volume, 10)
    await world.until(lambda: world.current(world.a, volume))
    assert {(t.by, t.to) for t in world.sent} == {(target, "a")}
    assert all(t.base is not None for t in world.sent)


async def test_the_copies_get_everything_while_a_move_waits_and_its_target_only_as_long(
    world: CopiesWorld,
) -> None:
    volume = await world.volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    replica = world.machines[volume.replicas[0]]
    target = "c" if replica.name == "b" else "b"
    await asyncio.sleep(A_WHILE)
    moving = asyncio.ensure_future(world.move(world.a, "vol", target, wait_seconds=30))
    await asyncio.sleep(5)
    world.sent.clear()
    await written_for(world, world.a, volume, 15)
    assert {transfer.to for transfer in world.sent} == {replica.name, target}
    assert not [transfer for transfer in world.sent if transfer.base is None]
    with pytest.raises(Exception, match="still in use"):
        await moving
    world.sent.clear()
    await written_for(world, world.a, volume, 5)
    assert {transfer.to for transfer in world.sent} == {replica.name}
    await world.until(lambda: world.current(replica, volume))
    world.stop_container(world.a, container)


async def test_a_hand_over_that_begins_while_the_replicator_looks_around_is_not_disturbed(
    world: CopiesWorld,
) -> None:
    """It asks the store about one volume, and meanwhile another one begins to move."""
    first = await world.volume(world.a, "first")
    second = await world.volume(world.a, "second")
    await world.unmount(world.a, "second")
    await asyncio.sleep(70)
    target = next(n for n in ("b", "c") if n not in second.replicas)
    for step in range(20):
        world.delay = lambda: 0.3
        drain(world, first.replicas[0], drained=step % 2 == 0)
        await asyncio.sleep(0.1 * step)
        source = world.now_record("second").grant.node
        goal = target if source == "a" else "a"
        steps = await world.move(world.machines[source], "second", goal)
        assert steps[-1].phase == "done"
        world.delay = lambda: 0.0
        await asyncio.sleep(5)


async def test_a_volume_that_was_given_away_is_not_sent_any_more(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="3")
    world.put(world.a, volume)
    await asyncio.sleep(A_WHILE)
    await world.unmount(world.a, "vol")
    await asyncio.sleep(70)
    await world.move(world.a, "vol", "b")
    await asyncio.sleep(5)
    world.tries.clear()
    await asyncio.sleep(60)
    assert world.progress(world.a, volume) == {}
    assert not [to for to, _ in world.tries if to == "b"]


async def test_a_removed_volume_is_not_sent_any_more(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    await world.unmount(world.a, "vol")
    await asyncio.sleep(70)
    await world.remove(world.a, "vol")
    await asyncio.sleep(3)
    world.tries.clear()
    await asyncio.sleep(30)
    assert not world.tries
    assert world.progress(world.a, volume) == {}


# -- which nodes keep copies ----------------------------------------------------------------------------


async def test_a_replica_is_replaced_when_its_node_left_the_cluster(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    gone = volume.replicas[0]
    other = "c" if gone == "b" else "b"
    await world.down(world.machines[gone])
    await world.a.ask(lambda run: run.service.remove_node(gone, lost=True))
    await world.until(lambda: world.current(world.machines[other], volume))
    assert world.now_record().replicas == (other,)


async def test_a_replica_is_replaced_when_its_node_is_drained(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    gone = volume.replicas[0]
    other = "c" if gone == "b" else "b"
    drain(world, gone)
    await world.until(lambda: world.current(world.machines[other], volume))
    assert world.now_record().replicas == (other,)


async def test_a_replica_is_replaced_when_it_stays_away(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    gone = volume.replicas[0]
    other = "c" if gone == "b" else "b"
    await world.down(world.machines[gone])
    await asyncio.sleep(USUAL.copies.absence - 30)
    assert world.now_record().replicas == (gone,), "a reboot takes less"
    await asyncio.sleep(60)
    assert world.now_record().replicas == (other,)
    assert world.current(world.machines[other], volume)


async def test_a_replica_that_comes_back_now_and_then_is_kept(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    flapping = world.machines[volume.replicas[0]]
    for _ in range(4):
        await world.down(flapping)
        await asyncio.sleep(USUAL.copies.absence / 2)
        await flapping.start()
        await asyncio.sleep(A_WHILE)
    assert world.now_record().replicas == volume.replicas


async def test_without_another_node_an_absent_replica_stays_and_gets_the_difference(
    world: CopiesWorld,
) -> None:
    volume = await world.volume(world.a, copies="3")
    world.put(world.a, volume, "bulk", b"x" * 10_000)
    await asyncio.sleep(A_WHILE)
    last = world.generations(world.c, volume)[-1]
    await world.down(world.c)
    await written_for(world, world.a, volume, USUAL.copies.absence + 60, every=5)
    assert set(world.now_record().replicas) == {"b", "c"}
    world.sent.clear()
    await world.c.start()
    await world.until(lambda: world.current(world.c, volume))
    assert world.sent_to("c")[0].base == last


async def test_the_number_of_copies_is_restored_when_nodes_come_back(world: CopiesWorld) -> None:
    """A node left the cluster while no other one could take its place."""
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    gone = volume.replicas[0]
    other = world.c if gone == "b" else world.b
    await world.down(world.machines[gone])
    await world.down(other)
    await world.a.ask(lambda run: run.service.remove_node(gone, lost=True))
    await asyncio.sleep(60)
    await other.start()
    await world.until(lambda: world.now_record().replicas == (other.name,))
    await world.until(lambda: world.current(other, volume))


async def test_a_change_of_replicas_that_loses_a_race_is_made_again(large: CopiesWorld) -> None:
    volume = await large.volume(large.a)
    large.put(large.a, volume)
    await asyncio.sleep(A_WHILE)
    raced = 0

    def race(step: Step) -> None:
        """Somebody else changes the record between the holder's read and its change."""
        nonlocal raced
        if step.of == "a" and step.label == "store.commit":
            large.faults = lambda step: None
            raced += 1
            change_record(large, created_at=5.0)

    large.faults = race
    drain(large, volume.replicas[0])
    await large.until(lambda: large.now_record().replicas != volume.replicas)
    assert raced == 1
    record = large.now_record()
    assert record.created_at == 5.0, "what the other one changed is kept"
    await large.until(lambda: large.current(large.machines[record.replicas[0]], volume))


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_a_change_of_replicas_without_an_answer(large: CopiesWorld, fault: Fault) -> None:
    volume = await large.volume(large.a)
    large.put(large.a, volume)
    await asyncio.sleep(A_WHILE)
    large.fail_at_label("store.commit", fault, of="a")
    drain(large, volume.replicas[0])
    await asyncio.sleep(60)
    record = large.now_record()
    assert len(record.replicas) == 1
    assert record.replicas != volume.replicas
    await large.until(lambda: large.current(large.machines[record.replicas[0]], volume))


async def test_a_node_that_only_believes_to_hold_replaces_nothing(world: CopiesWorld) -> None:
    """It cannot reach the store; when it can, the record names another holder."""
    volume = await world.volume(world.a)
    await asyncio.sleep(A_WHILE)
    world.lossy.add(volume.id)
    world.cut_store("a")
    replica = volume.replicas[0]
    change_record(world, grant=replace(volume.grant, node=replica, epoch=2), replicas=("a",))
    drain(world, replica)
    await asyncio.sleep(60)
    world.mend_store()
    await asyncio.sleep(60)
    record = world.now_record()
    assert record.grant.node == replica
    assert record.grant.epoch == 2


async def test_what_may_have_arrived_is_kept_until_another_is_confirmed() -> None:
    """Even if it is refused when it is sent again, and another one is on its way."""
    first, second = Generation(1, 1), Generation(1, 2)
    replicated = Replicated(
        volume("vol", "a"),
        since=0.0,
        circle=Circle(required=frozenset()),
        progress={"b": ReplicaProgress(generation=Generation(1, 0))},
    )
    progress = replicated.progress["b"]
    progress.sending = first
    replicated.note_failed("b", "no answer", arrived=None)
    replicated.note_failed("b", "it serves nobody now", arrived=False)
    progress.sending = second
    assert first in replicated.needed()
    replicated.note_confirmed("b", at=1.0)
    assert replicated.needed() == {second}
