"""Copies that this node can neither tidy up nor read: they are made anew, and what is here is kept for a person.

A quarantine ends by itself when its cause goes away (:mod:`pannier.storage.quarantine`). A copy whose quarantine lasts is
of no use meanwhile: it takes nothing in and takes nothing over. So it leaves those in sync first. Only when the holder
has said that it is there, and that it will send everything, what is here is set apart. Nothing is deleted: a
former holder's stray may be among it, which nobody else has.

It may be cut off at any point and repeated. The line in the volume's history comes before the move, so that there is
never one without the other.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core import damage
from pannier.core.errors import PannierError, StorageError
from pannier.core.pace import CopiesPace
from pannier.core.seldom import Seldom
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.storage.base import Driver

log = structlog.get_logger(__name__)


class QuarantinedCopies:
    """Looks after this node's copies that are quarantined."""

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
        """Prepare; :meth:`run` works."""
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._peers = peers
        self._clock = clock
        self._pace = pace
        self._since: dict[str, float] = {}
        """When each quarantine was first seen, by the volume's id."""
        self._said = Seldom()

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.quarantine_look)
            for volume, reason in await self._lasting():
                try:
                    await self._make_anew(volume, reason)
                except PannierError as error:  # tried again at the next look
                    every = self._pace.refused_limit
                    more = self._said.due(volume.id, now=self._clock.now(), every=every)
                    if more is not None:
                        log.warning(
                            "copy.not-set-apart",
                            volume=volume.name,
                            error=str(error),
                            left_out=more,
                        )

    async def _lasting(self) -> list[tuple[Volume, StorageError]]:
        """The copies whose quarantine has lasted for a while, each with the reason."""
        now, seen = self._clock.now(), dict[str, StorageError]()
        for driver in self._drivers:
            if driver.name not in self._drivers.hanging:
                try:
                    seen.update(await driver.quarantined())
                except PannierError as error:
                    log.info("copy.not-looked-at", driver=driver.name, error=str(error))
        self._since = {each: self._since.get(each, now) for each in seen}
        return [
            (volume, seen[volume.id])
            for volume in self._cluster.catalog.volumes()
            if volume.id in seen
            and now - self._since[volume.id] >= self._pace.quarantine_lasts
            and self._can_be_made_anew(volume)
        ]

    def _can_be_made_anew(self, volume: Volume) -> bool:
        """Whether another node holds the volume, answers, and is not known to be damaged itself."""
        holder = volume.grant.node
        return (
            self._cluster.node in volume.replicas
            and holder != self._cluster.node
            and self._cluster.catalog.is_up(holder)
            and all(line.node != holder for line in damage.open_damage(volume))
        )

    async def _make_anew(self, volume: Volume, reason: StorageError) -> None:
        node = self._cluster.catalog.node(volume.grant.node)
        if node is None:
            return
        await self._drivers.check_disk(
            volume, by_writing=True
        )  # a failed disk makes every copy look bad
        await self._peers.to(node).peer_lost_copy(volume.name, epoch=volume.grant.epoch)
        async with self._custody.lock(volume):
            record = (await self._cluster.fresh(volume.name)).record
            same = (record.id, record.grant) == (volume.id, volume.grant)
            if same and self._can_be_made_anew(record) and self._cluster.node not in record.in_sync:
                await self._set_apart(self._drivers.of(record), record, reason)

    async def _set_apart(self, driver: Driver, volume: Volume, reason: StorageError) -> None:
        me, why = self._cluster.node, reason.message
        if damage.is_worth_a_line(
            volume, me, damage.SET_APART, why
        ) and not await self._custody.note(volume, damage.SET_APART, why):
            return
        place = await driver.set_apart(volume.id)
        log.error("copy.set-apart", volume=volume.name, place=str(place), why=why)
