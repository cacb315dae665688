"""What a node does on its own: empty the trash, free what was purged, clear itself when drained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from pannier.agent.custody import Custody
from pannier.copies.replication import candidates_of
from pannier.core.errors import PannierError
from pannier.core.placement import fit
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers

log = structlog.get_logger(__name__)

TRASH_SECONDS = 24 * 3600.0
TURN_SECONDS = 60.0
DRAIN_SECONDS = 5.0
"""How often a drained node looks for volumes that became idle: somebody waits for it to be empty."""


class TrashClock:
    """How long each removed volume has been in the trash while this node was watching.

    Counted in turns of the loop, not by the wall clock: a clock that jumps ahead by a day must not
    delete anything. Time during which the daemon did not run is not counted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds: dict[str, float] = {}
        try:
            self._seconds = msgspec.json.decode(file.read_bytes(), type=dict[str, float])
        except (FileNotFoundError, msgspec.DecodeError):
            pass

    def turn(self, present: set[str], seconds: float) -> set[str]:
        """Count ``seconds`` for each volume id present; returns those whose time is over."""
        self._seconds = {one: self._seconds.get(one, 0.0) + seconds for one in present}
        temporary = self._file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self._seconds))
        temporary.replace(self._file)
        return {one for one, counted in self._seconds.items() if counted >= TRASH_SECONDS}


class Upkeep:
    """The node's own slow loop. Every turn may be repeated; an error ends only its turn."""

    def __init__(self, custody: Custody, handovers: Handovers, *, state: Path) -> None:
        self._custody = custody
        self._handovers = handovers
        self._clock = TrashClock(state / "trash.json")

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            for _ in range(round(TURN_SECONDS / DRAIN_SECONDS)):
                await self._attempt(self._clear_if_drained)
                await asyncio.sleep(DRAIN_SECONDS)
            # At the turn's end: a daemon that keeps crashing must not count a turn at each start.
            for step in (self._empty_trash, self._free_purged):
                await self._attempt(step)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:  # whatever it is, the next turn tries again
            log.warning("upkeep.failed", step=step.__name__, error=str(error))

    async def _empty_trash(self) -> None:
        mine = {
            found.record.id: found
            for found in await self._custody.registry.trash()
            if found.record.grant.node == self._custody.node
        }
        for volume_id in self._clock.turn(set(mine), TURN_SECONDS):
            expect = mine[volume_id].revision
            try:
                await self._custody.registry.purge_volume(volume_id, expect=expect)
                log.info("volume.purged", id=volume_id)
            except PannierError as error:  # one that cannot go does not keep the others here
                log.warning("volume.not-purged", id=volume_id, error=str(error))

    async def _free_purged(self) -> None:
        purged = await self._custody.registry.purged()
        for driver in self._custody.drivers.values():
            await driver.quarantined()  # tries them again, the rest of removed ones too
            for volume_id in set(await driver.volumes()) & purged:
                try:
                    await driver.delete(volume_id)
                    log.info("volume.freed", id=volume_id, node=self._custody.node)
                except PannierError as error:
                    log.warning("volume.not-freed", id=volume_id, error=str(error))

    async def _clear_if_drained(self) -> None:
        catalog, node = self._custody.catalog, self._custody.node
        me = catalog.node(node)
        if me is None or not me.drained:
            return
        for volume in catalog.volumes():
            if volume.grant.node == node and not self._custody.awaited(volume):
                try:
                    await self._give_if_idle(volume)
                except PannierError as error:  # one that cannot go does not keep the others here
                    log.warning("upkeep.not-given", volume=volume.name, error=str(error))

    async def _give_if_idle(self, volume: Volume) -> None:
        target = self._successor(volume)
        if target is not None and not await self._custody.users(volume):
            async for _ in self._handovers.move(volume, target, wait_seconds=60):
                pass

    def _successor(self, volume: Volume) -> str | None:
        """A node that has a copy already, else the one that keeps the fewest."""
        nodes = candidates_of(self._custody.catalog.nodes(), self._custody)
        fitting = [c.name for c in fit(nodes, driver=volume.spec.driver)]
        others = [name for name in fitting if name != self._custody.node]
        with_copy = [name for name in others if name in volume.replicas]
        return next(iter(with_copy or others), None)
