"""What a node does on its own: empty the trash, free what was purged, clear itself when drained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.copies.replication import candidates_of
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.placement import place_moved
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)


class TrashClock:
    """How long each removed volume has been in the trash while this node was watching.

    Counted in turns of the loop, not by the wall clock: a clock that jumps ahead by a day must not
    delete anything. Time during which the daemon did not run is not counted.
    """

    def __init__(self, file: StateFile, *, keep_seconds: float) -> None:
        self._file = file
        self._keep_seconds = keep_seconds
        self._seconds: dict[str, float] = {}
        try:
            content = file.read()
            if content is not None:
                self._seconds = msgspec.json.decode(content, type=dict[str, float])
        except (OSError, msgspec.DecodeError) as error:  # each begins its time anew
            log.warning("trash.times-not-readable", path=str(file.path), error=str(error))

    def turn(self, present: set[str], seconds: float) -> set[str]:
        """Count ``seconds`` for each volume id present; returns those whose time is over."""
        self._seconds = {one: self._seconds.get(one, 0.0) + seconds for one in present}
        self._file.write(msgspec.json.encode(self._seconds))
        return {one for one, counted in self._seconds.items() if counted >= self._keep_seconds}


class Upkeep:
    """The node's own slow loop. Every turn may be repeated; an error ends only its turn."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        handovers: Handovers,
        file: StateFile,
        pace: NodePace,
    ) -> None:
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
                await asyncio.sleep(self._pace.drain)
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
            for found in await self._cluster.registry.trash()
            if found.record.grant.node == self._cluster.node
        }
        for volume_id in self._trash.turn(set(mine), self._pace.turn):
            await self._cluster.registry.purge_volume(volume_id, expect=mine[volume_id].revision)
            log.info("volume.purged", id=volume_id)

    async def _free_purged(self) -> None:
        purged = await self._cluster.registry.purged()
        for driver in self._drivers:
            for volume_id in set(await driver.volumes()) & purged:
                await driver.delete(volume_id)
                log.info("volume.freed", id=volume_id, node=self._cluster.node)

    async def _clear_if_drained(self) -> None:
        catalog, node = self._cluster.catalog, self._cluster.node
        me = catalog.node(node)
        if me is None or not me.drained:
            return
        for volume in catalog.volumes():
            if volume.grant.node == node and not self._use.awaited(volume):
                try:
                    await self._give_if_idle(volume)
                except PannierError as error:  # one that cannot go does not keep the others here
                    log.warning("upkeep.not-given", volume=volume.name, error=str(error))

    async def _give_if_idle(self, volume: Volume) -> None:
        candidates = candidates_of(self._cluster)
        target = place_moved(volume, candidates)
        if target is not None and not await self._use.users(volume):
            async for _ in self._handovers.move(volume, target, wait_seconds=60):
                pass
