"""A world of nodes (tests/unit/world.py) whose volumes have several copies, and may lose their holder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world import ACTOR, Machine, Run, SenderOf, World  # makes the next import possible

# isort: split

from pannier.contract.views import CopyView
from pannier.copies.replicated import ReplicaProgress
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.volume import Grant, Volume
from pannier.storage.base import Driver
from pannier.transport.base import ChooseBase, Offer, Sent


@dataclass(frozen=True)
class Transfer:
    """A generation that was confirmed by another node."""

    by: str
    to: str
    generation: Generation
    base: Generation | None
    bytes: int


class WatchedSender(SenderOf):
    """A node's sender, whose transfers are noted and can be slow."""

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
        choose_base: ChooseBase | None = None,
    ) -> Sent:
        world = self._run.world
        assert isinstance(world, CopiesWorld)
        world.tries.append((to.name, asyncio.get_running_loop().time()))
        await asyncio.sleep(world.slow.get(to.name, 0.0))
        sent = await super().send(
            offer,
            to=to,
            driver=driver,
            progress=progress,
            may_wait=may_wait,
            choose_base=choose_base,
        )
        world.sent.append(
            Transfer(self._run.name, to.name, offer.generation, sent.base, sent.bytes)
        )
        return sent


class CopiesWorld(World):
    """Replicators run.

    Attributes:
        sent: every transfer that was confirmed, in order.
        tries: every transfer that was begun: to whom and when.
        slow: seconds that each transfer to a node takes.
        lossy: volumes that lost their holder: what was written is not all there any more.
        synced: what containers were told is durable, by volume id: nothing but a person's word may
            lose that.
        set_back: grants under which a node's disk was set back: it lacks what was acknowledged.
        careless: nodes on which a person removed a copy by hand.
    """

    def __init__(self, directory: Path, **wishes: Any) -> None:
        super().__init__(directory, with_replication=True, **wishes)
        self.sent: list[Transfer] = []
        self.tries: list[tuple[str, float]] = []
        self.slow: dict[str, float] = {}
        self.lossy: set[str] = set()
        self.synced: dict[str, dict[str, bytes]] = {}
        self.set_back: set[Grant] = set()
        self.careless: set[str] = set()

    def make_sender(self, run: Run) -> WatchedSender:
        return WatchedSender(run)

    async def __aenter__(self) -> CopiesWorld:
        await super().__aenter__()
        return self

    def _inspect_one(self, record: Volume) -> None:
        """Whoever holds it, or could take it over, has all that was synced. And of a volume that lost
        its holder, only that no epoch is given twice and none goes back.
        """
        self._inspect_synced(record)
        if record.id not in self.lossy:
            super()._inspect_one(record)
            return
        key = (record.id, record.grant.epoch)
        if self._grants.setdefault(key, record.grant.node) != record.grant.node:
            self._wrong(f"{record.id}: two nodes were given epoch {record.grant.epoch}")
        if record.grant.epoch < self._epochs.get(record.id, 0):
            self._wrong(f"{record.id}: its epoch went back to {record.grant.epoch}")
        self._epochs[record.id] = record.grant.epoch

    def _inspect_synced(self, record: Volume) -> None:
        synced = self.synced.get(record.id, {}).items()
        held = self._held(record) or {}
        if record.grant not in self.set_back and not synced <= held.items():
            self._wrong(f"{record.id}: holder {record.grant} has {held}, and {synced} was synced")
        for name in record.in_sync:
            disk = self.machines[name].disk
            home = disk.homes.get(record.id)
            lost = record.id in disk.journal_lost
            if lost or home is None or home.damaged or home.quarantined or name in self.careless:
                continue  # the disk, or a person, took it away; whoever is there must not take over
            newest = self._newest(self.machines[name], record)
            found = home.given(newest) if newest else {}
            if not synced <= found.items():
                self._wrong(f"{record.id}: {name} has {found}, and {synced} was synced")

    # -- users ------------------------------------------------------------------------------------

    async def volume(self, machine: Machine, name: str = "vol", **options: str) -> Volume:
        """A new volume with a running container on ``machine``; two copies if nothing else is said."""
        volume = await self.create(machine, name, **{"copies": "2", **options})
        await self.mount(machine, name)
        return volume

    async def synced_volume(self, machine: Machine, name: str = "vol", **options: str) -> Volume:
        """A volume with all its copies in sync, and one file that was synced."""
        volume = await self.volume(machine, name, **options)
        await self.until(lambda: set(self.now_record(name).in_sync) == set(volume.replicas))
        self.put(machine, volume, "synced", b"1")
        await self.sync(machine, name)
        return self.now_record(name)

    async def saved_volume(self, machine: Machine, name: str = "vol", **options: str) -> Volume:
        """The same, and a generation on every copy has that file."""
        await self.synced_volume(machine, name, **options)
        await self.save(machine, name)
        return self.now_record(name)

    def replica(self, volume: Volume) -> Machine:
        """The first of the nodes with another copy."""
        return self.machines[volume.replicas[0]]

    def put(self, machine: Machine, volume: Volume, file: str = "file", value: bytes = b"") -> None:
        """Something is written into the live tree of a node that (believes that it) holds."""
        epoch = max(machine.disk.homes[volume.id].live)
        value = value or b"%d" % len(self.steps)
        machine.disk.write(volume.id, epoch, file, value)
        if volume.id not in self.lossy:
            self.acked.setdefault(volume.id, {})[file] = value

    async def sync(self, machine: Machine, name: str = "vol") -> None:
        """A container's sync call: what was written before it is durable when it returns."""
        volume = machine.up.catalog.volume(name)
        assert volume is not None
        written = dict(machine.disk.homes[volume.id].live[volume.grant.epoch].content)
        await machine.ask(lambda run: run.acknowledging.make_durable(name))
        self.synced.setdefault(volume.id, {}).update(written)
        self.inspect()

    async def save(self, machine: Machine, name: str = "vol") -> Generation:
        """Have the holder make a generation of what was written so far, and wait until all copies in sync have it."""

        async def make(run: Run) -> Generation:
            replicated = run.replicator.replicated(name)
            async with replicated.group:
                return await run.replicator.make(replicated)

        generation = await machine.ask(make)
        volume = self.now_record(name)
        copies = [self.machines[node] for node in volume.in_sync]
        await self.until(
            lambda: all(generation in self.generations(copy, volume) for copy in copies)
        )
        return generation

    def losing(self, volume: Volume) -> None:
        """Its holder will be lost: of what was written, only what was synced is certain."""
        self.lossy.add(volume.id)

    async def recover(self, machine: Machine, name: str = "vol", *, accept: bool = True) -> Volume:
        """``pannier volume recover``, typed on ``machine``."""
        record = self.now_record(name)
        self.lossy.add(record.id)
        if accept:
            self.synced.pop(record.id, None)
        await machine.ask(
            lambda run: run.service.by(ACTOR).recover_volume(name, accept_loss=accept)
        )
        return self.now_record(name)

    # -- looking ----------------------------------------------------------------------------------

    def generations(self, machine: Machine, volume: Volume) -> list[Generation]:
        """What is on a node's disk, oldest first."""
        home = machine.disk.homes.get(volume.id)
        return sorted(home.generations) if home else []

    def copy(self, machine: Machine, volume: Volume) -> dict[str, bytes]:
        """What a node's disk gives back of its newest generation, strays left out, with the records on top of it."""
        newest = self._newest(machine, volume)
        return machine.disk.homes[volume.id].with_records(newest) if newest else {}

    def _newest(self, machine: Machine, volume: Volume) -> Generation | None:
        record = self.record(volume.name) or volume
        ours = [g for g in self.generations(machine, volume) if record.grew_out_of(g)]
        return max(ours, default=None)

    def current(self, machine: Machine, volume: Volume) -> bool:
        """Whether a node's copy has all that was promised."""
        return self.copy(machine, volume) == self.acked.get(volume.id, {})

    def sent_to(self, name: str) -> list[Transfer]:
        return [transfer for transfer in self.sent if transfer.to == name]

    def progress(self, machine: Machine, volume: Volume) -> dict[str, ReplicaProgress]:
        return machine.up.replicator.progress(volume)

    async def copies(self, machine: Machine, name: str = "vol") -> dict[str, CopyView]:
        """The copies that ``pannier volume show`` shows, as asked on ``machine``."""
        view = await machine.ask(lambda run: run.service.volume(name))
        return {copy.node: copy for copy in view.copies or []}

    async def until(self, what: Callable[[], object], *, seconds: float = 120.0) -> None:
        """Wait, in virtual time, until something is so."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not what():
            assert asyncio.get_running_loop().time() < deadline, "it never happened"
            await asyncio.sleep(0.05)

    async def down(self, machine: Machine) -> None:
        """A node's power fails, and everybody has noticed."""
        machine.power_off()
        others = [other.up.catalog for other in self.machines.values() if other.run]
        await self.until(lambda: not any(catalog.is_up(machine.name) for catalog in others))
