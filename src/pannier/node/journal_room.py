"""Frees records where a journal is crowded: first what generations have, then what nobody needs but a removed volume.

The order is in :mod:`pannier.core.freeing`, and :class:`pannier.node.freeing.Freeing` alone calls this. A copy that gives up
records lacks what it has confirmed. So it leaves the record's ``in_sync`` first: from then on nobody takes the volume
over with it, restored or not, until the holder has sent it a generation. Each step may be repeated after a crash.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.copies.receiving import Reception
from pannier.core.errors import PannierError
from pannier.core.freeing import (
    FreeableRecords,
    RecordsRank,
    is_crowded,
    rank_records,
    records_in_order,
)
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import Clock
from pannier.storage.lines import LineDriver, line_driver

log = structlog.get_logger(__name__)


class JournalRoom:
    """Keeps the journals of this node free for the volumes that are written to."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        custody: Custody,
        reception: Reception,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._custody = custody
        self._reception = reception
        self._clock = clock

    async def look(self) -> None:
        """Free records where a journal is crowded, until it is not."""
        for driver in filter(None, map(line_driver, self._drivers)):
            try:
                await self._clear(driver)
            except (PannierError, OSError) as error:
                log.warning("journal.not-cleared", driver=driver.name, error=str(error))

    async def _clear(self, driver: LineDriver) -> None:
        if not await self._crowded(driver):
            return
        known = await self._known(driver)
        for volume in known:
            await self._settle(volume)
        if not await self._crowded(driver):
            return
        found = [await self._found(volume, driver, age=age) for age, volume in enumerate(known)]
        volumes = {volume.id: volume for volume in known}
        for each in records_in_order(one for one in found if one is not None):
            await self._free(volumes[each.volume], driver)
            if not await self._crowded(driver):
                return

    async def _settle(self, volume: Volume) -> None:
        try:
            await self._reception.settle(volume)
        except PannierError as error:  # quarantined, for instance; that is told elsewhere
            log.info("volume.not-looked-at", volume=volume.name, error=str(error))

    async def _crowded(self, driver: LineDriver) -> bool:
        state = await driver.journal()
        return (
            state.live_bytes is not None
            and state.most_bytes is not None
            and is_crowded(live_bytes=state.live_bytes, most_bytes=state.most_bytes)
        )

    async def _known(self, driver: LineDriver) -> list[Volume]:
        """The volumes with records here that the cluster knows; those in the trash in the order of their removal."""
        kept = (await driver.journal()).volumes
        catalog = self._cluster.catalog
        return [
            volume
            for volume in (*catalog.volumes(), *catalog.trashed())
            if kept.get(volume.id)
            and not volume.is_newer
            and self._drivers.get(volume.spec.driver) is driver
        ]

    async def _found(
        self, volume: Volume, driver: LineDriver, *, age: int
    ) -> FreeableRecords | None:
        try:
            rank = await self._rank(volume, driver)
        except PannierError as error:  # quarantined, for instance; that is told elsewhere
            log.info("volume.not-looked-at", volume=volume.name, error=str(error))
            return None
        return None if rank is None else FreeableRecords(rank=rank, age=age, volume=volume.id)

    async def _rank(self, volume: Volume, driver: LineDriver) -> RecordsRank | None:
        local = (await driver.inspect(volume.id)).state
        up = self._cluster.catalog.is_up(volume.grant.node)
        return rank_records(volume, local, node=self._cluster.node, holder_up=up)

    async def _free(self, volume: Volume, driver: LineDriver) -> None:
        """Free a volume's records, if a fresh record still says that they may go."""
        lock = self._custody.lock(volume)
        if lock.locked():  # pools are not freed either while this waits
            return
        try:
            async with lock:
                with self._reception.refusing(volume):
                    fresh = await self._fresh(volume)
                    if fresh is None or (rank := await self._rank(fresh.record, driver)) is None:
                        return
                    if self._cluster.node in fresh.record.in_sync:
                        await self._leave(fresh)
                    await driver.drop_records(volume.id)
        except (PannierError, OSError) as error:  # one that fails holds up no others
            log.warning("volume.records-not-freed", volume=volume.name, error=str(error))
        else:
            log.info("volume.records-freed", volume=volume.name, id=volume.id, why=rank.name)

    async def _fresh(self, volume: Volume) -> Versioned[Volume] | None:
        """Its record; None where it went into the trash or out of it meanwhile, or is gone."""
        registry = self._cluster.registry
        if volume.removed_at is not None:
            return await registry.trashed(volume.id)
        found = await registry.volume(volume.name)
        return found if found is not None and found.record.id == volume.id else None

    async def _leave(self, fresh: Versioned[Volume]) -> None:
        """Only a copy of what is in the trash is in sync and gives up records.

        A restoration expects the record's earlier revision: it happens before this, or knows of it.
        """
        volume, node = fresh.record, self._cluster.node
        entry = HistoryEntry(
            at=self._clock.unix(),
            what="freed",
            node=node,
            epoch=volume.grant.epoch,
            detail="what was written last, up to 10 s, from this copy of what was removed, since the journal was filling up",
        )
        in_sync = tuple(name for name in volume.in_sync if name != node)
        changed = replace(volume, in_sync=in_sync).with_entry(entry)
        await self._cluster.registry.replace_trashed(changed, expect=fresh.revision)
