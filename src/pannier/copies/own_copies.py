"""What this node's own copies lack of what it has confirmed, and how that ends.

A disk that was set back between two records lacks the later ones, and nothing on it shows that. The holder knows what it was told.
So after a start, each copy is held against that once, as soon as its holder answers. It is not waited for: a copy whose holder is gone
for good could never take over. Each holder is asked about one volume after the other, and one that does not answer delays no other.

A copy that lacks something takes nothing over, which is remembered on its disk. Its holder is told, and counts it no more. When it counts
again, it has a generation that was made after that.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peer, Peers
from pannier.contract.views import CopyView
from pannier.contract.volumes import LiveVolumeView
from pannier.core.errors import PannierError, PeerUnavailable
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


@dataclass(frozen=True, slots=True)
class _Due:
    """A copy about which its holder is to be asked."""

    volume: Volume
    driver: LineDriver
    lacks: bool


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
        asked: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for holder in [holder for holder, task in asked.items() if task.done()]:
                    asked.pop(holder).result()
                for holder, due in sorted((await self._due()).items()):
                    if holder not in asked and self._cluster.catalog.is_up(holder):
                        ask = self._ask(holder, due)
                        asked[holder] = asyncio.create_task(ask, name=f"own copies of {holder}")
                await asyncio.sleep(self._pace.own_copies)
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    async def _due(self) -> dict[str, list[_Due]]:
        """By holder, the copies that were not compared since the start, or lack something."""
        volumes, lacking = self._cluster.catalog.volumes(), set[str]()
        drivers: dict[str, LineDriver] = {}
        for driver in self._drivers:
            if (lines := line_driver(driver)) is not None:
                drivers[driver.name] = lines
                lacking |= (await lines.journal()).damaged.keys()
        self._told = {held for held in self._told if held[0] in lacking}
        self._compared &= {volume.id for volume in volumes}
        found = defaultdict[str, list[_Due]](list)
        for volume in volumes:
            if (
                self._cluster.node in volume.replicas
                and volume.spec.driver in drivers
                and (volume.id not in self._compared or volume.id in lacking)
            ):
                driver, lacks = drivers[volume.spec.driver], volume.id in lacking
                found[volume.grant.node].append(_Due(volume, driver, lacks))
        return found

    async def _ask(self, holder: str, all_due: list[_Due]) -> None:
        for due in all_due:
            node = self._cluster.catalog.node(holder)
            if node is None:
                return
            try:
                await self._look(due, self._peers.to(node))
            except (PannierError, TimeoutError) as error:  # at the next look again
                self._say(due.volume, str(error) or "no answer in time")
                if isinstance(error, PeerUnavailable | TimeoutError):
                    return  # it would not answer for the next volume either

    def _say(self, volume: Volume, why: str) -> None:
        """Log what may happen at each look; not each time."""
        now, every = self._clock.now(), self._pace.say
        if (more := self._said.due(volume.id, now=now, every=every)) is not None:
            log.info("copy.not-compared", volume=volume.name, error=why, left_out=more)

    async def _look(self, due: _Due, peer: Peer) -> None:
        lacks = due.lacks
        if due.volume.id not in self._compared:
            confirmed = await self._confirmed(due.volume, peer)
            if confirmed is None:
                return
            lacks |= await self._compare(due.volume, due.driver, confirmed)
            self._compared.add(due.volume.id)
        if lacks:
            await self._have_mended(due.volume, due.driver, peer)

    async def _confirmed(self, volume: Volume, peer: Peer) -> CopyView | None:
        """What the holder has heard of this copy since it began; None where that is not the holder any more, or is not
        replicating the volume just now."""
        async with asyncio.timeout(self._pace.patience):
            view = await peer.peer_volume(volume.name)
        if not isinstance(view, LiveVolumeView) or view.epoch != volume.grant.epoch:
            return None
        mine = (copy for copy in view.copies if copy.node == self._cluster.node)
        return next(mine, None)

    async def _compare(self, volume: Volume, driver: LineDriver, confirmed: CopyView) -> bool:
        """Returns whether the copy lacks what its holder has heard. One that has just begun has heard nothing, and gives the
        volume to nobody before each copy in sync has a new generation."""
        # After the answer: what is here by now may be more, and never less.
        copy = await driver.inspect(volume.id)
        lacks = lacks_confirmed(
            [each for each in copy.generations if volume.grew_out_of(each)],
            copy.last,
            generation=Generation.parse(confirmed.generation) if confirmed.generation else None,
            record=_record_of(confirmed),
        )
        if lacks:
            if not await driver.missing(volume.id):  # memory knows it where the disk refuses
                log.error(
                    "volume.copy-set-back", volume=volume.name, confirmed=confirmed.generation
                )
            await driver.lack(volume.id)
        return lacks

    async def _have_mended(self, volume: Volume, driver: LineDriver, peer: Peer) -> None:
        held, me = (volume.id, volume.grant.epoch), self._cluster.node
        if held not in self._told:
            if not await driver.missing(volume.id):
                return  # it was mended since it was looked at
            confirmed = await self._confirmed(volume, peer)
            if confirmed is None or confirmed.generation is None:
                # This copy may have what the holder lacks, whose disk was set back: then it must go on counting.
                return
            await peer.peer_lost_copy(volume.name, epoch=volume.grant.epoch)
            self._told.add(held)
        if me not in volume.in_sync:
            return
        record = (await self._cluster.fresh(volume.name)).record
        # It has left since the holder was told: so whoever is in sync now has joined after that.
        if (record.id, record.grant) == (volume.id, volume.grant) and me in record.in_sync:
            await driver.mend_records(volume.id)
            self._told.discard(held)  # what it lacks from now on, the holder has not heard
            log.info("volume.copy-mended", volume=volume.name)


def _record_of(copy: CopyView) -> tuple[str, Generation, int] | None:
    if copy.record is None:
        return None
    return copy.record.run, Generation.parse(copy.record.generation), copy.record.number
