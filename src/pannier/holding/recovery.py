"""A person gives a lost holder's volume to the copy that has most of it."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core.errors import Conflict, OutcomeUnknown, PeerUnavailable, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.pace import HoldingPace
from pannier.core.placement import replicas_after_loss
from pannier.core.recovery import (
    FoundCopy,
    Successor,
    check_not_promised,
    choose_successor,
    holder_is_up,
)
from pannier.core.volume import Grant, HistoryEntry, Volume
from pannier.holding.finding import CopyFinder
from pannier.holding.putting_back import PuttingBack
from pannier.holding.takeover import Takeover, change_holder
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Recovery:
    """Takes a volume over from a holder that is down. What it wrote last may be lost."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        finder: CopyFinder,
        peers: Peers,
        promises: Promises,
        takeover: Takeover,
        putting_back: PuttingBack,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._finder = finder
        self._peers = peers
        self._promises = promises
        self._takeover = takeover
        self._putting_back = putting_back
        self._clock = clock
        self._pace = pace

    async def recover(self, name: str, *, accept_loss: bool, actor: str) -> Volume:
        """Make the node with the newest copy the holder; without any loss where one is in sync.

        Where the store was restored from an older backup, the record that the nodes remember is put back instead.
        A holder that is up, and cannot begin since something of what it took over is lost, is told to begin without it.

        Raises:
            Conflict: the holder is up and needs no word, or the loss was not accepted; the message says what is there.
            Unavailable: no node that answers has a copy.
        """
        put_back = await self._putting_back.by_hand(name, accept_loss=accept_loss, actor=actor)
        if put_back is not None:
            return put_back
        record = (await self._cluster.fresh(name)).record
        up = await self._cluster.registry.is_up(record.grant.node)
        if up and accept_loss and record.base is not None:
            return await self._have_taken(
                record, Successor(record.grant.node, FoundCopy(generation=record.base)), actor=actor
            )
        if not up and record.in_sync and not accept_loss:
            try:
                return await self._takeover.arrange(record)
            except Unavailable as error:
                log.info("recovery.not-in-sync", volume=name, error=str(error))
        names = [
            node.name for node in self._cluster.catalog.nodes() if node.name != record.grant.node
        ]
        asked = (self._finder.on(name, record, within=self._pace.recover_ask) for name in names)
        copies = dict(zip(names, await asyncio.gather(*asked), strict=True))
        successor = choose_successor(record, holder_up=up, copies=copies)
        if not accept_loss:
            raise self._not_accepted(record, successor)
        return await self._have_taken(record, successor, actor=actor)

    async def _have_taken(self, record: Volume, successor: Successor, *, actor: str) -> Volume:
        """Let a node :meth:`take` the volume."""
        name = record.name
        if successor.node == self._cluster.node:
            return await self.take(
                name, epoch=record.grant.epoch, generation=successor.copy.generation, actor=actor
            )
        node = self._cluster.catalog.node(successor.node)
        if node is None:  # as right after a start without the store
            raise PeerUnavailable(
                f"node {self._cluster.node} does not know yet where node {successor.node} is",
                remedy="try again, or ask another node",
            )
        try:
            await self._peers.to(node).peer_take(
                name,
                epoch=record.grant.epoch,
                generation=str(successor.copy.generation),
                actor=actor,
            )
        except OutcomeUnknown:
            found = (await self._cluster.fresh(name)).record
            if found.grant != Grant(successor.node, record.grant.epoch + 1):
                raise
            return found
        return (await self._cluster.fresh(name)).record

    def _not_accepted(self, record: Volume, successor: Successor) -> Conflict:
        holder, copy = record.grant.node, successor.copy
        lacks = f". It may lack what it has confirmed, too: {copy.lacks}" if copy.lacks else ""
        return Conflict(
            f"node {holder}, which holds volume {record.name}, is down. The newest copy that can be "
            f"reached is generation {copy.generation} on node {successor.node}; what {holder} "
            f"wrote after it would not be in the volume{lacks}",
            remedy=f"start {holder} again; or, if it is switched off and shall stay so: pannier "
            f"volume recover {record.name} --accept-loss",
        )

    async def take(self, name: str, *, epoch: int, generation: Generation, actor: str) -> Volume:
        """Make this node the holder, beginning with ``generation``, the newest one that is here, and what can be put on top of it.

        If it is the holder at ``epoch``, and cannot begin since something of that is lost, it begins without it. Otherwise the store makes the change only if the record is as it was and the former holder's lease is
        still gone, so that a holder that just came back keeps its volume.

        Raises:
            Stale: the record has changed, or the former holder is back; Conflict: the newest generation
            here is another one, or this node holds it and lacks nothing; Unavailable: this node has promised the holder to wait;
            OutcomeUnknown.
        """
        fresh = await self._cluster.fresh(name)
        volume, node = fresh.record, self._cluster.node
        if volume.grant == Grant(node, epoch + 1) and volume.base == generation:
            return volume  # asked twice
        if volume.grant == Grant(node, epoch):
            return await self._begin_without(volume, actor=actor)
        if volume.grant.epoch != epoch:
            raise Stale(f"volume {name} has a new holder, {volume.grant.node}", remedy="look again")
        async with self._custody.lock(volume):
            await self._promises.settle(volume, revision=fresh.revision)
            check_not_promised(
                volume, node=node, promised_seconds=self._promises.seconds_left(volume.id)
            )
            async with self._promises.taking(volume, revision=fresh.revision):
                await self._check_newest(volume, generation)
                lost = await self._drivers.lost(volume, generation)
                record = volume.granted(
                    node,
                    base=generation,
                    on_top=OnTop.WHAT_IS_HERE,
                    replicas=replicas_after_loss(volume, target=node),
                ).with_entry(
                    HistoryEntry(
                        at=self._clock.unix(),
                        what="recovered",
                        node=node,
                        epoch=epoch + 1,
                        detail=f"from {volume.grant.node} with generation {generation}, by {actor}"
                        + (f"; what it had confirmed is lost: {lost}" if lost else ""),
                    )
                )
                record = await change_holder(self._cluster, fresh, record)
        log.warning(
            "volume.recovered",
            volume=name,
            node=node,
            epoch=epoch + 1,
            base=str(generation),
            lost=lost,
        )
        return record

    async def _begin_without(self, volume: Volume, *, actor: str) -> Volume:
        """This node holds the volume, and a person accepts that its epoch begins without what is lost here."""
        async with self._custody.lock(volume):
            fresh = await self._cluster.fresh(volume.name)
            record, base = fresh.record, fresh.record.base
            if (record.id, record.grant) != (volume.id, volume.grant):
                raise Stale(f"the record of volume {volume.name} has changed", remedy="look again")
            copy = await self._drivers.of(record).inspect(record.id)
            begun = any(tree.epoch == record.grant.epoch for tree in copy.live)
            lost = "" if begun or base is None else await self._drivers.lost(record, base)
            if not lost or record.on_top is OnTop.NOTHING:
                raise holder_is_up(record)
            if record.on_top is OnTop.WHAT_IS_HERE:
                return record  # asked twice
            record = record.accepting_loss().with_entry(
                HistoryEntry(
                    at=self._clock.unix(),
                    what="recovered",
                    node=self._cluster.node,
                    epoch=record.grant.epoch,
                    detail=f"by {actor}; what it had confirmed is lost: {lost}",
                )
            )
            await self._cluster.replace(record, expect=fresh.revision)
        log.warning("volume.begins-without", volume=record.name, lost=lost)
        return record

    async def _check_newest(self, volume: Volume, generation: Generation) -> None:
        """Refuse if a newer generation has come in since: it may have what the holder acknowledged."""
        newest = await self._drivers.newest(volume)
        if newest != generation:
            raise Conflict(
                f"the newest generation of volume {volume.name} on node {self._cluster.node} is "
                f"{newest or 'none'}, not {generation}",
                remedy="look again",
            )
