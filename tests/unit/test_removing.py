"""A removal reaches every node: those that are told, those that were down, and the members of the store one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract.operation import Operation
from pannier.contract.peers import PEER_OPERATIONS, Peer
from pannier.contract.views import RemovalsView
from pannier.core.errors import Corrupt, PeerUnavailable, StorageError, Unavailable
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.core.removals import (
    FORGOTTEN_AFTER,
    MOST_FORGOTTEN,
    MOST_REMOVALS,
    Removals,
    serial,
)
from pannier.host.clock import Clock
from pannier.host.state_files import DurableFile
from pannier.node.removing import Removing
from pannier.store.base import MemberHealth
from pannier.testing.store import MemoryStore

PACE = NodePace(removals=0.01, removals_answer=0.2, removals_look=0.01, removals_turn=0.02)


class Member:
    """A member of the store. ``events`` is common to all, in order."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self._events = name, events
        self.refused: frozenset[int] = frozenset()
        self.serves = True

    def lets_in(self, serials: frozenset[int]) -> bool:
        return self.serves and not serials <= self.refused

    async def start_again(self, serials: frozenset[int]) -> None:
        self._events.append(f"{self.name} ends")
        await asyncio.sleep(0.01)
        self.refused = serials
        self._events.append(f"{self.name} serves")


class StoreOf(MemoryStore):
    """A store that says how its members are."""

    world: World

    async def health(self) -> dict[str, MemberHealth]:
        return {
            f"{each.node.address}:2379": MemberHealth(problem="" if each.member.serves else "down")
            for each in self.world.machines.values()
        }


@dataclass
class Machine:
    """A node, with a member of the store."""

    node: Node
    member: Member
    removing: Removing
    file: Path
    up: bool = True


class World:
    """Three nodes, each with a member, and n4 without."""

    def __init__(self, directory: Path) -> None:
        self.events: list[str] = []
        self.now = 0.0
        self.directory = directory
        self.machines: dict[str, Machine] = {}
        self.names = ["n1", "n2", "n3"]
        self.store = StoreOf()
        self.store.world = self
        for name in self.names:
            self.start(name, Member(name, self.events))

    def start(self, name: str, member: Member) -> None:
        file = self.directory / name
        catalog = Catalog(file=DurableFile(self.directory / "c"), cluster=None, boot_id="b")
        catalog._known.nodes = {each: record(each) for each in (*self.names, "n4")}
        removing = Removing(
            cluster=Cluster(node=name, registry=Registry(self.store), catalog=catalog),
            address=record(name).address,
            peers=Peers(self, name),
            member=member,
            file=DurableFile(file),
            clock=Clock(now=lambda: self.now, unix=lambda: 0.0),
            pace=PACE,
        )
        self.machines[name] = Machine(record(name), member, removing, file)

    def refuses(self, name: str) -> list[str]:
        """The nodes whose members refuse the first membership of ``name``."""
        ended = Removals().with_removed(name).refused()
        return [each for each, it in self.machines.items() if ended <= it.member.refused]


def record(name: str) -> Node:
    return Node(
        name=name,
        address=f"10.0.0.{name[1:]}",
        drivers=(),
        version="1",
        joined_at=0.0,
        certificate="ab",
    )


class Peers:
    """How a node reaches the others."""

    def __init__(self, world: World, asking: str) -> None:
        self._world, self._asking = world, asking

    def to(self, node: Node) -> Peer:
        return PEER_OPERATIONS.stand_in(Line(self._world, node.name))


