"""What is sent ahead of a hand-over, while the volume is in use.

A volume with one copy is sent in rounds from here. A volume with several copies is replicated all the
time, and sync calls depend on that. So its replication goes on, and also sends to the target.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.contract.words import MovePhase
from pannier.copies.delivering import Delivering
from pannier.copies.named import NamedGenerations
from pannier.copies.replicated import ReplicaProgress
from pannier.core.errors import VolumeInUse
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.transport.base import offer_of


@dataclass(slots=True)
class Moving:
    """One volume on its way to another node."""

    volume: Volume
    target: Node
    started: float
    wanted_until: float
    started_at: float
    """By the wall clock, for people."""
    phase: MovePhase = MovePhase.COPYING
    round: int = 0
    sent_bytes: int = 0
    bytes_before: int | None = None
    """What replication had sent to the target before the move."""
    in_use_by: list[str] = field(default_factory=list)
    generation: Generation | None = None
    pause_seconds: float | None = None
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def to(self, phase: MovePhase, in_use_by: list[str] | None = None) -> None:
        self.phase = phase
        self.in_use_by = in_use_by or []
        self.changed.set()


class Replication(Protocol):
    """What goes on while a hand-over waits for the end of use: sync calls need it.

    No method raises anything; errors of sending are in what :meth:`bring` returns.
    """

    async def bring(self, volume: Volume, node: str) -> ReplicaProgress | None:
        """Send to ``node`` as well. Returns how far it is; None if the volume is not replicated."""
        ...

    async def pause(self, volume: Volume) -> None:
        """Send nothing and do not change the volume's record until it was given away or stays."""
        ...


class Rounds:
    """Brings the target nearly up to date, so that the last transfer is short."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        sender: Delivering,
        replication: Replication,
        named: NamedGenerations,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._use = use
        self._sender = sender
        self._replication = replication
        self._named = named
        self._clock = clock
        self._pace = pace

    async def pause(self, volume: Volume) -> None:
        """End replication: the volume is given away now. If it stays, replication starts anew."""
        await self._replication.pause(volume)

    async def while_used(self, running: Moving) -> None:
        """Send what is written until nobody uses the volume any more.

        Raises:
            VolumeInUse: somebody still does, and nobody wants the volume any more.
        """
        volume = running.volume
        can_copy = self._drivers.of(volume).generations_in_use
        next_round = 0.0
        while users := await self._use.users(volume):
            if self._clock.now() > running.wanted_until:
                raise VolumeInUse(
                    f"volume {volume.name} is still in use on node {self._cluster.node} by "
                    f"{', '.join(users)}",
                    remedy="stop that first (a service: --update-order stop-first); it stays there",
                )
            progress = await self._bring(running)
            if progress is not None:
                near = self._near(progress)
                running.to(MovePhase.WAITING if near else MovePhase.COPYING, users)
            elif can_copy and self._clock.now() >= next_round:
                running.to(running.phase, users)
                began = self._clock.now()
                await self._round(running)
                await self.send_snapshots(running, volume)
                took = self._clock.now() - began
                if took > self._pace.small_round and running.round < 20:
                    continue
                next_round = self._clock.now() + max(self._pace.idle_round, 4 * took)
            if progress is None:
                running.to(MovePhase.WAITING, users)
            released = self._use.released(volume)
            released.clear()
            try:
                async with asyncio.timeout(self._pace.poll):
                    await released.wait()
            except TimeoutError:
                pass

    async def _bring(self, running: Moving) -> ReplicaProgress | None:
        """Have the replication send to the target, too; None if the volume is not replicated."""
        progress = await self._replication.bring(running.volume, running.target.name)
        if progress is None:
            return None
        if running.bytes_before is None:
            running.bytes_before = progress.sent_bytes
        running.sent_bytes = max(progress.sent_bytes - running.bytes_before, 0)
        if progress.generation != running.generation:
            running.generation = progress.generation
            running.round += 1
        return progress

    def _near(self, progress: ReplicaProgress) -> bool:
        at = progress.current_at
        return at is not None and self._clock.now() - at < self._pace.near

    async def until_near(self, running: Moving) -> None:
        """Wait until replication has sent what it began. If that fails, the last transfer reports why."""
        while (progress := await self._bring(running)) is not None:
            if progress.lacks and not progress.error:
                await asyncio.sleep(self._pace.poll)
                continue
            at_rest = progress.generation is not None and progress.sending is None
            if at_rest or self._near(progress) or progress.error:
                return
            await asyncio.sleep(self._pace.poll)
        await self.send_snapshots(running, running.volume)

    async def send_snapshots(self, running: Moving, record: Volume) -> None:
        """Send the snapshots that the target lacks; the volume is not replicated, or not any more.

        Raises:
            Unavailable: the target does not keep them; and what sending raises.
        """

        async def send(generation: Generation) -> None:
            await self._insist(running, generation)

        await self._named.bring(record, running.target.name, send=send)

    async def _round(self, running: Moving) -> None:
        volume = running.volume
        driver = self._drivers.of(volume)
        here = await driver.inspect(volume.id)
        if all(tree.epoch != volume.grant.epoch for tree in here.live):
            return  # who waits for it has it only just been given: nothing was written yet
        generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
        running.round += 1
        await self.send(running, generation)

    async def send(self, running: Moving, generation: Generation) -> None:
        """Send one generation to the target, and note it."""
        await self._insist(running, generation)
        running.generation = generation

    async def _insist(self, running: Moving, generation: Generation) -> None:
        volume, before = running.volume, running.sent_bytes

        def report(sent: int) -> None:
            running.sent_bytes = before + sent
            running.changed.set()

        sent = await self._sender.insist(
            offer_of(volume, generation),
            to=running.target,
            driver=self._drivers.of(volume),
            progress=report,
        )
        running.sent_bytes = before + sent.bytes
