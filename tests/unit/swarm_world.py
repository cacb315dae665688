"""A Swarm and a cluster of the same machines, in virtual time: daemons, leases and faults as verbs."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Container, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pannier.cluster.cluster import Cluster
from pannier.contract.views import NodeView
from pannier.contract.words import NodeState
from pannier.core.errors import PeerUnavailable
from pannier.core.pace import Pace
from pannier.host.clock import Clock
from pannier.host.state_files import DurableFile

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from virtual_time import VirtualTimePolicy

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, encode, volume_key
from pannier.core.errors import EngineUnavailable, OutcomeUnknown, PannierError
from pannier.core.evacuation import Evacuated
from pannier.core.node import Node
from pannier.core.swarm import Availability, SwarmNode
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.store.base import ABSENT, Change
from pannier.swarm.evacuation import Evacuation
from pannier.swarm.labels import Labels
from pannier.testing.engine import FakeSwarm, FakeSwarmData
from pannier.testing.store import MemoryData, MemoryStore

__all__ = ["SwarmWorld", "event_loop_policy", "volume"]


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    """Import this into a test module: its tests run in virtual time."""
    return VirtualTimePolicy()


def volume(name: str, holder: str, *in_sync: str) -> Volume:
    """A volume's record."""
    return Volume(
        name=name,
        id=f"{name}.1",
        spec=VolumeSpec(copies=1 + len(in_sync)),
        grant=Grant(holder, 1),
        replicas=in_sync,
        in_sync=in_sync,
        created_at=0.0,
    )


@dataclass
class Faults:
    """What goes wrong in the engines' answers, as shares of all calls; and how long calls take."""

    random: random.Random = field(default_factory=random.Random)
    seconds: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    """Of the changes: no answer comes, and the change is made, if it still can be, later."""
    late_seconds: tuple[float, float] = (0.0, 40.0)


