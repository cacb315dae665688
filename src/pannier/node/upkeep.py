"""What a node does on its own: empty the trash, free what was purged, clear itself when drained."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.copies.replication import candidates_of
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.placement import place_moved
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.node.trash import Trash

log = structlog.get_logger(__name__)


class Upkeep:
    """The node's own slow loop. Every step may be repeated; one that fails is tried again next turn."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        use: Use,
        handovers: Handovers,
        trash: Trash,
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` works."""
        self._cluster = cluster
        self._use = use
        self._handovers = handovers
        self._pace = pace
        self._trash = trash

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
        await self._trash.empty_overdue(self._pace.turn)

    async def _free_purged(self) -> None:
        await self._trash.free_purged()

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
