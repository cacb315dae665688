"""Frees room where a pool or a journal is short of it: all of it here, one thing at a time, in one order.

The order is in :mod:`pannier.core.freeing`. After each deletion the pool is looked at again, once the kernel has
given the room back. Whatever is cut short by the end of the daemon is decided anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.room import RoomGuard, Shortage
from pannier.cluster.cluster import Cluster
from pannier.copies.receiving import Reception
from pannier.copies.replication import Replicator
from pannier.core.errors import PannierError
from pannier.core.freeing import Freeable, Rank, in_order, may_free, spare_generations
from pannier.core.generation import Generation
from pannier.core.ownership import LocalState, plan_cleanup
from pannier.core.pace import NodePace
from pannier.core.room import RoomLevel
from pannier.core.volume import HistoryEntry, Volume
from pannier.holding.handover import Handovers
from pannier.host.clock import Clock
from pannier.node.journal_room import JournalRoom
from pannier.node.trash import Trash
from pannier.storage.base import Driver, SparseDriver

log = structlog.get_logger(__name__)

_WHY = "the pool was nearly full"


@dataclass(slots=True)
class _Need:
    """One pool that is short of room.

    Attributes:
        since: when something was deleted last, or when this began.
        settled: when nothing was on its way any more; None as long as that is not known. Only a look at the pool
            that began later counts.
        due: when to look again for something to free.
        failed: what could not be freed just now.
        in_vain: there was nothing to free, and nothing on its way, when that was looked for last.
    """

    since: float
    settled: float | None = None
    due: float = 0.0
    failed: set[tuple[Rank, str]] = field(default_factory=set)
    in_vain: bool = False


class Freeing:
    """The one owner of what gives its room on need."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        custody: Custody,
        handovers: Handovers,
        reception: Reception,
        replicator: Replicator,
        room: RoomGuard,
        trash: Trash,
        journals: JournalRoom,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._custody = custody
        self._handovers = handovers
        self._reception = reception
        self._replicator = replicator
        self._room = room
        self._trash = trash
        self._journals = journals
        self._clock = clock
        self._pace = pace
        self._needs: dict[Path, _Need] = {}

    async def run(self) -> None:
        """For ever: run as a task."""
        measured = 0.0
        while True:
            short, now = self._room.short(), self._clock.now()
            self._needs = {pool: self._needs.get(pool) or _Need(now) for pool in short}
            for pool, shortage in short.items():
                if now >= self._needs[pool].due:
                    await self._attempt(pool, shortage)
            if now >= measured or self._trash.changed:
                self._trash.changed = False
                for need in self._needs.values():
                    need.due, need.in_vain = 0.0, False
                measured = now + self._pace.free_again
                await self._measure()
                await self._journals.look()
            if short:
                await asyncio.sleep(self._pace.free_look)
            else:
                await self._room.wait_short(within=self._pace.free_again)

    async def wait_for_room(self) -> None:
        """Wait while a pool is full that something may give room to, such as the trash: nothing new is taken in meanwhile."""
        until = self._clock.now() + self._pace.free_wait
        while self._clock.now() < until and self._may_get_room():
            await asyncio.sleep(self._pace.free_look)

    def _may_get_room(self) -> bool:
        """Whether a pool is full, and it is not known that nothing gives it room."""
        full = [pool for pool, each in self._room.short().items() if each.level is RoomLevel.FULL]
        return any(
            self._trash.changed or pool not in self._needs or not self._needs[pool].in_vain
            for pool in full
        )

    async def _attempt(self, pool: Path, shortage: Shortage) -> None:
        need = self._needs[pool]
        try:
            need.in_vain = not await self._turn(pool, shortage, need)
            if need.in_vain:
                need.failed.clear()
                need.due = self._clock.now() + self._pace.free_again
        except (PannierError, OSError) as error:
            need.due = self._clock.now() + self._pace.free_again
            log.warning("pool.not-freed", pool=str(pool), error=str(error))

    async def _measure(self) -> None:
        """Tell how much gives its room, and give up what is too much."""
        try:
            await self._trash.empty_beyond()
            sizes = await self._trash.sizes()
        except (PannierError, OSError) as error:
            log.warning("trash.not-measured", error=str(error))
            return
        for pool in {driver.pool for driver in self._sparse()}:
            gives = sum(sizes.get(each.id, 0) for each in self._trash.here(pool))
            self._room.gives_way(pool, gives)

    # -- one step -------------------------------------------------------------------------------

    async def _turn(self, pool: Path, shortage: Shortage, need: _Need) -> bool:
        """Try to free the next thing, unless something is just becoming free. Returns False if there is nothing."""
        if need.settled is None:
            coming = await self._gives_back(pool)
            if may_free(coming=coming, waited=self._clock.now() - need.since):
                need.settled = self._clock.now()
            return True
        if shortage.looked <= need.settled:
            return True
        ordered = in_order(await self._found(pool, need.failed), level=shortage.level)
        if not ordered:
            return False
        if await self._free(ordered[0]):
            need.since, need.settled = self._clock.now(), None
        else:
            need.failed.add((ordered[0].rank, ordered[0].volume))
        return True

    async def _gives_back(self, pool: Path) -> bool:
        return any([await driver.gives_back() for driver in self._sparse() if driver.pool == pool])

    async def _found(self, pool: Path, failed: set[tuple[Rank, str]]) -> list[Freeable]:
        """All that may be freed in a pool, without what could just not be."""
        drivers = [driver for driver in self._drivers if driver.pool == pool]
        there = {volume for driver in drivers for volume in await driver.volumes()}
        removed = [
            Freeable(rank=Rank.REMOVED, age=age, volume=each.id, name=each.name)
            for age, each in enumerate(self._trash.here(pool))
            if each.id in there and (Rank.REMOVED, each.id) not in failed
        ]
        if removed:
            return removed  # the rest comes after them, and the disk is not asked in vain
        found = []
        for volume in self._cluster.catalog.volumes():
            driver = self._drivers.get(volume.spec.driver)
            if driver is not None and driver in drivers and volume.id in there:
                found += await self._found_of(volume, driver)
        names = {each.id: each.name for each in self._cluster.catalog.volumes()}
        for sparse in self._sparse():
            if sparse.pool == pool:
                found += [
                    Freeable(rank=Rank.PART, volume=each, name=names.get(each, each))
                    for each in await sparse.parts()
                ]
        return [each for each in found if (each.rank, each.volume) not in failed]

    async def _found_of(self, volume: Volume, driver: Driver) -> list[Freeable]:
        try:
            local = await self._local(volume, driver)
        except PannierError as error:  # quarantined, for instance; that is told elsewhere
            log.info("volume.not-looked-at", volume=volume.name, error=str(error))
            return []
        found = []
        if spare := self._spare(volume, local):
            found.append(
                Freeable(rank=Rank.SPARE, volume=volume.id, name=volume.name, generations=spare)
            )
        if plan_cleanup(volume, local, node=self._cluster.node).strays:
            found.append(Freeable(rank=Rank.STRAY, volume=volume.id, name=volume.name))
        return found

    async def _local(self, volume: Volume, driver: Driver) -> LocalState:
        return (await driver.inspect(volume.id)).state

    def _spare(self, volume: Volume, local: LocalState) -> tuple[Generation, ...]:
        if self._handovers.of(volume):
            return ()  # they are being sent
        replicated = self._replicator.known(volume)
        seen = (
            replicated is not None and replicated.found is not None
        )  # what the disk had at its start
        needed = replicated.needed() if replicated is not None and seen else None
        return spare_generations(volume, local, node=self._cluster.node, needed=needed)

    async def _free(self, found: Freeable) -> bool:
        """Returns whether something was freed."""
        try:
            if found.rank is Rank.REMOVED:
                return await self._free_removed(found)
            if found.rank is Rank.SPARE:
                return await self._free_spare(found)
            return await self._free_part(found)
        except (PannierError, OSError) as error:
            log.warning("pool.not-freed", what=found.rank.name, volume=found.name, error=str(error))
            return False

    async def _free_removed(self, found: Freeable) -> bool:
        removed = {each.id: each for each in self._cluster.catalog.trashed()}
        volume = removed.get(found.volume)
        return volume is not None and await self._trash.purge(volume, why=_WHY)

    async def _free_part(self, found: Freeable) -> bool:
        for driver in self._sparse():
            await driver.drop_part(found.volume)
        log.info("volume.part-freed", volume=found.name)
        return True

    async def _free_spare(self, found: Freeable) -> bool:
        """Delete generations that only save sending.

        Another node may be about to make this one the holder, with just such a generation. It has read the record
        before it asked whether the generation is here. So: nothing is confirmed any more, the record is written anew
        (its change fails then, if it asked before), and only then is something deleted.
        """
        volume = self._cluster.catalog.volume(found.name)
        if volume is None or volume.id != found.volume:
            return False
        driver = self._drivers.of(volume)
        async with self._custody.lock(volume):
            with self._reception.refusing(volume):
                fresh = await self._cluster.fresh(volume.name)
                if fresh.record.id != volume.id:
                    return False
                record = fresh.record
                spare = self._spare(record, await self._local(record, driver))
                if not spare:
                    return False
                await self._cluster.replace(self._noted(record), expect=fresh.revision)
                for generation in spare:
                    await driver.delete_generation(record.id, generation)
        log.info("volume.spare-freed", volume=found.name, generations=len(spare))
        return True

    def _noted(self, record: Volume) -> Volume:
        return record.with_entry(
            HistoryEntry(
                at=self._clock.unix(),
                what="freed",
                node=self._cluster.node,
                epoch=record.grant.epoch,
                detail=f"generations that saved sending, since {_WHY}",
            )
        )

    def _sparse(self) -> list[SparseDriver]:
        return [driver for driver in self._drivers if isinstance(driver, SparseDriver)]
