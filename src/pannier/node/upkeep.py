"""What a node does on its own: empty the trash, free what was purged, clear itself when drained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.copies.replication import candidates_of
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.placement import place_moved
from pannier.core.record import Record
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashTimes(Record):
    """The file of :class:`TrashClock`: seconds by volume id."""

    seconds: dict[str, float] = field(default_factory=dict)


class TrashClock:
    """How long each removed volume has been in the trash while this node was watching.

    Counted in turns of the loop, not by the wall clock: a clock that jumps ahead by a day must not
    delete anything. Time during which the daemon did not run is not counted.
    """

    def __init__(self, file: StateFile, *, keep_seconds: float) -> None:
        self._file = file
        self._keep_seconds = keep_seconds
        self._times = TrashTimes()
        try:
            remedy = "removed volumes are kept for their whole time again"
            self._times = read_file(file, TrashTimes, remedy=remedy) or self._times
        except PannierError as error:
            log.warning("upkeep.trash-unreadable", error=str(error))

    def turn(self, present: set[str], seconds: float) -> set[str]:
        """Count ``seconds`` for each volume id present; returns those whose time is over."""
        known = self._times.seconds
        counted = {one: known.get(one, 0.0) + seconds for one in present}
        self._times = replace(self._times, seconds=counted)
        self._file.write(encode(self._times))
        return {one for one, time in counted.items() if time >= self._keep_seconds}


class Upkeep:
    """The node's own slow loop. Every step may be repeated; one that fails is tried again next turn."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        handovers: Handovers,
        is_tight: Callable[[], bool],
        file: StateFile,
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` works.

        Args:
            is_tight: whether a pool has so little room that writers will soon stand still.
            file: of the times in the trash.
        """
        self._is_tight = is_tight
        self._cluster = cluster
        self._drivers = drivers
        self._use = use
        self._handovers = handovers
        self._pace = pace
        self._trash = TrashClock(file, keep_seconds=pace.trash)

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            for _ in range(round(self._pace.turn / self._pace.drain)):
                await self._attempt(self._clear_if_drained)
                await self._attempt(self._free_in_need)
                await asyncio.sleep(self._pace.drain)
            # At the turn's end: a daemon that keeps crashing must not count a turn at each start.
            for step in (self.empty_trash, self.free_purged):
                await self._attempt(step)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:  # whatever it is, the next turn tries again
            log.warning("upkeep.failed", step=step.__name__, error=str(error))

    async def empty_trash(self) -> None:
        """Purge what has been in the trash long enough. Called once each turn, which it counts."""
        mine = {found.record.id: found for found in await self._own_trash()}
        for volume_id in await asyncio.to_thread(self._trash.turn, set(mine), self._pace.turn):
            await self._purge(mine[volume_id], why="its time in the trash is over")

    async def _free_in_need(self) -> None:
        """Before writers stand still, what was removed gives its room, one volume at a time, the oldest first."""
        if not self._is_tight():
            return
        there = {volume for driver in self._drivers for volume in await driver.volumes()}
        removed = [each for each in await self._own_trash() if each.record.id in there]
        if removed:
            oldest = min(removed, key=lambda found: found.record.removed_at or 0.0)
            await self._purge(oldest, why="the pool is nearly full")
            await self.free_purged()

    async def _own_trash(self) -> list[Versioned[Volume]]:
        """What is in the trash and was held here last."""
        return [
            found
            for found in await self._cluster.registry.trash()
            if found.record.grant.node == self._cluster.node and not found.record.is_newer
        ]

    async def _purge(self, found: Versioned[Volume], *, why: str) -> None:
        """Give a removed volume up. One that fails does not hold up the others."""
        volume = found.record
        try:
            await self._cluster.registry.purge_volume(volume, expect=found.revision)
            log.info("volume.purged", id=volume.id, volume=volume.name, why=why)
        except PannierError as error:
            log.warning("volume.not-purged", id=volume.id, error=str(error))

    async def free_purged(self) -> None:
        """Delete what was purged from this node's pools."""
        purged = await self._cluster.registry.purged()
        for driver in self._drivers:
            await driver.quarantined()  # tries them again, and remainders of removed ones
            for volume_id in set(await driver.volumes()) & purged:
                try:
                    await driver.delete(volume_id)
                    log.info("volume.freed", id=volume_id, node=self._cluster.node)
                except PannierError as error:
                    log.warning("volume.not-freed", id=volume_id, error=str(error))

    async def _clear_if_drained(self) -> None:
        catalog, node = self._cluster.catalog, self._cluster.node
        me = catalog.node(node)
        if me is None or not me.drained:
            return
        for volume in catalog.volumes():
            if volume.grant.node == node and not self._use.awaited(volume):
                try:
                    await self._give_if_idle(volume)
                except PannierError as error:  # one that fails does not hold up the others
                    log.warning("upkeep.not-given", volume=volume.name, error=str(error))

    async def _give_if_idle(self, volume: Volume) -> None:
        candidates = candidates_of(self._cluster)
        target = place_moved(volume, candidates)
        if target is not None and not await self._use.users(volume):
            async for _ in self._handovers.move(volume, target, wait_seconds=60):
                pass
