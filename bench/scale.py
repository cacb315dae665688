"""A large cluster loses a node, without any I/O: what planning takes, and what the store is asked."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import Wish
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.copies.replication import candidates_of
from pannier.core.evacuation import Evacuated, Phase, Subject, plan
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.node import Node
from pannier.core.pace import CopiesPace
from pannier.core.placement import repair_replicas, replicas_after_loss
from pannier.core.recovery import FoundCopy, choose_successor
from pannier.core.swarm import Availability, SwarmNode
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec
from pannier.host.state_files import DurableFile
from pannier.store.base import ABSENT, Change
from pannier.swarm.labels import wanted_labels
from pannier.testing.store import MemoryStore

_COPIES = 3
_SAMPLE_SECONDS = 3.0
_LOST = 0
_BASE = Generation(1, 7)
_MEMORY = "resident memory of all records on one node"
_HEAR = "hearing all records at the daemon's start"
_PLACE = "new replicas: one node's turn over its volumes"
_SUCCEED = "successors for the lost node's volumes"
_EVACUATE = "evacuation: what to do in Swarm"
_LABEL = "labels for Swarm's nodes"


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a cluster."""

    nodes: int
    volumes: int


def measure(wish: Wish) -> Result:
    """See the module."""
    sizes = {
        "ours": wish.pick(_Size(1_000, 100_000), _Size(100, 5_000)),
        "theirs": wish.pick(_Size(100, 10_000), _Size(10, 500)),
    }
    rounds = wish.pick(2, 1)
    collected, notes = Rounds(), [""]
    for leg in turns(rounds, *sizes):
        wish.say(f"   {sizes[leg].nodes:,} nodes, {sizes[leg].volumes:,} volumes")
        found = _in_a_fresh_process(sizes[leg])
        for what, value in found.values.items():
            collected.add(what, leg, value)
        if leg == "ours":
            notes = [_writes_note(sizes[leg], found)]
    large, small = sizes["ours"], sizes["theirs"]
    return Result(
        title=f"{large.nodes:,} nodes and {large.volumes:,} volumes",
        reference=f"the same with {small.nodes:,} nodes and {small.volumes:,} volumes.",
        how=(
            f"Values in memory, no I/O; copies={_COPIES}; a node holds 100 volumes and "
            f"has copies of 200 others. A node is lost; what the daemons then decide is decided, "
            f"each step as often as one daemon does it at once; times are the processor's. Where a turn over a node's volumes "
            f"takes more than {_SAMPLE_SECONDS:.0f} s it is projected from those it came to. The "
            f"limit is the time in which a turn is repeated, since nothing else goes on in the "
            f"daemon meanwhile. {rounds} rounds."
        ),
        figures=tuple(_figures(collected)),
        notes=tuple(notes),
    )


@dataclass(slots=True)
class _Found:
    """Of one simulation: values by what they are of, the store's writes, and a record's bytes."""

    values: dict[str, float] = field(default_factory=dict)
    writes: int = 0
    record_bytes: int = 0


