"""A person gives a lost holder's volume to the copy that has most of it."""

from __future__ import annotations

import asyncio
import time

import structlog

from pannier.agent.custody import Custody
from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, Stale
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.placement import replicas_after_loss
from pannier.core.recovery import Successor, choose_successor
from pannier.core.volume import Grant, HistoryEntry, Volume
from pannier.service.peers import Peers

log = structlog.get_logger(__name__)

ASK_SECONDS = 5.0


class Recovery:
    """Takes a volume over from a holder that is down. What it wrote last may be lost."""

    def __init__(self, custody: Custody, peers: Peers) -> None:
        self._custody = custody
        self._peers = peers

    async def recover(self, name: str, *, accept_loss: bool, actor: str) -> Volume:
        """Make the node with the newest copy the holder.

        Raises:
            Conflict: the holder is up, or the loss was not accepted; the message says what is there.
            Unavailable: no node that answers has a copy.
        """
        record = (await self._custody.fresh(name)).record
        up = await self._custody.registry.is_up(record.grant.node)
        copies = await self._copies(record)
        successor = choose_successor(record, holder_up=up, copies=copies)
        if not accept_loss:
            raise self._not_accepted(record, successor)
        if successor.node == self._custody.node:
            return await self.take(
                name, epoch=record.grant.epoch, generation=successor.generation, actor=actor
            )
        node = self._custody.catalog.node(successor.node)
        assert node is not None  # it answered
        try:
            await self._peers.to(node).peer_take(
                name,
                epoch=record.grant.epoch,
                generation=str(successor.generation),
                actor=actor,
            )
        except OutcomeUnknown:
            found = (await self._custody.fresh(name)).record
            if found.grant != Grant(successor.node, record.grant.epoch + 1):
                raise
            return found
        return (await self._custody.fresh(name)).record

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
        nodes = [node for node in self._custody.catalog.nodes() if node.name != record.grant.node]
        answers = await asyncio.gather(*(self._copies_on(node, record) for node in nodes))
        return {node.name: found for node, found in zip(nodes, answers, strict=True)}

    async def _copies_on(self, node: Node, record: Volume) -> list[Generation]:
        if node.name == self._custody.node:
            driver = self._custody.drivers.get(record.spec.driver)
            return list((await driver.inspect(record.id)).generations) if driver else []
        try:
            async with asyncio.timeout(ASK_SECONDS):
                view = await self._peers.to(node).peer_volume(record.name)
        except (PannierError, TimeoutError):
            return []
        if view.id != record.id:
            return []  # it remembers an earlier volume of that name
        return [Generation.parse(text) for text in view.generations or []]

    async def take(self, name: str, *, epoch: int, generation: Generation, actor: str) -> Volume:
        """Make this node the holder, beginning with ``generation``, which is here.

        The store makes the change only if the record is as it was and the former holder's lease is
        still gone, so that a holder that just came back keeps its volume.

        Raises:
            Stale: either is not so any more; Conflict: the generation is not here.
        """
        fresh = await self._custody.fresh(name)
        volume, node = fresh.record, self._custody.node
        if volume.grant == Grant(node, epoch + 1) and volume.base == generation:
            return volume  # asked twice
        if volume.grant.epoch != epoch:
            raise Stale(f"volume {name} has a new holder, {volume.grant.node}", remedy="look again")
        async with self._custody.lock(volume):
            copy = await self._custody.driver(volume).inspect(volume.id)
            if generation not in copy.generations or not volume.grew_out_of(generation):
                raise Conflict(
                    f"node {node} does not have generation {generation} of volume {name}"
                )
            record = volume.granted(
                node, base=generation, replicas=replicas_after_loss(volume, target=node)
            ).with_entry(
                HistoryEntry(
                    at=time.time(),
                    what="recovered",
                    node=node,
                    epoch=epoch + 1,
                    detail=f"from {volume.grant.node} with generation {generation}, by {actor}",
                )
            )
            await self._commit(record, fresh.revision, former=volume.grant.node)
        log.warning(
            "volume.recovered", volume=name, node=node, epoch=epoch + 1, base=str(generation)
        )
        return record

    async def _commit(self, record: Volume, revision: int, *, former: str) -> None:
        try:
            now = await self._custody.registry.take_volume(record, expect=revision, former=former)
        except OutcomeUnknown:
            found = await self._custody.fresh(record.name)
            if found.record.grant != record.grant:
                raise
            return
        self._custody.catalog.remember(record, revision=now)
