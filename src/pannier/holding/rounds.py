"""What is sent ahead of a hand-over, while the volume is in use.

A volume of one copy is sent in rounds from here. One that has several is replicated all the time, and
sync calls depend on that: it goes on, and the target is one node more that gets every generation.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from pannier.agent.custody import Custody
from pannier.contract.words import MovePhase
from pannier.copies.replicated import Progress
from pannier.core.errors import VolumeInUse
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.transport.base import Sender, offer_of

SMALL_ROUND_SECONDS = 0.3
"""A round that took less leaves so little that the last one will be short too."""
IDLE_ROUND_SECONDS = 2.0
"""While waiting for the end of use, how often the rest is sent ahead."""
POLL_SECONDS = 0.1
NEAR_SECONDS = 3.0
"""A replicated volume's target that lags no further is near: the rest is short."""


@dataclass(slots=True)
class Moving:
    """One volume on its way to another node."""

    volume: Volume
    target: Node
    started: float
    wanted_until: float
    phase: MovePhase = MovePhase.COPYING
    round: int = 0
    sent_bytes: int = 0
    bytes_before: int | None = None
    """What replication had sent to the target before."""
    in_use_by: list[str] = field(default_factory=list)
    generation: Generation | None = None
    pause_seconds: float | None = None
    started_at: float = field(default_factory=time.time)
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def to(self, phase: MovePhase, in_use_by: list[str] | None = None) -> None:
        self.phase = phase
        self.in_use_by = in_use_by or []
        self.changed.set()


class Replication(Protocol):
    """What goes on while a hand-over waits for the end of use: sync calls need it."""

    async def bring(self, volume: Volume, node: str) -> Progress | None:
        """Send to ``node`` as well; how far that is, None where the volume is not replicated."""
        ...

    async def pause(self, volume: Volume) -> None:
        """Send no more, and change the volume's record no more, until it was given or was not."""
        ...


class Ahead:
    """Brings the target near to the volume as it is, so that the rest is short."""

    def __init__(self, custody: Custody, sender: Sender) -> None:
        self._custody = custody
        self._sender = sender
        self.replication: Replication | None = None

    async def pause(self, volume: Volume) -> None:
        """End replication: the volume is given away now, or stays and is begun with anew."""
        if self.replication is not None:
            await self.replication.pause(volume)

    async def while_used(self, running: Moving) -> None:
        """Send what is written until nobody uses the volume any more.

        Raises:
            VolumeInUse: somebody still does, and nobody wants the volume any more.
        """
        custody, volume = self._custody, running.volume
        can_copy = custody.driver(volume).generations_in_use
        next_round = 0.0
        while users := await custody.users(volume):
            if custody.clock() > running.wanted_until:
                raise VolumeInUse(
                    f"volume {volume.name} is still in use on node {custody.node} by "
                    f"{', '.join(users)}",
                    remedy="stop that first (a service: --update-order stop-first); it stays there",
                )
            progress = await self._bring(running)
            if progress is not None:
                near = self._near(progress)
                running.to(MovePhase.WAITING if near else MovePhase.COPYING, users)
            elif can_copy and custody.clock() >= next_round:
                running.to(running.phase, users)
                began = custody.clock()
                await self._round(running)
                took = custody.clock() - began
                if took > SMALL_ROUND_SECONDS and running.round < 20:
                    continue
                next_round = custody.clock() + max(IDLE_ROUND_SECONDS, 4 * took)
            if progress is None:
                running.to(MovePhase.WAITING, users)
            released = custody.released(volume)
            released.clear()
            try:
                await asyncio.wait_for(released.wait(), POLL_SECONDS)
            except TimeoutError:
                pass

    async def _bring(self, running: Moving) -> Progress | None:
        """Have replication, which goes on, send to the target too; None where there is none."""
        if self.replication is None:
            return None
        progress = await self.replication.bring(running.volume, running.target.name)
        if progress is None:
            return None
        if running.bytes_before is None:
            running.bytes_before = progress.sent_bytes
        running.sent_bytes = max(progress.sent_bytes - running.bytes_before, 0)
        if progress.generation != running.generation:
            running.generation = progress.generation
            running.round += 1
        return progress

    def _near(self, progress: Progress) -> bool:
        at = progress.current_at
        return at is not None and self._custody.clock() - at < NEAR_SECONDS

    async def until_near(self, running: Moving) -> None:
        """Let replication end what it began. Where that fails, the last transfer says why."""
        while (progress := await self._bring(running)) is not None:
            at_rest = progress.generation is not None and progress.sending is None
            if at_rest or self._near(progress) or progress.error:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _round(self, running: Moving) -> None:
        volume = running.volume
        driver = self._custody.driver(volume)
        generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
        running.round += 1
        await self.send(running, generation)

    async def send(self, running: Moving, generation: Generation) -> None:
        """Send one generation to the target, and note it."""
        volume, before = running.volume, running.sent_bytes

        def report(sent: int) -> None:
            running.sent_bytes = before + sent
            running.changed.set()

        sent = await self._sender.send(
            offer_of(volume, generation),
            to=running.target,
            driver=self._custody.driver(volume),
            progress=report,
        )
        running.sent_bytes = before + sent.bytes
        running.generation = generation