class FaultySwarm(FakeSwarm):
    """A Swarm whose answers take time and may not come."""

    def __init__(self, data: FakeSwarmData, *, node: str, world: SwarmWorld) -> None:
        super().__init__(data, node=node)
        self._world = world

    async def nodes(self) -> list[SwarmNode]:
        await asyncio.sleep(self._world.slow.get(self.node.removeprefix("id-"), 0.0))
        await self._pass()
        found = await super().nodes()
        await self._pass()
        return found

    async def update_node(
        self,
        node: SwarmNode,
        *,
        availability: Availability | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        faults = self._world.faults
        await self._pass()
        change = super().update_node(node, availability=availability, labels=labels)
        if faults.random.random() < faults.late:
            self._world.late += 1
            self._world.start(self._later(change))
            raise OutcomeUnknown("the fake engine did not answer")
        await change
        self._world.inspect()
        await self._pass()
        if faults.random.random() < faults.lost:
            raise OutcomeUnknown("the fake engine's answer got lost")

    async def _later(self, change: object) -> None:
        await asyncio.sleep(self._world.faults.random.uniform(*self._world.faults.late_seconds))
        try:
            await change  # type: ignore[misc]
        except PannierError:
            return
        self._world.inspect()

    async def _pass(self) -> None:
        faults = self._world.faults
        await asyncio.sleep(faults.random.uniform(0, faults.seconds))
        if faults.random.random() < faults.refused:
            raise EngineUnavailable("the fake engine is out of sorts")


class Answering:
    """The other nodes' APIs, as far as an evacuation asks them: those named here answer."""

    def __init__(self, names: Container[str]) -> None:
        self._names = names

    def to(self, node: Node) -> Any:
        return AnsweringNode(node.name in self._names)


class AnsweringNode:
    """One of them."""

    def __init__(self, answers: bool) -> None:
        self._answers = answers

    async def peer_node(self) -> NodeView:
        if not self._answers:
            raise PeerUnavailable("no answer")
        return NodeView(
            name="n",
            address="",
            state=NodeState.UP,
            drivers=[],
            version="",
            volumes=0,
            joined_at="",
        )


class SwarmWorld:
    """Machines ``a``, ``b``, ``c`` (managers) and ``d``, ``e`` with a store. ``async with`` starts it.

    Attributes:
        faults: of the engines; none at first.
        enabled: whether daemons that are started evacuate.
        late: changes that no answer came to.
        slow: seconds that a node's engine takes before it looks at the Swarm's nodes.
        by_hand: what persons have set, by node; nobody else may change it.
        violations: what was found broken; empty at the end, or the test fails.
    """

    def __init__(self, directory: Path, names: str = "abcde", *, managers: int = 3) -> None:
        self._directory = directory
        self.names = names
        self.managers = names[:managers]
        self.data = MemoryData()
        self.swarm = FakeSwarmData()
        self.faults = Faults()
        self.enabled = True
        self.answering: set[str] = set()
        self.late = 0
        self.slow: dict[str, float] = {}
        self.by_hand: dict[str, Availability] = {}
        self.violations: list[str] = []
        self.stores: dict[str, MemoryStore] = {}
        self.catalogs: dict[str, Catalog] = {}
        self.registry = Registry(MemoryStore(self.data))
        self._tasks: set[asyncio.Task[None]] = set()
        self._daemons: dict[str, list[asyncio.Task[None]]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SwarmWorld:
        await self._stack.enter_async_context(self.registry.store.session())
        for name in self.names:
            record = Node(
                name=name,
                address="127.0.0.1",
                drivers=("btrfs",),
                version="0",
                joined_at=0.0,
                certificate=name,
                swarm=f"id-{name}",
            )
            await self.registry.put_node(record)
            self.lease(name)
            node = SwarmNode(
                id=f"id-{name}",
                hostname=name,
                state="ready",
                availability=Availability.ACTIVE,
                role="manager" if name in self.managers else "worker",
                version=0,
                leader=name == self.names[0],
            )
            self.swarm.put(node)
        for name in self.managers:
            await self.start_daemon(name)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name in self.managers:
            await self.kill_daemon(name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        if kind is None:
            assert not self.violations, self.violations

    # -- machines ---------------------------------------------------------------------------------

    def lease(self, name: str) -> None:
        """The node's lease is there."""
        key = f"alive/{name}"
        if self.data.get(key) is None:
            self.data.commit((Change(key, b"boot", ABSENT),))

    def lose(self, name: str) -> None:
        """The node's lease runs out. Its tasks do not matter here."""
        entry = self.data.get(f"alive/{name}")
        if entry is not None:
            self.data.commit((Change(entry.key, None, entry.revision),))

    async def crash(self, name: str) -> None:
        """The node's power fails; its lease is gone some seconds later."""
        if name in self.managers:
            await self.kill_daemon(name)
        self.lose(name)

    async def boot(self, name: str) -> None:
        """The node is back."""
        self.lease(name)
        if name in self.managers and name not in self._daemons:
            await self.start_daemon(name)

    async def start_daemon(self, name: str, *, cut: bool = False) -> None:
        """What a manager's daemon runs of all this; ``cut`` off from the store at first."""
        store = self.stores[name] = MemoryStore(self.data, latency_seconds=0.001)
        if cut:
            store.cut()
        await self._stack.enter_async_context(store.session())
        catalog = self.catalogs[name] = Catalog(
            file=DurableFile(self._directory / name), cluster=None, boot_id="b"
        )
        loop = asyncio.get_running_loop()
        swarm = FaultySwarm(self.swarm, node=f"id-{name}", world=self)
        cluster = Cluster(node=name, registry=Registry(store), catalog=catalog)
        clock = Clock(now=loop.time, unix=loop.time)
        evacuation = Evacuation(
            cluster=cluster,
            swarm=swarm,
            peers=Answering(self.answering),
            enabled=self.enabled,
            clock=clock,
            pace=Pace().swarm,
        )
        labels = Labels(cluster=cluster, swarm=swarm, clock=clock, pace=Pace().swarm)
        work = (catalog.follow(store), evacuation.run(), labels.run())
        self._daemons[name] = [asyncio.create_task(each) for each in work]

    async def kill_daemon(self, name: str) -> None:
        """It ends wherever it is."""
        tasks = self._daemons.pop(name, [])
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                self.violations.append(f"the daemon on {name} ended with {end!r}")

    def start(self, work: object) -> None:
        """Let something go on beside the test."""
        self._tasks.add(asyncio.create_task(work))  # type: ignore[arg-type]

    # -- persons ----------------------------------------------------------------------------------

    async def set_by_hand(self, name: str, availability: Availability) -> None:
        """``docker node update --availability``."""
        self.by_hand[name] = availability
        self.swarm.put(replace(self.node(name), availability=availability))

    async def put_volume(self, volume: Volume) -> None:
        """Make or change a volume's record."""
        found = await self.registry.volume(volume.name)
        expect = found.revision if found else ABSENT
        self.data.commit((Change(volume_key(volume.name), encode(volume), expect),))

    # -- looking ----------------------------------------------------------------------------------

    def node(self, name: str) -> SwarmNode:
        return self.swarm.nodes[f"id-{name}"]

    def availabilities(self, name: str) -> list[Availability]:
        """What the node was changed to, one after the other."""
        changes = [n.availability for n in self.swarm.writes if n.hostname == name]
        return [each for each, _ in itertools.groupby([Availability.ACTIVE, *changes])][1:]

    def drained(self) -> str:
        """The nodes that are drained in Swarm."""
        nodes = sorted(self.swarm.nodes.values(), key=lambda node: node.hostname)
        return "".join(n.hostname for n in nodes if n.availability is Availability.DRAIN)

    async def records(self) -> dict[str, Evacuated]:
        """The store's records of evacuations."""
        found = await self.registry.evacuations()
        return {name: one.record for name, one in found.items()}

    def inspect(self) -> None:
        """What must hold after each change in Swarm: no person is overridden, and never is half of the
        Swarm kept empty by us.
        """
        for name, availability in self.by_hand.items():
            if self.node(name).availability is not availability:
                self.violations.append(f"{name} was set to {availability} by a person")
        ours = [name for name in self.drained() if name not in self.by_hand]
        if 2 * len(ours) >= len(self.names):
            self.violations.append(f"{ours} are drained, of {self.names}")
