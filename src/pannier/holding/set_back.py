"""A holder whose disk was set back gives its volumes to the copies that have what it lacks.

A copy that is in sync has all that was acknowledged, and the holder has not. So the holder ends all use,
and changes the record: the copy begins the next epoch with its newest generation. What was written here
since is kept as a stray. Until a copy has answered once after a start, no container gets the volume.
"""

from __future__ import annotations

import asyncio
from math import inf

import structlog

from pannier.agent.custody import Custody
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.copies.acknowledging import Acknowledging
from pannier.copies.replicated import Replicated
from pannier.copies.replication import Replicator
from pannier.core.errors import NotHolder, PannierError, SetBack, Unavailable
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.pace import HoldingPace
from pannier.core.placement import replicas_after_move
from pannier.core.volume import HistoryEntry, Volume
from pannier.holding.finding import CopyFinder
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Abdication:
    """Watches what the copies of this node's volumes have."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        use: Use,
        replicator: Replicator,
        acknowledging: Acknowledging,
        finder: CopyFinder,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._use = use
        self._replicator = replicator
        self._acknowledging = acknowledging
        self._finder = finder
        self._clock = clock
        self._pace = pace
        self._unheard: set[tuple[str, int]] = set()
        self._tried: dict[str, tuple[float, str]] = {}
        """By volume id, when this node could not give it away the last time, and why."""

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        # What is held from now on was given by the record, and begins with what it names.
        self._unheard = {
            (volume.id, volume.grant.epoch)
            for volume in self._cluster.catalog.volumes()
            if volume.grant.node == self._cluster.node and volume.in_sync
        }
        while True:
            for replicated in self._replicator.all_replicated():
                found = self._newer(replicated)
                if found is not None:
                    await self._attempt(replicated.volume, *found)
            await asyncio.sleep(self._pace.poll)

    async def heard(self, volume: Volume) -> None:
        """Wait until each copy in sync has what this node has, or does not count any more. Once after a start.

        Raises:
            SetBack: one of them has what this node lacks; NotHolder.
            Unavailable, StorageError: one that does not answer could not leave those in sync.
        """
        key = volume.id, volume.grant.epoch
        if key not in self._unheard:
            return
        until = self._clock.now() + self._pace.answer
        try:
            replicated = self._replicator.replicated(volume.name)
        except (
            NotHolder
        ):  # it is being given away, and the record will say so: not asked without a pause
            await asyncio.sleep(self._pace.poll)
            raise
        while self._silent(replicated) and self._clock.now() < until:
            await asyncio.sleep(self._pace.poll)
        if (found := self._newer(replicated)) is not None:
            raise set_back(volume.name, *found)
        await self._acknowledging.begin(volume)
        self._unheard.discard(key)

    def _silent(self, replicated: Replicated) -> bool:
        return any(
            progress.generation is None and not progress.failures and self._cluster.catalog.is_up(n)
            for n, progress in replicated.progress.items()
            if n in replicated.volume.in_sync
        )

    def _newer(self, replicated: Replicated) -> tuple[str, Generation] | None:
        """The copy in sync that has the newest of what this node lacks, with that."""
        known = self._cluster.catalog.volume(replicated.volume.name)
        in_sync = known.in_sync if known is not None else ()
        ahead = [
            (progress.ahead, node)
            for node, progress in replicated.progress.items()
            if progress.ahead is not None and node in in_sync
        ]
        if not ahead:
            return None
        generation, node = max(ahead)
        return node, generation

    async def _attempt(self, volume: Volume, node: str, base: Generation) -> None:
        at, why = self._tried.get(volume.id, (-inf, ""))
        if self._clock.now() - at < self._pace.abdicate:
            return
        try:
            await self._abdicate(volume, node, base)
        except NotHolder:
            return  # it was given away meanwhile
        except PannierError as error:  # tried again after a while
            if error.message != why:
                log.warning("volume.not-abdicated", volume=volume.name, to=node, error=str(error))
            self._tried[volume.id] = self._clock.now(), error.message
        else:
            self._tried.pop(volume.id, None)

    async def _abdicate(self, volume: Volume, node: str, base: Generation) -> None:
        found = await self._finder.on(node, volume, within=self._pace.take_ask)
        if found is None or found.lacks:
            why = "it does not answer" if found is None else found.lacks
            raise Unavailable(
                f"node {node} has what this node lacks of volume {volume.name}, and cannot go on with it now: {why}",
                remedy=f"if the rest is lost for good: stop pannierd on {self._cluster.node}, then pannier volume recover "
                f"{volume.name}",
            )
        log.error("volume.set-back", volume=volume.name, node=node, generation=str(base))
        await self._use.end(volume)
        await self._replicator.pause(volume)
        async with self._custody.lock(volume):
            fresh = await self._cluster.fresh(volume.name)
            record = fresh.record
            if (record.id, record.grant) != (volume.id, volume.grant) or node not in record.in_sync:
                return
            await self._use.end(volume)
            await self._custody.take_down(volume)
            record = record.granted(
                node,
                base=base,
                on_top=OnTop.ALL,
                replicas=replicas_after_move(record, target=node),
            ).with_entry(
                HistoryEntry(
                    at=self._clock.unix(),
                    what="taken over",
                    node=node,
                    epoch=record.grant.epoch + 1,
                    detail=f"from {self._cluster.node}, whose disk was set back, with generation {base}",
                )
            )
            await self._cluster.replace(record, expect=fresh.revision)


def set_back(name: str, node: str, newest: Generation) -> SetBack:
    """The error for a volume whose copy in sync has what its holder lacks."""
    return SetBack(
        f"volume {name}: node {node} has generation {newest}, which this node has sent and lacks now: its disk "
        f"was set back",
        remedy=f"node {node} takes the volume over by itself",
    )
