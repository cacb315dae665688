"""Snapshots on every copy: which are on a node, and which of them a copy lacks.

A snapshot is a generation, and is sent as one. A copy that lacks some, since it was made anew or joined later, gets them
besides the newest, the oldest first. A copy tidies by what it remembers of the record. So it is asked whether it has a
snapshot only in a way that makes it read the record first: what it has said once, it keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.copies.replicated import ReplicaProgress, Replicated
from pannier.core.errors import PannierError, PeerUnavailable, Unavailable
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class NamedGenerations:
    """Knows which snapshots are where."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        peers: Peers,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._peers = peers
        self._clock = clock
        self._pace = pace

    async def here(self, name: str) -> frozenset[Generation]:
        """The snapshots of a volume that are on this node, and stay until the record names them no more.

        The record is read first, and what tidies by an older one is waited for.

        Raises:
            VolumeNotFound; StoreUnavailable; NotHolder: this node has no driver for it; StorageError.
        """
        record = (await self._cluster.fresh(name)).record
        await self._cluster.catalog.save()
        async with self._custody.lock(record):
            copy = await self._drivers.of(record).inspect(record.id)
        return record.named & frozenset(copy.generations)

    async def on(self, node: str, name: str) -> frozenset[Generation]:
        """The same of any node.

        Raises:
            PeerUnavailable: it does not answer in time, or left the cluster; and what it raises.
        """
        if node == self._cluster.node:
            return await self.here(name)
        record = self._cluster.catalog.node(node)
        if record is None:
            raise PeerUnavailable(f"node {node} is not in this cluster any more")
        try:
            async with asyncio.timeout(self._pace.patience):
                found = await self._peers.to(record).peer_snapshots(name)
        except TimeoutError as error:
            raise PeerUnavailable(
                f"node {node} did not say in {self._pace.patience:.0f} s which snapshots it has",
                remedy="ask again",
            ) from error
        return frozenset(map(Generation.parse, found))

    # -- copies of volumes that are held here ---------------------------------------------------------

    async def keep_known(self, replicated: Replicated) -> None:
        """Find out again and again what the copies of a volume lack, for ever: run as a task."""
        next_at = self._clock.now()
        while True:
            await asyncio.sleep(max(next_at - self._clock.now(), 0.0))
            next_at = self._clock.now() + self._pace.snapshots_pause
            replicated.unknown.clear()
            for node in tuple(replicated.progress):
                try:
                    await self._look(replicated, node)
                except (PannierError, OSError) as error:
                    log.info(
                        "snapshots.not-known",
                        volume=replicated.volume.name,
                        node=node,
                        error=str(error),
                    )
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.snapshots):
                    await replicated.unknown.wait()

    async def _look(self, replicated: Replicated, node: str) -> None:
        volume, progress = self._now(replicated.volume), replicated.progress[node]
        if not volume.snapshots:
            progress.lacks, progress.snapshots = (), frozenset()
            return
        now = self._clock.now()
        if volume.named <= progress.snapshots and self._is_known(progress, now):
            return
        if not self._cluster.catalog.is_up(node):
            return
        theirs = await self.on(node, volume.name)
        ours = frozenset((await self._drivers.of(volume).inspect(volume.id)).generations)
        async with replicated.written:
            progress.snapshots, progress.asked_at = theirs, now
            progress.lacks = tuple(sorted((volume.named & ours) - theirs))
            replicated.written.notify_all()

    def _is_known(self, progress: ReplicaProgress, now: float) -> bool:
        asked = progress.asked_at
        return asked is not None and now - asked < self._pace.snapshots_again

    def _now(self, volume: Volume) -> Volume:
        known = self._cluster.catalog.volume(volume.name)
        return known if known is not None and known.id == volume.id else volume

    async def send_next(
        self,
        replicated: Replicated,
        node: str,
        *,
        send: Callable[[Replicated, Generation, str], Awaitable[None]],
    ) -> None:
        """Send the oldest snapshot that a copy lacks. If that fails, it is tried again after the next look."""
        progress = replicated.progress[node]
        generation, *rest = progress.lacks
        progress.lacks = tuple(rest)
        try:
            await send(replicated, generation, node)
        except PannierError as error:
            progress.lacks = ()
            log.info(
                "snapshot.not-sent",
                volume=replicated.volume.name,
                node=node,
                generation=str(generation),
                error=str(error),
            )
        else:
            if not progress.lacks:
                replicated.unknown.set()

    async def bring(
        self, record: Volume, node: str, *, send: Callable[[Generation], Awaitable[object]]
    ) -> None:
        """Send ``node`` all snapshots of a volume that are here and not there, the oldest first.

        Raises:
            Unavailable: it has not kept one of them; and what ``send`` and :meth:`on` raise.
        """
        if not record.snapshots:
            return
        ours = frozenset((await self._drivers.of(record).inspect(record.id)).generations)
        lacking = (record.named & ours) - await self.on(node, record.name)
        for generation in sorted(lacking):
            await send(generation)
        if lacking and (left := lacking - await self.on(node, record.name)):
            raise Unavailable(
                f"node {node} has not kept {len(left)} snapshots of volume {record.name}",
                remedy="ask again",
            )


class FormerSnapshots:
    """Has this node give up generations that are snapshots no more.

    What is missed, since the daemon or the store was not there, goes with what is tidied next.
    """

    def __init__(self, *, cluster: Cluster, tidy: Callable[[Volume], Awaitable[None]]) -> None:
        self._cluster = cluster
        self._tidy = tidy
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def hear(self, change: Changed) -> None:
        """A listener for the catalog."""
        before, after = change.before, change.after
        if (
            change.kind == "volumes"
            and isinstance(before, Volume)
            and isinstance(after, Volume)
            and before.id == after.id
            and before.named - after.named
        ):
            self._due.put_nowait(after.name)

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            volume = self._cluster.catalog.volume(await self._due.get())
            if volume is None:
                continue
            try:
                await self._tidy(volume)
            except PannierError as error:
                log.info("volume.not-tidied", volume=volume.name, error=str(error))
