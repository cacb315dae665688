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
from dataclasses import dataclass, replace

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core import damage
from pannier.core.errors import PannierError, StorageError
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.storage.base import Driver

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A quarantine. ``due``: when the copy is tried to be made anew next; ``pause``: after that, if it fails."""

    reason: StorageError
    due: float
    pause: float


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
        self._seen: dict[str, _Seen] = {}
        """The quarantines at the last look, by the volume's id."""

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.quarantine_look)
            await self._look()
            volumes = {volume.id: volume for volume in self._cluster.catalog.volumes()}
            for volume_id, seen in tuple(self._seen.items()):
                volume = volumes.get(volume_id)
                due = self._clock.now() >= seen.due
                if due and volume is not None and self._can_be_made_anew(volume):
                    await self._try(volume, seen)

    async def _look(self) -> None:
        now, found = self._clock.now(), dict[str, StorageError]()
        for driver in self._drivers:
            if driver.name not in self._drivers.hanging:
                try:
                    found.update(await driver.quarantined())
                except PannierError as error:
                    log.info("copy.not-looked-at", driver=driver.name, error=str(error))
        lasts, look = self._pace.quarantine_lasts, self._pace.quarantine_look
        for volume_id, reason in found.items():
            seen = self._seen.get(volume_id) or _Seen(reason, due=now + lasts, pause=look)
            self._seen[volume_id] = replace(seen, reason=reason)
        self._seen = {each: self._seen[each] for each in found}

    async def _try(self, volume: Volume, seen: _Seen) -> None:
        try:
            await self._make_anew(volume, seen.reason)
        except PannierError as error:
            log.warning("copy.not-set-apart", volume=volume.name, error=str(error))
        # More and more seldom: each try may have told the holder to send everything.
        pause = min(2 * seen.pause, self._pace.refused_limit)
        self._seen[volume.id] = replace(seen, due=self._clock.now() + seen.pause, pause=pause)

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
        node, driver = self._cluster.catalog.node(volume.grant.node), self._drivers.of(volume)
        if node is None or volume.id in await driver.apart() or await _is_usable(driver, volume):
            return  # where something is kept already, a person comes first: doctor says so
        # A failed disk makes every copy look bad.
        await self._drivers.check_disk(volume, by_writing=True)
        await self._peers.to(node).peer_lost_copy(volume.name, epoch=volume.grant.epoch)
        async with self._custody.lock(volume):
            record = (await self._cluster.fresh(volume.name)).record
            same = (record.id, record.grant) == (volume.id, volume.grant)
            if same and self._can_be_made_anew(record) and self._cluster.node not in record.in_sync:
                await self._set_apart(driver, record, reason)

    async def _set_apart(self, driver: Driver, volume: Volume, reason: StorageError) -> None:
        me, why = self._cluster.node, reason.message
        if damage.is_worth_a_line(
            volume, me, damage.SET_APART, why
        ) and not await self._custody.note(volume, damage.SET_APART, why):
            return
        place = await driver.set_apart(volume.id)
        log.error("copy.set-apart", volume=volume.name, place=str(place), why=why)


async def _is_usable(driver: Driver, volume: Volume) -> bool:
    """Whether only the remainder of an earlier copy, which was removed, cannot be deleted."""
    try:
        await driver.inspect(volume.id)
    except StorageError:
        return False
    return True
