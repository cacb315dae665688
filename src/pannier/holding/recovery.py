"""A person gives a lost holder's volume to the copy that has most of it."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.pace import HoldingPace
from pannier.core.placement import replicas_after_loss
from pannier.core.recovery import Successor, check_not_promised, choose_successor
from pannier.core.volume import Grant, HistoryEntry, Volume
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
        peers: Peers,
        promises: Promises,
        takeover: Takeover,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._peers = peers
        self._promises = promises
        self._takeover = takeover
        self._clock = clock
        self._pace = pace

    async def recover(self, name: str, *, accept_loss: bool, actor: str) -> Volume:
        """Make the node with the newest copy the holder; without any loss where one is in sync.

        Raises:
            Conflict: the holder is up, or the loss was not accepted; the message says what is there.
            Unavailable: no node that answers has a copy.
        """
        record = (await self._cluster.fresh(name)).record
        up = await self._cluster.registry.is_up(record.grant.node)
        if not up and record.in_sync and not accept_loss:
            try:
                return await self._takeover.arrange(record)
            except Unavailable as error:
                log.info("recovery.not-in-sync", volume=name, error=str(error))
        copies = await self._copies(record)
        successor = choose_successor(record, holder_up=up, copies=copies)
        if not accept_loss:
            raise self._not_accepted(record, successor)
        if successor.node == self._cluster.node:
            return await self.take(
                name, epoch=record.grant.epoch, generation=successor.generation, actor=actor
            )
        node = self._cluster.catalog.node(successor.node)
        assert node is not None  # it answered
        try:
            await self._peers.to(node).peer_take(
                name,
                epoch=record.grant.epoch,
                generation=str(successor.generation),
                actor=actor,
            )
        except OutcomeUnknown:
            found = (await self._cluster.fresh(name)).record
            if found.grant != Grant(successor.node, record.grant.epoch + 1):
                raise
            return found
        return (await self._cluster.fresh(name)).record

    def _not_accepted(self, record: Volume, successor: Successor) -> Conflict:
        holder = record.grant.node
        return Conflict(
            f"node {holder}, which holds volume {record.name}, is down. The newest copy that can be "
            f"reached is generation {successor.generation} on node {successor.node}; what {holder} "
            f"wrote after it would not be in the volume",
            remedy=f"start {holder} again; or, if it is switched off and shall stay so: pannier "
            f"volume recover {record.name} --accept-loss",
        )

    async def _copies(self, record: Volume) -> dict[str, list[Generation]]:
        nodes = [node for node in self._cluster.catalog.nodes() if node.name != record.grant.node]
        answers = await asyncio.gather(*(self._copies_on(node, record) for node in nodes))
        return {node.name: found for node, found in zip(nodes, answers, strict=True)}

    async def _copies_on(self, node: Node, record: Volume) -> list[Generation]:
        if node.name == self._cluster.node:
            driver = self._drivers.get(record.spec.driver)
            return list((await driver.inspect(record.id)).generations) if driver else []
        try:
            async with asyncio.timeout(self._pace.recover_ask):
                view = await self._peers.to(node).peer_volume(record.name)
        except (PannierError, TimeoutError):
            return []
        if view.id != record.id:
            return []  # it remembers an earlier volume of that name
        return [Generation.parse(text) for text in view.generations or []]

    async def take(self, name: str, *, epoch: int, generation: Generation, actor: str) -> Volume:
        """Make this node the holder, beginning with ``generation``, the newest one that is here.

        The store makes the change only if the record is as it was and the former holder's lease is
        still gone, so that a holder that just came back keeps its volume.

        Raises:
            Stale: the record has changed, or the former holder is back; Conflict: the newest generation
            here is another one; Unavailable: this node has promised the holder to wait;
            OutcomeUnknown.
        """
        fresh = await self._cluster.fresh(name)
        volume, node = fresh.record, self._cluster.node
        if volume.grant == Grant(node, epoch + 1) and volume.base == generation:
            return volume  # asked twice
        if volume.grant.epoch != epoch:
            raise Stale(f"volume {name} has a new holder, {volume.grant.node}", remedy="look again")
        async with self._custody.lock(volume):
            await self._promises.settle(volume, revision=fresh.revision)
            check_not_promised(
                volume, node=node, promised_seconds=self._promises.seconds_left(volume.id)
            )
            async with self._promises.taking(volume, revision=fresh.revision):
                await self._check_newest(volume, generation)
                record = volume.granted(
                    node, base=generation, replicas=replicas_after_loss(volume, target=node)
                ).with_entry(
                    HistoryEntry(
                        at=self._clock.unix(),
                        what="recovered",
                        node=node,
                        epoch=epoch + 1,
                        detail=f"from {volume.grant.node} with generation {generation}, by {actor}",
                    )
                )
                record = await change_holder(self._cluster, fresh, record)
        log.warning(
            "volume.recovered", volume=name, node=node, epoch=epoch + 1, base=str(generation)
        )
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
