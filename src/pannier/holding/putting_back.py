"""Puts the records of volumes back into a store that was restored from an older backup.

The node that holds a volume, by the newest record that any node remembers, does so by itself once every node of the
cluster has answered: then nobody can know of a later holder. Otherwise a person decides (``pannier volume recover``).
Until then the store's word leads to nothing: see :meth:`pannier.cluster.cluster.Cluster.fresh`.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, Older
from pannier.cluster.registry import Versioned
from pannier.core.errors import Conflict, PannierError
from pannier.core.ownership import Promote, Serve, Unseal, plan_serving
from pannier.core.pace import HoldingPace
from pannier.core.restored import Knowledge, may_put_back, store_is_older
from pannier.core.volume import HistoryEntry, Volume
from pannier.holding.memories import Memories
from pannier.host.clock import Clock
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)


class PuttingBack:
    """Looks at the volumes that the catalog doubts."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        memories: Memories,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        """Prepare; :meth:`run` works."""
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._memories = memories
        self._clock = clock
        self._pace = pace

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            for name in self._cluster.catalog.doubted():
                try:
                    await self._look(name)
                except PannierError as error:  # tried again
                    log.info("volume.not-put-back", volume=name, error=str(error))
            await asyncio.sleep(self._pace.put_back)

    async def _look(self, name: str) -> None:
        older = await self._settled(name)
        if older is None or older.known.grant.node != self._cluster.node:
            return
        async with self._custody.lock(older.known):
            older = await self._settled(name)
            if older is None:
                return
            knowledge = Knowledge(
                known=older.known,
                found=older.stored.record if older.stored is not None else None,
                silent=self._memories.silent(name),
                whole=await self._is_whole(older.known),
            )
            if may_put_back(knowledge, node=self._cluster.node):
                await self._put_back(older, by="its holder; all nodes answered")

    async def _settled(self, name: str) -> Older | None:
        """What the store says instead; None where it says nothing older, and the news was only late."""
        found = await self._cluster.compared(name)
        if isinstance(found, Older):
            return found
        if found is None:
            self._cluster.catalog.forget(name)
        else:
            self._cluster.catalog.remember(found.record, revision=found.revision)
        return None

    async def _is_whole(self, volume: Volume) -> bool:
        if volume.spec.driver not in self._drivers:
            return False
        copy = await self._drivers.of(volume).inspect(volume.id)
        plan = plan_serving(volume, copy.state, node=self._cluster.node)
        return isinstance(plan, Serve | Unseal | Promote)

    async def by_hand(self, name: str, *, accept_loss: bool, actor: str) -> Volume | None:
        """Put the newest record back that a node remembers which answers. None where the store is not older.

        Raises:
            Conflict: the loss was not accepted; the message says who did not answer.
        """
        await self._memories.look()
        older = await self._settled(name)
        if older is None:
            return None
        if not accept_loss:
            raise self._not_accepted(older)
        return await self._put_back(older, by=actor)

    def _not_accepted(self, older: Older) -> Conflict:
        known, silent = older.known, self._memories.silent(older.known.name)
        error = store_is_older(known, older.stored.record if older.stored is not None else None)
        who = (
            f"no answer from {', '.join(silent)}, which may know more"
            if silent
            else "all nodes answered"
        )
        return Conflict(
            f"{error.message}; {who}",
            remedy=f"start {', '.join(silent) or known.grant.node}: then it comes back by itself; or put back what is known here, "
            f"without what later holders wrote: pannier volume recover {known.name} --accept-loss",
        )

    async def _put_back(self, older: Older, *, by: str) -> Volume:
        known, stored = older.known, older.stored
        record = known.with_entry(
            HistoryEntry(
                at=self._clock.unix(),
                what="put back",
                node=known.grant.node,
                epoch=known.grant.epoch,
                detail=f"the store had been restored from an older backup; by {by}",
            )
        )
        same: Versioned[Volume] | None = (
            stored if stored is not None and stored.record.id == known.id else None
        )
        if stored is not None and same is None:
            raise Conflict(
                f"the store has another volume of the name {known.name} ({stored.record.id}); the nodes know {known.id}",
                remedy="remove the store's first if it is the older one: pannier volume rm; then try again",
            )
        back = await self._cluster.registry.put_back(
            record, expect=same.revision if same is not None else ABSENT, removed=older.trashed
        )
        self._cluster.catalog.remember(back.record, revision=back.revision)
        log.warning("volume.put-back", volume=known.name, epoch=known.grant.epoch, by=by)
        return back.record
