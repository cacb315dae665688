"""What this node's own copies lack of what it has confirmed, and how that ends.

A disk that was set back between two records lacks the later ones, and nothing on it shows that. The holder knows what it was told.
So after a start, each copy is held against that once, as soon as its holder answers. It is not waited for: a copy whose holder is gone
for good could never take over.

A copy that lacks something takes nothing over, which is remembered on its disk. Its holder is told, and counts it no more. When it counts
again, it has a generation that was made after that.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peer, Peers
from pannier.contract.views import CopyView
from pannier.contract.volumes import LiveVolumeView
from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace
from pannier.core.seldom import Seldom
from pannier.core.set_back import lacks_confirmed
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.storage.lines import LineDriver, line_driver

log = structlog.get_logger(__name__)

_Held = tuple[str, int]
"""A volume's id and its holder's epoch."""


class OwnCopies:
    """Looks after the copies that this node has of other nodes' volumes."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        peers: Peers,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers
        self._clock = clock
        self._pace = pace
        self._said = Seldom()
        self._compared: set[str] = set()
        """Ids of volumes, since the start: while it runs, no disk is set back."""
        self._told: set[_Held] = set()
        """Those of which the holder has heard that they lack something."""

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        while True:
            for volume in self._cluster.catalog.volumes():
                if self._cluster.node in volume.replicas:
                    try:
                        await self._look(volume)
                    except (PannierError, TimeoutError) as error:  # at the next look again
                        self._say(volume, str(error) or "no answer in time")
            await asyncio.sleep(self._pace.own_copies)

    def _say(self, volume: Volume, why: str) -> None:
        """Log what may happen at each look; not each time."""
        now, every = self._clock.now(), self._pace.say
        if (more := self._said.due(volume.id, now=now, every=every)) is not None:
            log.info("copy.not-compared", volume=volume.name, error=why, left_out=more)

    async def _look(self, volume: Volume) -> None:
        held, holder = (volume.id, volume.grant.epoch), volume.grant.node
        driver = self._drivers.get(volume.spec.driver)
        lines = line_driver(driver) if driver is not None else None
        node = self._cluster.catalog.node(holder)
        if lines is None or node is None or not self._cluster.catalog.is_up(holder):
            return
        peer = self._peers.to(node)
        if volume.id not in self._compared:
            if not await self._compare(volume, lines, peer):
                return
            self._compared.add(volume.id)
        if volume.id in (await lines.journal()).damaged:
            await self._have_mended(volume, lines, peer)
        else:
            self._told.discard(held)

    async def _confirmed(self, volume: Volume, peer: Peer) -> CopyView | None:
        """What the holder has heard of this copy since it began; None where that is not the holder any more."""
        async with asyncio.timeout(self._pace.patience):
            view = await peer.peer_volume(volume.name)
        if not isinstance(view, LiveVolumeView) or view.epoch != volume.grant.epoch:
            return None
        mine = (copy for copy in view.copies if copy.node == self._cluster.node)
        return next(mine, CopyView(node=self._cluster.node))

    async def _compare(self, volume: Volume, driver: LineDriver, peer: Peer) -> bool:
        """Returns whether the holder said what it has heard. One that has just begun has heard nothing, and gives the volume to
        nobody before each copy in sync has a new generation."""
        confirmed = await self._confirmed(volume, peer)
        if confirmed is None:
            return False
        # After the answer: what is here by now may be more, and never less.
        copy = await driver.inspect(volume.id)
        if lacks_confirmed(
            copy.generations,
            copy.last,
            generation=Generation.parse(confirmed.generation) if confirmed.generation else None,
            record=_record_of(confirmed),
        ):
            log.error("volume.copy-set-back", volume=volume.name, confirmed=confirmed.generation)
            await driver.lack(volume.id)
        return True

    async def _have_mended(self, volume: Volume, driver: LineDriver, peer: Peer) -> None:
        held, me = (volume.id, volume.grant.epoch), self._cluster.node
        if held not in self._told:
            confirmed = await self._confirmed(volume, peer)
            if confirmed is None or confirmed.generation is None:
                # This copy may have what the holder lacks, whose disk was set back: then it must go on counting.
                return
            await peer.peer_lost_copy(volume.name, epoch=volume.grant.epoch)
            self._told.add(held)
        record = (await self._cluster.fresh(volume.name)).record
        # It has left since the holder was told: so whoever is in sync now has joined after that.
        if (record.id, record.grant) == (volume.id, volume.grant) and me in record.in_sync:
            await driver.mend_records(volume.id)
            log.info("volume.copy-mended", volume=volume.name)


def _record_of(copy: CopyView) -> tuple[str, Generation, int] | None:
    if copy.record is None:
        return None
    return copy.record.run, Generation.parse(copy.record.generation), copy.record.number
