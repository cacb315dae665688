"""A node that has everything takes a volume over when its holder is gone, without a person.

Only an in-sync copy may, and only once the holder's lease has run out in the store. Then, in this
order: confirm nothing more to the former holder; see in the store that its lease is gone; choose the
newest generation that is here; change the record, on condition that the record is unchanged and the
lease is still gone.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.contract.peers import Peers
from pannier.core.errors import (
    NotFound,
    OutcomeUnknown,
    PannierError,
    Unavailable,
)
from pannier.core.line import OnTop
from pannier.core.pace import HoldingPace
from pannier.core.placement import replicas_after_loss
from pannier.core.recovery import (
    FoundCopy,
    all_alike,
    check_takeover,
    choose_in_sync,
    holder_is_up,
    takeover_possible,
)
from pannier.core.volume import Grant, HistoryEntry, Volume
from pannier.holding.finding import CopyFinder
from pannier.holding.memories import Memories
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Takeover:
    """Takes volumes over from holders whose lease has run out."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        finder: CopyFinder,
        memories: Memories,
        peers: Peers,
        promises: Promises,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._finder = finder
        self._memories = memories
        self._peers = peers
        self._promises = promises
        self._clock = clock
        self._pace = pace

    def possible(self, volume: Volume) -> bool:
        """Whether, as far as is known here, the holder is gone and a copy may go on."""
        return takeover_possible(
            volume,
            node=self._cluster.node,
            holder_up=self._cluster.catalog.is_up(volume.grant.node),
        )

    async def arrange(self, volume: Volume) -> Volume:
        """Have the best copy that answers take the volume over, here or on another node.

        Returns the new record, whichever node holds the volume then.

        Raises:
            Unavailable: a promise forbids it for now, or no in-sync copy answers.
            Conflict: the holder is back, or somebody else was faster.
        """
        epoch = volume.grant.epoch
        chosen = await self._choose(volume)
        if chosen == self._cluster.node:
            return await self.take(volume.name, epoch=epoch)
        node = self._cluster.catalog.node(chosen)
        assert node is not None  # it answered
        try:
            await self._peers.to(node).peer_take(
                volume.name, epoch=epoch, generation=None, actor=self._cluster.node
            )
        except OutcomeUnknown:
            log.info("takeover.unknown", volume=volume.name, node=chosen)
        return (await self._cluster.fresh(volume.name)).record

    async def _choose(self, volume: Volume) -> str:
        """This node, if it is in sync and all copies in sync are alike: then no other node has to
        answer. Otherwise the node whose copy is furthest."""
        me = self._cluster.node
        if all_alike(volume) and me in volume.in_sync:
            here = await self._copy_on(me, volume)
            if here is not None and not here.lacks:
                return me
        found = await asyncio.gather(*(self._copy_on(name, volume) for name in volume.in_sync))
        return choose_in_sync(volume, dict(zip(volume.in_sync, found, strict=True)), node=me)

    async def _copy_on(self, name: str, volume: Volume) -> FoundCopy | None:
        if name != self._cluster.node and not self._cluster.catalog.is_up(name):
            return None
        return await self._finder.on(name, volume, within=self._pace.take_ask)

    async def take(self, name: str, *, epoch: int) -> Volume:
        """Make this node the holder after ``epoch``. Repeatable.

        Raises:
            Stale: the record is another one by now; Conflict: the holder is up, or this copy is not
            in sync; Unavailable: this node has promised to wait; OutcomeUnknown.
        """
        me = self._cluster.node
        await self._memories.asked()
        fresh = await self._cluster.fresh(name)
        if fresh.record.grant == Grant(me, epoch + 1):
            return fresh.record
        self._check(fresh.record, epoch)
        async with self._custody.lock(fresh.record):
            fresh = await self._cluster.fresh(name)
            if fresh.record.grant == Grant(me, epoch + 1):
                return fresh.record
            await self._promises.settle(fresh.record, revision=fresh.revision)
            self._check(fresh.record, epoch)
            async with self._promises.taking(fresh.record, revision=fresh.revision):
                record = await self._take(fresh)
        log.warning("volume.taken-over", volume=name, epoch=epoch + 1, base=str(record.base))
        return record

    def _check(self, volume: Volume, epoch: int) -> None:
        check_takeover(
            volume,
            node=self._cluster.node,
            epoch=epoch,
            promised_seconds=self._promises.seconds_left(volume.id),
        )

    async def _take(self, fresh: Versioned[Volume]) -> Volume:
        """The caller has the lock, and confirms nothing to the former holder from now on."""
        volume, me = fresh.record, self._cluster.node
        if await self._cluster.registry.is_up(volume.grant.node):
            raise holder_is_up(volume)
        base = await self._drivers.newest(volume)
        if base is None:
            raise NotFound(f"node {me} should have a copy of volume {volume.name}, and has none")
        if lost := await self._drivers.lost(volume, base):
            raise Unavailable(
                f"node {me} may lack what it has confirmed of volume {volume.name}: {lost}",
                remedy=f"start the nodes of its other copies, or accept the loss: pannier volume recover {volume.name}",
            )
        record = volume.granted(
            me, base=base, on_top=OnTop.ALL, replicas=replicas_after_loss(volume, target=me)
        ).with_entry(
            HistoryEntry(
                at=self._clock.unix(),
                what="taken over",
                node=me,
                epoch=volume.grant.epoch + 1,
                detail=f"from {volume.grant.node}, whose lease ran out, with generation {base}",
            )
        )
        return await change_holder(self._cluster, fresh, record)


async def change_holder(cluster: Cluster, former: Versioned[Volume], record: Volume) -> Volume:
    """Give a volume its new holder, if the former one's lease is gone and the record is unchanged.

    Raises:
        Stale, StoreUnavailable: it did not happen; OutcomeUnknown: it may have, or may still.
    """
    try:
        taken = await cluster.registry.take_volume(
            record, expect=former.revision, former=former.record.grant.node
        )
    except OutcomeUnknown as error:
        try:
            found = await cluster.fresh(record.name)
        except PannierError:
            raise error from None  # which says nothing about the change
        if found.record.grant != record.grant or found.record.id != record.id:
            raise
        return found.record
    cluster.catalog.remember(taken.record, revision=taken.revision)
    return taken.record