class Line:
    """To one other node; n4 has no daemon any more."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    async def ask(self, operation: Operation, values: Mapping[str, Any]) -> Any:
        machine = self._world.machines.get(self._name)
        if machine is None or not machine.up:
            raise PeerUnavailable(f"{self._name} does not answer")
        if values["counts"]:
            await machine.removing.take_in(Removals(counts=values["counts"]))
        known = machine.removing.known
        return RemovalsView(counts=dict(known.counts), ages=dict(known.ages), floor=known.floor)

    def stream(self, operation: Operation, values: Mapping[str, Any]) -> Any:
        raise AssertionError


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.store.session():
        yield world


async def test_each_member_refuses_the_node_and_one_ends_at_a_time(world: World) -> None:
    await Registry(world.store).put_node(record("n4"))
    await world.machines["n1"].removing.remove("n4")
    assert world.refuses("n4") == ["n1", "n2", "n3"]
    assert await Registry(world.store).nodes() == []
    assert world.events == [f"{n} {what}" for n in world.names for what in ("ends", "serves")]


async def test_two_removals_at_once_start_no_two_members_at_once(world: World) -> None:
    async with asyncio.TaskGroup() as both:
        both.create_task(world.machines["n1"].removing.remove("n4"))
        both.create_task(world.machines["n3"].removing.remove("n4"))
    assert world.refuses("n4") == world.names
    ends = [event for event in world.events if event.endswith("ends")]
    assert len(ends) >= 3


async def test_a_node_that_was_down_asks_when_it_is_back(world: World) -> None:
    late = world.machines["n3"]
    late.up = late.member.serves = False
    await world.machines["n1"].removing.remove("n4")
    assert world.refuses("n4") == ["n1", "n2"]
    late.up = late.member.serves = True
    task = asyncio.create_task(late.removing.run())
    async with asyncio.timeout(5):
        while world.refuses("n4") != world.names:
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_member_that_serves_while_its_daemon_is_down_is_told_of(world: World) -> None:
    world.machines["n3"].up = False
    with pytest.raises(Unavailable, match="n3"):
        await world.machines["n1"].removing.remove("n4")
    world.machines["n3"].up = True
    await world.machines["n1"].removing.remove("n4")
    assert world.refuses("n4") == world.names


async def test_what_is_known_is_on_the_disk_before_a_member_ends(world: World) -> None:
    """A crash there is made good by the next run."""
    machine = world.machines["n1"]

    async def power_fails(serials: frozenset[int]) -> None:
        assert b"n4" in machine.file.read_bytes()
        raise StorageError("the power fails")

    machine.member.start_again = power_fails  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        await machine.removing.take_in(Removals(counts={"n4": 1}))
    world.start("n1", Member("n1", world.events))
    assert world.machines["n1"].removing.known.counts == {"n4": 1}
    await world.machines["n1"].removing.take_in(Removals())
    assert world.refuses("n4") == ["n1"]


async def test_a_member_that_refuses_already_is_left_alone(world: World) -> None:
    await world.machines["n1"].removing.take_in(Removals(counts={"n4": 1}))
    await world.machines["n1"].removing.take_in(Removals(counts={"n4": 1}))
    assert world.events == ["n1 ends", "n1 serves"]


async def test_who_knows_less_does_not_remove_too_little(world: World) -> None:
    """n4 was removed and joined again while n1 was down: its second membership ends, too."""
    await world.machines["n2"].removing.take_in(Removals(counts={"n4": 1}))
    await world.machines["n1"].removing.remove("n4")
    assert world.machines["n3"].removing.known.counts == {"n4": 2}


async def test_a_damaged_file_is_reported(world: World) -> None:
    world.machines["n1"].file.write_bytes(b"{")
    with pytest.raises(Corrupt, match="other nodes know it"):
        world.start("n1", Member("n1", world.events))


ONE, OTHER = Removals(counts={"n2": 3, "n4": 1}), Removals(counts={"n2": 1, "n5": 2})
HALF = FORGOTTEN_AFTER / 2 + 1


def test_counts_only_grow_in_whatever_order_they_come() -> None:
    assert ONE.merged(OTHER) == OTHER.merged(ONE)
    assert ONE.merged(Removals(counts={"n2": 2})) is ONE
    assert replace(ONE, counts={}).membership("n2") == 1
    assert ONE.membership("n2") == 4


def test_a_removal_is_as_old_as_whoever_ran_longest_says() -> None:
    old = ONE.aged(HALF)
    assert ONE.merged(old).ages == old.merged(ONE).ages == {"n2": HALF, "n4": HALF}
    assert old.merged(ONE) is old
    again = old.with_removed("n2")
    assert again.ages == {"n4": HALF}, "a new membership has certificates of its own"
    assert old.merged(again) == again.merged(old) == again


def test_a_name_is_forgotten_once_no_certificate_of_it_can_count() -> None:
    known = ONE.aged(HALF)
    assert known.counts == ONE.counts
    known = known.aged(HALF)
    assert (known.counts, known.ages, known.refused()) == ({}, {}, frozenset())


def test_no_number_is_given_twice() -> None:
    """A node that was off for years tells of a removal that all others have forgotten, after the name was taken again."""
    known = ONE.aged(2 * HALF)
    assert known.membership("n2") == known.membership("new") == 4
    late = known.merged(ONE)
    assert serial("n2", 4) not in late.refused()
    assert serial("n2", late.membership("n2")) not in late.refused()
    assert serial("new", 4) in late.with_removed("new").refused()


def test_what_another_node_says_has_our_bounds() -> None:
    heard = Removals.heard(
        {"n2": 10**9, "n3": -1}, {"n2": float("inf"), "n3": -5.0, "n5": 1.0}, 10**9
    )
    assert heard == Removals(counts={"n2": MOST_REMOVALS, "n3": 1}, floor=MOST_FORGOTTEN)


def test_a_name_that_was_removed_very_often_is_not_forgotten() -> None:
    """With its count as the floor, no other could be removed often."""
    often = Removals(counts={"n2": MOST_FORGOTTEN + 1, "n3": MOST_FORGOTTEN}).aged(2 * HALF)
    assert often.counts == {"n2": MOST_FORGOTTEN + 1}
    assert often.membership("n4") == MOST_FORGOTTEN + 1 < MOST_REMOVALS


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["remove", "hear", "age", "set back"]),
            st.sampled_from("ab"),
            st.sampled_from(["n1", "n2"]),
        ),
        max_size=40,
    )
)
def test_what_was_removed_within_the_time_is_refused_wherever_it_was_heard_of(
    steps: list[tuple[str, str, str]],
) -> None:
    """Two nodes that run, are set back, and hear of each other in any order; the clock on the wall does not matter."""
    known = {"a": Removals(), "b": Removals()}
    earlier, now, quarter = dict(known), 0.0, FORGOTTEN_AFTER / 4
    ended: dict[int, float] = {}
    for what, node, name in steps:
        other = "b" if node == "a" else "a"
        if what == "remove":
            known[node] = known[node].merged(known[other])  # as `Removing.remove` does
            number = serial(name, known[node].membership(name))
            assert number not in ended, "none is given twice"
            ended[number] = now
            known[node] = known[node].with_removed(name)
            known[other] = known[other].merged(known[node])
            earlier = dict(known)
        elif what == "hear":
            known[node] = known[node].merged(known[other])
        elif what == "age":
            now += quarter
            known[node] = known[node].aged(quarter)
        else:
            known[node] = earlier[node]
        for number, at in ended.items():
            if now - at <= FORGOTTEN_AFTER:
                assert all(number in each.refused() for each in known.values())


async def test_while_nodes_run_they_count_and_tell_each_other_how_old_a_removal_is(
    world: World,
) -> None:
    first, second = world.machines["n1"], world.machines["n2"]
    await first.removing.take_in(Removals(counts={"n4": 1}))
    tasks = [asyncio.create_task(each.removing.run()) for each in (first, second)]
    try:
        await until(lambda: second.removing.known.counts == {"n4": 1})
        world.now += HALF
        await until(lambda: first.removing.known.ages == second.removing.known.ages != {})
        await asyncio.sleep(0.1)
        for each in (first, second):
            assert each.removing.known.ages == {"n4": HALF}, "what both counted counts once"
            assert b"ages" in each.file.read_bytes()
        world.now += HALF
        await until(lambda: first.removing.known == second.removing.known == Removals(floor=1))
        assert world.events, "they had started again to refuse it"
        before = list(world.events)
        await asyncio.sleep(0.1)
        assert world.events == before, "and need not to refuse less"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_heard_of_late_is_not_older_than_that(world: World) -> None:
    removing = world.machines["n1"].removing
    await removing.take_in(Removals(counts={"n4": 1}))
    world.now += 100.0
    await removing.take_in(Removals(counts={"n5": 1}))
    assert removing.known.ages == {"n4": 100.0}
    world.now += 100.0
    await removing.take_in(Removals(counts={"n4": 1, "n5": 1}, ages={"n4": 150.0}))
    await removing.take_in(Removals(counts={"n6": 1}))
    assert removing.known.ages == {"n4": 200.0, "n5": 100.0}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_removal_tells_no_more_than_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has a limit, and thousands of names do not fit into it. What is missing is asked for."""
    many = {f"gone-{number}": 1 for number in range(5000)}
    await world.machines["n1"].removing.take_in(Removals(counts=many))
    told: list[Mapping[str, int]] = []
    ask = Line.ask

    async def watched(self: Line, operation: Operation, values: Mapping[str, Any]) -> Any:
        told.append(values["counts"])
        return await ask(self, operation, values)

    monkeypatch.setattr(Line, "ask", watched)
    await world.machines["n1"].removing.remove("n4")
    assert {frozenset(counts) for counts in told if counts} == {frozenset({"n4"})}
