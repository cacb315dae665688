"""Finding copies that are not what was written, and having them made anew.

A disk may give back other bytes than it was given. In a copy that nobody reads, this goes unnoticed
until it is the only copy. So each node reads its copies to the last byte now and then, and when a
person asks. A damaged copy is put into quarantine, and the holder is told that this node has nothing
any more. The holder lets it leave those in sync and sends everything anew. The quarantine is emptied
after that.

After a crash between these steps, or if somebody else removed the copy, the record names a node as in
sync that has nothing. So each node looks for this, too, and tells the holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.peers import Peers
from pannier.contract.views import CheckView
from pannier.contract.words import CheckState
from pannier.copies.acknowledging import Acknowledging
from pannier.core.errors import Corrupt, PannierError
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace
from pannier.core.record import Record
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.storage.base import CheckedDriver

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Record):
    """The file of :class:`Verification`: by volume id, the Unix time of the last verification."""

    at: dict[str, float] = field(default_factory=dict)


class Verification:
    """Verifies this node's copies."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        peers: Peers,
        acknowledging: Acknowledging,
        file: StateFile,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._peers = peers
        self._acknowledging = acknowledging
        self._file = file
        self._clock = clock
        self._pace = pace
        self._saved = Verified()
        self._unfinished: set[str] = set()
        self._reading = asyncio.Lock()
        self._saving = asyncio.Lock()
        try:
            remedy = "all copies count as verified just now"
            self._saved = read_file(file, Verified, remedy=remedy) or Verified()
        except PannierError as error:
            log.warning("copy.verification-not-known", error=str(error))
        self._at = dict(self._saved.at)

    async def run(self) -> None:
        """For ever: run as a task."""
        self._unfinished |= {volume.name for volume in self._mine()}  # of an earlier run
        while True:
            for _ in range(round(self._pace.verify_turn / self._pace.verify_finish)):
                await asyncio.sleep(self._pace.verify_finish)
                for name in tuple(self._unfinished):
                    await self._attempt(self._finish, name)
            for volume in self._mine():
                now = self._clock.unix()
                self._at[volume.id] = min(self._at.get(volume.id, now), now)
                if now - self._at[volume.id] > self._pace.verify_every:
                    await self._attempt(self.here, volume.name)
            await self._save()

    async def _attempt(self, work: Callable[[str], Awaitable[object]], name: str) -> None:
        try:
            await work(name)
        except PannierError as error:  # tried again at the next turn
            log.warning("copy.not-verified", volume=name, error=str(error))

    def _mine(self) -> list[Volume]:
        return [volume for volume in self._cluster.catalog.volumes() if self._is_here(volume)]

    def _is_here(self, volume: Volume) -> bool:
        if self._cluster.node not in (volume.grant.node, *volume.replicas):
            return False
        return isinstance(self._drivers.get(volume.spec.driver), CheckedDriver)

    async def here(self, name: str) -> CheckView:
        """Read this node's copy of a volume, and have it made anew where it is damaged.

        Raises:
            VolumeNotFound, StorageError, Unavailable.
        """
        volume, me = self._volume(name), self._cluster.node
        newest = await self._drivers.newest(volume) if self._is_here(volume) else None
        live = self._is_here(volume) and await self._is_live(volume)
        if newest is None and not live:
            self._unfinished.add(name)
            return CheckView(node=me, state=CheckState.NOTHING)
        found = None if live else newest
        try:
            async with self._reading:  # one at a time: the disk has others to serve
                await self._driver(volume).verify(volume.id, found)
        except Corrupt as error:
            log.error(
                "copy.damaged", volume=name, generation=str(found or "live"), error=str(error)
            )
            return await self._damaged(volume, found, error)
        self._at[volume.id] = self._clock.unix()
        await self._save()
        return CheckView(node=me, state=CheckState.WHOLE, generation=str(found) if found else None)

    async def _is_live(self, volume: Volume) -> bool:
        """Whether this node holds the volume and has its live tree: then that is verified."""
        copy = await self._driver(volume).inspect(volume.id)
        return volume.grant.node == self._cluster.node and any(
            tree.epoch == volume.grant.epoch for tree in copy.live
        )

    async def _damaged(self, volume: Volume, found: Generation | None, error: Corrupt) -> CheckView:
        me = self._cluster.node
        async with self._custody.lock(volume):  # so that it is not taken over meanwhile
            volume = (await self._cluster.fresh(volume.name)).record
            is_holder = volume.grant.node == me
            if not is_holder:
                await self._driver(volume).quarantine(volume.id)
        if not is_holder:
            self._unfinished.add(volume.name)
            await self._attempt(self._finish, volume.name)
            state, remedy = CheckState.MADE_ANEW, error.remedy
        else:
            state, remedy = CheckState.DAMAGED, "it is the only copy; see `dmesg` on that node"
            if volume.in_sync:
                remedy = f"pannier volume move {volume.name} {volume.in_sync[0]}"
        return CheckView(
            node=me,
            state=state,
            generation=str(found) if found else None,
            error=error.message,
            remedy=remedy or "",
        )

    async def _finish(self, name: str) -> None:
        """Tell the holder if nothing is here; empty the quarantine once the copy is in sync again."""
        volume, me = self._cluster.catalog.volume(name), self._cluster.node
        if volume is None or not self._is_here(volume) or volume.grant.node == me:
            self._unfinished.discard(name)
        elif await self._drivers.newest(volume) is None:
            node = self._cluster.catalog.node(volume.grant.node)
            if node is not None and me in volume.in_sync:
                await self._peers.to(node).peer_lost_copy(name, epoch=volume.grant.epoch)
        elif me in volume.in_sync:
            await self._driver(volume).drop_quarantined(volume.id)
            self._unfinished.discard(name)

    async def everywhere(self, name: str) -> list[CheckView]:
        """Have every copy of a volume read, at the same time; the holder's first."""
        volume = self._volume(name)
        names = (volume.grant.node, *volume.replicas)
        return list(await asyncio.gather(*(self._on(node, volume) for node in names)))

    async def _on(self, name: str, volume: Volume) -> CheckView:
        if name == self._cluster.node:
            return await self.here(volume.name)
        node = self._cluster.catalog.node(name)
        try:
            if node is None or not self._cluster.catalog.is_up(name):
                return CheckView(node=name, state=CheckState.UNKNOWN, error=f"node {name} is down")
            return await self._peers.to(node).peer_verify(volume.name)
        except PannierError as error:
            return CheckView(
                node=name, state=CheckState.UNKNOWN, error=error.message, remedy=error.remedy or ""
            )

    async def lost(self, name: str, *, epoch: int, peer: str) -> None:
        """``peer`` has lost its copy of a volume that is held here: send it everything.

        Raises:
            NotHolder, Stale: not held here, or not at ``epoch``; Unavailable, OutcomeUnknown: ask again.
        """
        await self._acknowledging.lost(name, epoch=epoch, node=peer)

    def _volume(self, name: str) -> Volume:
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return volume

    def _driver(self, volume: Volume) -> CheckedDriver:
        driver = self._drivers.of(volume)
        assert isinstance(driver, CheckedDriver)
        return driver

    async def _save(self) -> None:
        """Save the times. If that fails, a copy may be read again sooner than necessary."""
        async with self._saving:
            known = {v.id for v in self._mine()}
            self._at = {volume_id: at for volume_id, at in self._at.items() if volume_id in known}
            if self._at == self._saved.at:
                return
            saved = replace(self._saved, at=dict(self._at))
            try:
                await asyncio.to_thread(self._file.write, encode(saved))
            except OSError as error:
                log.warning("copy.verification-not-noted", error=str(error))
            else:
                self._saved = saved
