"""A removal reaches every node: those that are told, those that were down, and the members of the store one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract.operation import Operation
from pannier.contract.peers import PEER_OPERATIONS, Peer
from pannier.contract.views import RemovalsView
from pannier.core.errors import Corrupt, PeerUnavailable, StorageError, Unavailable
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.core.removals import Removals
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
            await machine.removing.take_in(values["counts"])
        return RemovalsView(counts=dict(machine.removing.known.counts))

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
        await machine.removing.take_in({"n4": 1})
    world.start("n1", Member("n1", world.events))
    assert world.machines["n1"].removing.known.counts == {"n4": 1}
    await world.machines["n1"].removing.take_in({})
    assert world.refuses("n4") == ["n1"]


async def test_a_member_that_refuses_already_is_left_alone(world: World) -> None:
    await world.machines["n1"].removing.take_in({"n4": 1})
    await world.machines["n1"].removing.take_in({"n4": 1})
    assert world.events == ["n1 ends", "n1 serves"]


async def test_who_knows_less_does_not_remove_too_little(world: World) -> None:
    """n4 was removed and joined again while n1 was down: its second membership ends, too."""
    await world.machines["n2"].removing.take_in({"n4": 1})
    await world.machines["n1"].removing.remove("n4")
    assert world.machines["n3"].removing.known.counts == {"n4": 2}


async def test_a_damaged_file_is_reported(world: World) -> None:
    world.machines["n1"].file.write_bytes(b"{")
    with pytest.raises(Corrupt, match="other nodes know it"):
        world.start("n1", Member("n1", world.events))


def test_counts_only_grow_in_whatever_order_they_come() -> None:
    one, other = {"n2": 3, "n4": 1}, {"n2": 1, "n5": 2}
    assert Removals().merged(one).merged(other) == Removals().merged(other).merged(one)
    known = Removals().merged(one)
    assert known.merged({"n2": 2}) is known
    assert replace(known, counts={}).membership("n2") == 1
    assert known.membership("n2") == 4
