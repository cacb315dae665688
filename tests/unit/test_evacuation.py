"""Lost nodes: what is decided, and what several managers make of it with faults between every two steps."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from swarm_world import SwarmWorld, event_loop_policy, volume

from pannier.core.evacuation import (
    CALM_SECONDS,
    LONGEST_STEADY_SECONDS,
    Drain,
    Evacuated,
    Forget,
    Phase,
    Remember,
    Restore,
    Step,
    Strip,
    Subject,
    plan,
    seconds_until_due,
)
from pannier.core.node import Node
from pannier.core.swarm import Availability, SwarmNode, volume_label

__all__ = ["event_loop_policy"]

ACTIVE, PAUSE, DRAIN = Availability.ACTIVE, Availability.PAUSE, Availability.DRAIN


# -- what is decided ------------------------------------------------------------------------------------


def node(name: str, availability: Availability = ACTIVE, *, state: str = "ready") -> SwarmNode:
    return SwarmNode(
        id=f"id-{name}",
        hostname=name,
        state=state,
        availability=availability,
        role="worker",
        version=1,
    )


def record(phase: Phase, *, name: str = "a", times: int = 1) -> Evacuated:
    return Evacuated(node=name, swarm=f"id-{name}", former=ACTIVE, phase=phase, times=times)


def subject(
    name: str = "a",
    *,
    up: float | None = None,
    swarm: SwarmNode | None = None,
    phase: Phase | None = None,
    times: int = 1,
    quiet: float = 60.0,
    **more: bool,
) -> Subject:
    """A node, lost unless it is said to be ``up`` for so many seconds."""
    return Subject(
        name=name,
        steady_seconds=up,
        swarm=swarm or node(name),
        quiet_seconds=quiet,
        record=record(phase, name=name, times=times) if phase else None,
        **more,
    )


def decide(*subjects: Subject, others: str = "bcde") -> list[Step]:
    """The plan for these nodes of the Swarm, with others that are well."""
    well = [subject(name, up=1000.0) for name in others if name not in {s.name for s in subjects}]
    everybody = [*subjects, *well]
    return plan(everybody, [each.swarm for each in everybody if each.swarm])


BEGIN = Remember(record(Phase.DRAINING))
LABELLED = replace(node("a"), labels={"rack": "1", volume_label("v"): "copy"})
RETURN = Remember(record(Phase.RETURNING))
DRAINED_A = node("a", DRAIN)


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        pytest.param(subject(), BEGIN, id="lost"),
        pytest.param(subject(up=0.0), None, id="up"),
        pytest.param(subject(stopping=True), None, id="its daemon was stopped"),
        pytest.param(subject(swarm=DRAINED_A), None, id="drained by a person"),
        pytest.param(subject(swarm=node("a", state="down")), None, id="Swarm has noticed"),
        pytest.param(subject(swarm=node("a", state="unknown")), BEGIN, id="a new leader"),
        pytest.param(
            subject(phase=Phase.DRAINING), Drain(record(Phase.DRAINING), node("a")), id="begun"
        ),
        pytest.param(
            subject(phase=Phase.DRAINING, swarm=LABELLED),
            Strip(record(Phase.DRAINING), LABELLED),
            id="labels go first",
        ),
        pytest.param(subject(phase=Phase.DRAINING, quiet=0.9), None, id="just changed"),
        pytest.param(subject(phase=Phase.DRAINING, up=14.0), None, id="back before it was drained"),
        pytest.param(subject(phase=Phase.DRAINING, up=15.0), RETURN, id="and it stays"),
        pytest.param(subject(phase=Phase.DRAINED, swarm=DRAINED_A), None, id="still lost"),
        pytest.param(subject(phase=Phase.DRAINED, swarm=DRAINED_A, up=14.9), None, id="back"),
        pytest.param(subject(phase=Phase.DRAINED, swarm=DRAINED_A, up=15.0), RETURN, id="steady"),
        pytest.param(subject(phase=Phase.DRAINED, up=0.0), RETURN, id="undone by a person"),
        pytest.param(subject(phase=Phase.DRAINED), None, id="undone by a person, and still lost"),
        pytest.param(
            subject(phase=Phase.RETURNING, swarm=DRAINED_A),
            Restore(record(Phase.RETURNING), DRAINED_A),
            id="lost again while it is given back",
        ),
        pytest.param(
            subject(phase=Phase.RETURNING, up=20.0),
            Restore(record(Phase.RETURNING), node("a")),
            id="nothing to give back",
        ),
        pytest.param(subject(phase=Phase.RETURNED, up=899.0), None, id="remembered"),
        pytest.param(
            subject(phase=Phase.RETURNED, up=CALM_SECONDS),
            Forget(record(Phase.RETURNED)),
            id="forgotten",
        ),
        pytest.param(
            subject(phase=Phase.RETURNED),
            Remember(record(Phase.DRAINING, times=2)),
            id="lost again",
        ),
        pytest.param(
            subject(phase=Phase.DRAINED, swarm=DRAINED_A, removed=True), RETURN, id="removed"
        ),
        pytest.param(
            subject(phase=Phase.RETURNED, removed=True), Forget(record(Phase.RETURNED)), id="done"
        ),
    ],
)
def test_what_is_done_next(seen: Subject, step: Step | None) -> None:
    assert decide(seen) == ([step] if step else [])


def test_a_paused_node_is_paused_again() -> None:
    (begun,) = decide(subject(swarm=node("a", PAUSE)))
    assert begun == Remember(replace(record(Phase.DRAINING), former=PAUSE))


@pytest.mark.parametrize("phase", Phase)
def test_what_left_the_swarm_is_forgotten(phase: Phase) -> None:
    gone = replace(subject(phase=phase), swarm=None)
    assert decide(gone) == [Forget(record(phase))]
    assert decide(replace(gone, record=None)) == []


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 15), (2, 30), (3, 60), (6, 480), (7, 900), (2000, 900)]
)
def test_a_node_that_was_lost_often_must_be_steady_for_longer(times: int, seconds: float) -> None:
    assert record(Phase.DRAINED, times=times).steady_seconds == seconds <= LONGEST_STEADY_SECONDS
    back = subject(phase=Phase.DRAINED, swarm=DRAINED_A, times=times, up=seconds - 0.1)
    assert decide(back) == []
    assert seconds_until_due([back]) == pytest.approx(0.1)
    assert decide(replace(back, steady_seconds=float(seconds))) != []


def test_no_more_than_a_minority_is_evacuated() -> None:
    lost = [subject(name) for name in "ab"]
    assert len(decide(*lost)) == 2
    assert decide(*lost, subject("c")) == []
    assert decide(subject("a"), others="b") == []
    assert decide(subject("a"), others="bc") == [BEGIN]
    assert decide(*lost, others="cd") == []


def test_those_that_were_evacuated_count() -> None:
    away = [subject(name, phase=Phase.DRAINED, swarm=node(name, DRAIN), up=1.0) for name in "bc"]
    assert decide(subject("a"), *away) == []
    assert decide(subject("a"), away[0]) == [BEGIN]
    returning = [replace(each, record=record(Phase.RETURNING, name=each.name)) for each in away]
    assert BEGIN not in decide(subject("a"), *returning), "Swarm may not have them back yet"
    returned = [subject(name, phase=Phase.RETURNED, up=1.0) for name in "bc"]
    assert decide(subject("a"), *returned) == [BEGIN]


def test_nodes_of_the_swarm_that_are_not_ours_count_as_able_to_work() -> None:
    theirs = [node(name) for name in "xyz"]
    assert plan([subject()], [node("a"), *theirs]) == [BEGIN]


def test_the_last_node_that_can_take_tasks_keeps_them() -> None:
    useless = [
        subject("b", up=9.0, swarm=node("b", DRAIN)),
        subject("c", up=9.0, swarm=node("c", PAUSE)),
        subject("d", up=9.0, swarm=node("d", state="down")),
        subject("e", stopping=True),
    ]
    assert decide(subject(), *useless) == []
    assert decide(subject(), *useless, others="f") == [BEGIN]


# -- several managers -------------------------------------------------------------------------------------


async def test_a_lost_node_is_drained_at_once_and_given_back_when_it_is_steady(
    tmp_path: Path,
) -> None:
    async with SwarmWorld(tmp_path) as world:
        await asyncio.sleep(100)
        await world.crash("d")
        await asyncio.sleep(3)
        assert world.drained() == "d"
        await asyncio.sleep(10_000)
        assert world.drained() == "d"
        await world.boot("d")
        await asyncio.sleep(14)
        assert world.drained() == "d"
        await asyncio.sleep(3)
        assert world.drained() == ""
        assert world.availabilities("d") == [DRAIN, ACTIVE]
        await asyncio.sleep(1000)
        assert await world.records() == {}


async def test_a_manager_is_evacuated_by_the_others(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path, "abc") as world:
        await world.crash("a")
        world.swarm.has_leader = False
        await asyncio.sleep(20)
        assert await world.records() == {}
        world.swarm.has_leader = True
        await asyncio.sleep(3)
        assert world.drained() == "a"
        await world.boot("a")
        await asyncio.sleep(17)
        assert world.drained() == ""


async def test_volumes_labels_go_before_the_node_is_drained_and_come_back_with_it(
    tmp_path: Path,
) -> None:
    """Swarm ends tasks that lost their label, but not on a node that is drained."""
    async with SwarmWorld(tmp_path) as world:
        await world.put_volume(volume("v", "d", "b"))
        await asyncio.sleep(10)
        assert world.node("d").labels == {volume_label("v"): "copy"}
        await world.crash("d")
        while world.node("d").labels:
            assert world.drained() == ""
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.9)
        assert world.drained() == ""
        await asyncio.sleep(2)
        assert world.drained() == "d"
        await asyncio.sleep(300)
        assert world.node("d").labels == {}
        assert world.node("b").labels == {volume_label("v"): "copy"}
        await world.boot("d")
        await asyncio.sleep(90)
        assert world.node("d").labels == {volume_label("v"): "copy"}


async def test_a_lease_that_is_lost_and_back_every_five_seconds_moves_tasks_once(
    tmp_path: Path,
) -> None:
    async with SwarmWorld(tmp_path) as world:
        for _ in range(60):
            world.lose("d")
            await asyncio.sleep(5)
            world.lease("d")
            await asyncio.sleep(5)
        assert world.availabilities("d") == [DRAIN]
        await asyncio.sleep(20)
        assert world.availabilities("d") == [DRAIN, ACTIVE]


async def test_one_that_is_lost_every_minute_is_given_back_ever_later(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        for _ in range(120):
            world.lose("d")
            await asyncio.sleep(10)
            world.lease("d")
            await asyncio.sleep(50)
        # After 15 and 30 s of the 50; then 60 s are asked for, which it never has.
        assert world.availabilities("d") == [DRAIN, ACTIVE, DRAIN, ACTIVE, DRAIN]


async def test_a_node_that_has_only_lost_the_store_is_left_alone(tmp_path: Path) -> None:
    """It goes on by the promises of others; evacuated it would lose its containers for nothing."""
    async with SwarmWorld(tmp_path) as world:
        world.answering.add("d")
        world.lose("d")
        await asyncio.sleep(300)
        assert world.availabilities("d") == []
        world.answering.clear()
        await asyncio.sleep(10)
        assert world.drained() == "d"


async def test_what_a_person_drained_stays_so(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.set_by_hand("d", DRAIN)
        await world.crash("d")
        await asyncio.sleep(100)
        await world.boot("d")
        await asyncio.sleep(1000)
        assert world.drained() == "d"
        assert world.swarm.writes == []


async def test_a_person_may_give_a_node_back_before_us(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.crash("d")
        await asyncio.sleep(5)
        await world.set_by_hand("d", ACTIVE)
        await asyncio.sleep(100)
        assert world.drained() == ""
        await world.boot("d")
        await asyncio.sleep(100)
        assert world.drained() == ""


async def test_a_planned_stop_is_no_loss(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        found = await world.registry.node("d")
        assert found is not None
        stopping = replace(found.record, stopping=True)
        await world.registry.put_node(stopping, expect=found.revision)
        await world.crash("d")
        await asyncio.sleep(1000)
        assert world.drained() == ""
        again = await world.registry.node("d")
        assert again is not None
        await world.registry.put_node(replace(stopping, stopping=False), expect=again.revision)
        await asyncio.sleep(20)
        assert world.drained() == "d"


async def test_without_the_store_nothing_is_done(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        for store in world.stores.values():
            store.cut()
        await world.crash("d")
        await asyncio.sleep(1000)
        assert world.drained() == ""
        for store in world.stores.values():
            store.mend()
        await asyncio.sleep(5)
        assert world.drained() == "d"


async def test_a_manager_that_is_lost_itself_decides_nothing(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path, managers=1) as world:
        world.lose("a")
        world.lose("d")
        await asyncio.sleep(100)
        assert world.drained() == ""
        world.lease("a")
        await asyncio.sleep(5)
        assert world.drained() == "d"


async def test_where_it_is_turned_off_only_what_was_begun_is_ended(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.crash("d")
        await asyncio.sleep(5)
        world.enabled = False
        await restart_all(world)
        await asyncio.sleep(100)
        assert world.drained() == "d"
        await world.boot("d")
        await asyncio.sleep(20)
        assert world.drained() == ""
        await world.crash("d")
        await asyncio.sleep(100)
        assert world.drained() == ""


async def test_a_node_removed_from_the_cluster_is_given_back(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.crash("d")
        await asyncio.sleep(5)
        found = await world.registry.node("d")
        assert found is not None
        await world.registry.remove_node("d", expect=found.revision)
        await asyncio.sleep(100)
        assert world.drained() == ""
        assert await world.records() == {}


async def test_a_node_that_joined_the_swarm_anew_leaves_nothing_behind(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.crash("d")
        await asyncio.sleep(5)
        del world.swarm.nodes["id-d"]
        world.swarm.put(replace(node("d"), id="new-d"))
        found = await world.registry.node("d")
        assert found is not None
        await world.registry.put_node(replace(found.record, swarm="new-d"), expect=found.revision)
        await world.boot("d")
        await asyncio.sleep(100)
        assert world.swarm.nodes["new-d"].availability is ACTIVE
        assert await world.records() == {}


async def test_most_nodes_lost_at_once_are_left_alone(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        for name in "cde":
            await world.crash(name)
        await asyncio.sleep(1000)
        assert world.swarm.writes == []
        await world.boot("c")
        await asyncio.sleep(20)
        assert world.drained() == "de"


async def test_a_drain_that_is_made_late_is_refused(tmp_path: Path) -> None:
    """It was asked for while the node was lost; the answer got lost; then the node was back."""
    async with SwarmWorld(tmp_path, managers=1) as world:
        world.faults.late, world.faults.late_seconds = 1.0, (40.0, 40.0)
        await world.crash("d")
        await asyncio.sleep(1.2)
        assert world.late == 1
        await world.boot("d")
        world.faults.late = 0.0
        await asyncio.sleep(30)
        assert (await world.records())["d"].phase is Phase.RETURNED
        await asyncio.sleep(2000)
        assert world.drained() == ""
        assert await world.records() == {}


async def test_a_manager_that_was_slow_to_look_acts_on_what_is_then(tmp_path: Path) -> None:
    """Nothing may be taken from a node that was lost when it began to look."""
    async with SwarmWorld(tmp_path, managers=2) as world:
        await world.put_volume(volume("v", "d"))
        await asyncio.sleep(10)
        await world.kill_daemon("b")
        await world.crash("d")
        while "d" not in await world.records():
            await asyncio.sleep(0.01)
        world.slow["b"] = 60.0
        await world.start_daemon("b")
        await asyncio.sleep(0.1)
        await world.boot("d")
        await asyncio.sleep(40)
        assert (await world.records())["d"].phase is Phase.RETURNED
        world.swarm.writes.clear()
        await asyncio.sleep(60)
        assert all(node.labels for node in world.swarm.writes)


async def test_a_short_break_of_the_lease_counts_too(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.crash("d")
        await asyncio.sleep(5)
        await world.boot("d")
        await asyncio.sleep(10)
        world.lose("d")
        world.lease("d")
        await asyncio.sleep(14)
        assert world.drained() == "d"
        await asyncio.sleep(3)
        assert world.drained() == ""


async def test_an_evacuation_begins_only_while_the_lease_is_gone(tmp_path: Path) -> None:
    """Not where it came back between the look and the decision."""
    async with SwarmWorld(tmp_path, managers=1) as world:
        await asyncio.sleep(100)
        world.stores["a"].latency_seconds = 5.0
        world.lose("d")
        await asyncio.sleep(12)
        world.lease("d")
        for _ in range(100):
            assert await world.records() == {}
            await asyncio.sleep(1)


@pytest.mark.parametrize("moment", [0.1 * step for step in range(30)])
async def test_a_restart_of_all_managers_daemons_at_any_moment_forgets_nothing(
    tmp_path: Path, moment: float
) -> None:
    async with SwarmWorld(tmp_path) as world:
        world.faults.seconds = 0.4
        world.faults.random = random.Random(1)
        await world.put_volume(volume("v", "d", "b"))
        await asyncio.sleep(20)
        await world.crash("d")
        await asyncio.sleep(moment)
        await restart_all(world)
        await asyncio.sleep(20)
        assert world.drained() == "d"
        await world.boot("d")
        await asyncio.sleep(14 + moment)
        await restart_all(world)
        await asyncio.sleep(40)
        assert world.drained() == ""
        assert {record.phase for record in (await world.records()).values()} == {Phase.RETURNED}


async def restart_all(world: SwarmWorld) -> None:
    for name in world.managers:
        await world.kill_daemon(name)
        await world.start_daemon(name)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_fails_every_node_is_given_back_in_the_end(
    tmp_path: Path, seed: int
) -> None:
    """Nodes come and go, daemons die, answers are lost and changes are made late."""
    chance = random.Random(seed)
    async with SwarmWorld(tmp_path) as world:
        await world.put_volume(volume("v", "d", "b"))
        faults = world.faults
        faults.random, faults.seconds = chance, chance.choice([0.1, 1.0, 5.0])
        for _ in range(60):
            faults.refused, faults.lost, faults.late = (chance.choice([0, 0.2]) for _ in range(3))
            await asyncio.sleep(chance.choice([0.2, 3.0, 20.0, 40.0]))
            name = chance.choice(world.names)
            await chance.choice([world.crash, world.boot, world.boot])(name)
            if chance.random() < 0.2:
                await restart_all(world)
            for store in world.stores.values():
                if chance.random() < 0.1:
                    chance.choice([store.lose_answers, store.lose_requests])()
        faults.refused = faults.lost = faults.late = 0.0
        for name in world.names:
            await world.boot(name)
        await asyncio.sleep(CALM_SECONDS * 4)
        assert world.drained() == ""
        assert await world.records() == {}
        assert world.node("d").labels == {volume_label("v"): "copy"}


async def test_nodes_without_a_place_in_swarm_are_nobodys_business(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        lonely = Node(name="x", address="", drivers=(), version="", joined_at=0.0, certificate="x")
        await world.registry.put_node(lonely)
        await asyncio.sleep(300)
        assert world.swarm.writes == []