def _in_a_fresh_process(size: _Size) -> _Found:
    """Memory that an earlier simulation has used would hide what this one takes."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_simulate, size).result()


def _simulate(size: _Size) -> _Found:
    simulation = _Simulation(size)
    asyncio.run(simulation.run())
    return simulation.found


def _figures(collected: Rounds) -> Iterable[Figure]:
    turn = Target(at_most=CopiesPace().reconcile, of="value")
    units = {
        _MEMORY: ("MB", None),
        _HEAR: ("s", None),
        _PLACE: ("s", turn),
        _SUCCEED: ("s", turn),
        _EVACUATE: ("s", turn),
        _LABEL: ("s", turn),
    }
    for what, (unit, target) in units.items():
        ours, theirs = (collected.of(what, leg) for leg in ("ours", "theirs"))
        yield Figure(what=what, ours=ours, theirs=theirs, unit=unit, target=target)


class _Simulation:
    """A cluster of one size, and the loss of its first node."""

    def __init__(self, size: _Size) -> None:
        self.found = _Found()
        self._nodes = [_node(number) for number in range(size.nodes)]
        self._records = _volumes(size, self._nodes)
        self._lost = self._nodes[_LOST].name

    async def run(self) -> None:
        """Measure."""
        store = MemoryStore()
        async with store.session():
            registry = Registry(store)
            for node in self._nodes:
                await registry.put_node(node)
                if node.name != self._lost:
                    await store.commit(Change(f"alive/{node.name}", b"", ABSENT))
            for volume in self._records:
                await registry.add_volume(volume)
            with tempfile.TemporaryDirectory() as folder:
                catalog = await self._hear(store, Path(folder) / "catalog.json")
            self._plan(catalog)
            await self._write(registry)

    async def _hear(self, store: MemoryStore, file: Path) -> Catalog:
        """What every node knows of all others."""
        catalog = Catalog(file=DurableFile(file), cluster=None, boot_id="")
        before, began = _resident(), time.process_time()
        following = asyncio.create_task(catalog.follow(store))
        await catalog.synced.wait()
        self.found.values[_HEAR] = time.process_time() - began
        self.found.values[_MEMORY] = (_resident() - before) / 1e6
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return catalog

    # -- deciding --------------------------------------------------------------------------------

    def _plan(self, catalog: Catalog) -> None:
        held = [v for v in self._records if v.grant.node == self._nodes[1].name]
        self._time(_PLACE, lambda: self._place(catalog, held))
        orphans = [v for v in self._records if v.grant.node == self._lost]
        self._time(_SUCCEED, lambda: self._succeed(orphans))
        swarm = [_swarm_node(node) for node in self._nodes]
        subjects = [
            Subject(name=n.name, steady_seconds=None if n.name == self._lost else 60.0, swarm=s)
            for n, s in zip(self._nodes, swarm, strict=True)
        ]
        self._time(_EVACUATE, lambda: _once(lambda: plan(subjects, swarm)))
        away = frozenset({self._lost})
        self._time(
            _LABEL,
            lambda: _once(lambda: wanted_labels(catalog.volumes(), catalog.nodes(), away=away)),
        )

    def _time(self, what: str, work: Callable[[], float]) -> None:
        """Note the seconds of some work; it returns how much of itself it did."""
        began = time.process_time()
        share = work()
        self.found.values[what] = (time.process_time() - began) / share

    def _place(self, catalog: Catalog, held: list[Volume]) -> float:
        """What :class:`pannier.copies.replication.Replicator` does in each of its turns."""
        registry = Registry(MemoryStore())
        cluster = Cluster(node=self._nodes[1].name, registry=registry, catalog=catalog)
        until = time.process_time() + _SAMPLE_SECONDS
        gone = frozenset({self._lost})
        candidates = candidates_of(cluster)
        for done, volume in enumerate(held, 1):
            if gone.intersection(volume.replicas):
                repair_replicas(volume, candidates, gone=gone)
            if time.process_time() > until:
                return done / len(held)
        return 1.0

    def _succeed(self, orphans: list[Volume]) -> float:
        for volume in orphans:
            copies = {name: FoundCopy(generation=Generation(1, 8)) for name in volume.in_sync}
            choose_successor(volume, holder_up=False, copies=copies)
        return 1.0

    # -- writing ---------------------------------------------------------------------------------

    async def _write(self, registry: Registry) -> None:
        """Do the writes that follow at once: takeovers, copies that leave, evacuation."""
        lost = self._lost
        for volume in self._records:
            if volume.grant.node == lost:
                target = volume.in_sync[0]
                replicas = replicas_after_loss(volume, target=target)
                record = volume.granted(target, base=_BASE, on_top=OnTop.ALL, replicas=replicas)
            elif lost in volume.in_sync:
                left = tuple(name for name in volume.in_sync if name != lost)
                record = replace(volume, in_sync=left)
            else:
                continue
            found = await registry.volume(volume.name)
            assert found is not None
            await registry.replace_volume(record, expect=found.revision)
            self.found.writes += 1
        former, swarm = Availability.ACTIVE, self._nodes[_LOST].swarm or ""
        revision = ABSENT
        for phase in (Phase.DRAINING, Phase.DRAINED):
            record_of = Evacuated(node=lost, swarm=swarm, former=former, phase=phase)
            revision = await registry.put_evacuation(record_of, expect=revision)
            self.found.writes += 1
        entry = await registry.store.get(f"volumes/{self._records[0].name}")
        assert entry is not None
        self.found.record_bytes = len(entry.value)


def _once(work: Callable[[], object]) -> float:
    work()
    return 1.0


def _writes_note(size: _Size, found: _Found) -> str:
    writes, record_bytes = found.writes, found.record_bytes
    repaired = size.volumes * (_COPIES - 1) // size.nodes
    return (
        f"with {size.nodes:,} nodes the loss of one makes {writes} writes to the store: one for each "
        f"volume that it held or had a copy of, two for its evacuation. In the worst case, where "
        f"each volume is just being written and needed elsewhere, all come within a second: "
        f"{writes} writes/s of {record_bytes} bytes, of which every node hears: "
        f"{writes * record_bytes * size.nodes / 1e6:.0f} MB/s in all. A quarter of an hour later "
        f"{repaired} copies are replaced within {CopiesPace().reconcile:.0f} s, {repaired / CopiesPace().reconcile:.0f} "
        f"writes/s; each joins with one more write when it has its data"
    )


# -- a cluster ---------------------------------------------------------------------------------------


def _node(number: int) -> Node:
    return Node(
        name=f"node{number:04}",
        address=f"10.0.{number // 250}.{number % 250 + 1}",
        drivers=("btrfs",),
        version="1.0",
        joined_at=1.0,
        certificate=f"{number:064x}",
        swarm=f"{number:025x}",
    )


def _swarm_node(node: Node) -> SwarmNode:
    return SwarmNode(
        id=node.swarm or "",
        hostname=node.name,
        state="ready",
        availability=Availability.ACTIVE,
        role="worker",
        version=1,
    )


def _volumes(size: _Size, nodes: list[Node]) -> list[Volume]:
    """Each node holds as many, and has copies of others that are spread at random."""
    chance = random.Random(1)
    spec = VolumeSpec(copies=_COPIES, durability=Durability.FSYNC)
    found = []
    for number in range(size.volumes):
        holder = number % size.nodes
        others = chance.sample(range(size.nodes - 1), _COPIES - 1)
        replicas = tuple(nodes[each + (each >= holder)].name for each in others)
        volume = Volume(
            name=f"volume-{number:06}",
            id=f"{number:032x}",
            spec=spec,
            grant=Grant(nodes[holder].name, 1),
            replicas=replicas,
            in_sync=replicas,
            base=_BASE,
            created_at=1.0,
        )
        found.append(volume)
    return found


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
