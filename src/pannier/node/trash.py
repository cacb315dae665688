"""The trash: what was removed, how long it is kept, and who gives it up.

A removed volume is given up by its record alone (:meth:`Registry.purge_volume`). Every node then deletes what it
has of it: at once when it hears of it, and in each turn what it did not hear of.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, VolumeNotFound
from pannier.core.freeing import beyond
from pannier.core.record import Record
from pannier.core.restored import is_behind, store_is_older
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.storage.base import Driver

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashTimes(Record):
    """The file of :class:`TrashClock`: seconds by volume id."""

    seconds: dict[str, float] = field(default_factory=dict)


class TrashClock:
    """How long each removed volume has been in the trash while this node was watching.

    Counted in turns of the loop, not by the wall clock: a clock that jumps ahead by a day must not
    delete anything. Time during which the daemon did not run is not counted.
    """

    def __init__(self, file: StateFile, *, keep_seconds: float) -> None:
        self._file = file
        self._keep_seconds = keep_seconds
        self._times = TrashTimes()
        try:
            remedy = "removed volumes are kept for their whole time again"
            self._times = read_file(file, TrashTimes, remedy=remedy) or self._times
        except PannierError as error:
            log.warning("trash.times-unreadable", error=str(error))

    def turn(self, present: set[str], seconds: float) -> set[str]:
        """Count ``seconds`` for each volume id present; returns those whose time is over."""
        known = self._times.seconds
        counted = {one: known.get(one, 0.0) + seconds for one in present}
        self._times = replace(self._times, seconds=counted)
        self._file.write(encode(self._times))
        return {one for one, time in counted.items() if time >= self._keep_seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashTerms:
    """How much is kept of what was removed, and for how long.

    Attributes:
        keep_seconds: how long, counted while the daemon runs.
        most_bytes: what all of it may take in one pool; None for what there is room for.
    """

    keep_seconds: float
    most_bytes: int | None = None


class Trash:
    """The removed volumes, as this node keeps them."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        file: StateFile,
        terms: TrashTerms,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._terms = terms
        self._clock = clock
        self._times = TrashClock(file, keep_seconds=terms.keep_seconds)
        self._left: asyncio.Queue[str] = asyncio.Queue()
        self._deleting = asyncio.Lock()
        self.changed = False
        """Whether something came or went since this was last set to False."""
        self._sizes: dict[str, int] = {}
        """Bytes here of each removed volume, by id: they do not change any more."""

    # -- who gives a volume up ------------------------------------------------------------------

    async def empty_overdue(self, seconds: float) -> None:
        """Give up what has been in the trash long enough.

        Args:
            seconds: since the last call; they are counted.
        """
        held = {
            found.record.id: found.record
            for found in await self._cluster.registry.trash()
            if self._holds(found.record) and not found.record.spec.protected
        }
        for volume_id in await asyncio.to_thread(self._times.turn, set(held), seconds):
            await self.purge(held[volume_id], why="its time in the trash was over")

    async def empty_beyond(self) -> None:
        """Give up what is too much for the trash, the oldest first."""
        if self._terms.most_bytes is None:
            return
        sizes = await self.sizes()
        for driver in {driver.pool: driver for driver in self._drivers}.values():
            held = [each for each in self.here(driver.pool) if self._holds(each)]
            known = [(each.id, sizes.get(each.id, 0)) for each in held]
            gone = beyond(known, most_bytes=self._terms.most_bytes)
            for volume in held:
                if volume.id in gone:
                    await self.purge(volume, why="the trash was larger than trash_size")

    def here(self, pool: Path) -> list[Volume]:
        """The removed volumes that this node may give up and that are kept in a pool, the oldest first."""
        return [
            each
            for each in self._cluster.catalog.trashed()
            if (driver := self._drivers.get(each.spec.driver)) is not None
            and driver.pool == pool
            and not each.is_newer
            and not each.spec.protected
            and self._may_give(each)
        ]

    def _holds(self, volume: Volume) -> bool:
        return volume.grant.node == self._cluster.node and not volume.is_newer

    def _may_give(self, volume: Volume) -> bool:
        """The node that held it, or one with a copy. Not that of one whose holder was given up for lost: what
        that node has may be all that there is, and its return brings it back."""
        holder = self._cluster.catalog.node(volume.grant.node)
        return self._holds(volume) or (self._cluster.node in volume.replicas and holder is not None)

    async def sizes(self) -> dict[str, int]:
        """Bytes that each removed volume takes here, by id; without those that cannot be measured now."""
        there = {each.id: each for each in self._cluster.catalog.trashed()}
        self._sizes = {each: size for each, size in self._sizes.items() if each in there}
        for volume in there.values():
            driver = self._drivers.get(volume.spec.driver)
            if driver is not None and volume.id not in self._sizes:
                try:
                    self._sizes[volume.id] = await driver.used_bytes(volume.id)
                except PannierError as error:
                    log.info("trash.not-measured", volume=volume.name, error=str(error))
        return self._sizes

    # -- giving up ------------------------------------------------------------------------------

    async def purge(self, volume: Volume, *, why: str) -> bool:
        """Give a removed volume up, and delete what is here of it. Returns whether it was.

        One that fails holds up no others: it is logged, and tried again.
        """
        try:
            found = await self._cluster.registry.trashed(volume.id)
            if found is None or found.record.removed_at != volume.removed_at:
                return False  # restored meanwhile, and perhaps removed again; or given up by another node
            await self._commit(found, why=why)
            await self._delete(volume.id)
        except PannierError as error:
            log.warning("volume.not-purged", id=volume.id, error=str(error))
            return False
        return True

    async def _commit(self, found: Versioned[Volume], *, why: str) -> None:
        volume = found.record
        known = self._cluster.catalog.volume(volume.name)
        if known is not None and known.id == volume.id and is_behind(volume, known):
            raise store_is_older(known, None)  # it was taken out of the trash after the backup
        entry = HistoryEntry(
            at=self._clock.unix(),
            what="purged",
            node=self._cluster.node,
            epoch=volume.grant.epoch,
            detail=why,
        )
        try:
            await self._cluster.registry.purge_volume(volume, expect=found.revision, entry=entry)
        except OutcomeUnknown:
            if await self._cluster.registry.purge_of(volume.id) is None:
                raise
        log.info("volume.purged", id=volume.id, volume=volume.name, why=why)

    async def give_up(self, name_or_id: str, *, actor: str) -> Volume:
        """Give up a removed volume for ever; whoever has something of it deletes it.

        Raises:
            VolumeNotFound: nothing of that name or id is in the trash.
            Conflict: there are several of that name.
            Stale: it was restored, or given up, meanwhile.
        """
        found = [
            each
            for each in await self._cluster.registry.trash()
            if name_or_id in (each.record.name, each.record.id)
        ]
        if not found:
            raise VolumeNotFound(
                f"there is nothing called {name_or_id} in the trash",
                remedy="pannier trash ls shows what is there",
            )
        if len(found) > 1:
            ids = ", ".join(each.record.id for each in found)
            raise Conflict(
                f"there are {len(found)} volumes called {name_or_id} in the trash: {ids}",
                remedy="give the id of the one that is meant",
            )
        await self._commit(found[0], why=f"by {actor}")
        return found[0].record

    async def give_all_up(self, *, actor: str) -> list[Volume]:
        """Give up everything in the trash; returns what was. What a newer version removed stays, and what is protected."""
        gone = []
        for found in await self._cluster.registry.trash():
            if not found.record.is_newer and not found.record.spec.protected:
                await self._commit(found, why=f"by {actor}")
                gone.append(found.record)
        return gone

    # -- deleting what was given up -------------------------------------------------------------

    def hear(self, change: Changed) -> None:
        """A listener for the catalog: something came into the trash, or left it."""
        if change.kind != "trash":
            return
        self.changed = True
        if not change.present:
            self._left.put_nowait(change.name)

    async def run(self) -> None:
        """Delete at once what was given up anywhere, for ever: run as a task."""
        while True:
            volume_id = await self._left.get()
            try:
                if await self._cluster.registry.purge_of(volume_id) is not None:
                    await self._delete(volume_id)
            except PannierError as error:  # each turn tries it again
                log.warning("volume.not-freed", id=volume_id, error=str(error))

    async def free_purged(self) -> None:
        """Delete all that was given up from this node's pools."""
        purged = await self._cluster.registry.purged()
        for driver in self._drivers:
            await driver.quarantined()  # tries them again, and remainders of removed ones
            for volume_id in set(await driver.volumes()) & purged:
                await self._delete_from(driver, volume_id)

    async def _delete(self, volume_id: str) -> None:
        for driver in self._drivers:
            await self._delete_from(driver, volume_id)

    async def _delete_from(self, driver: Driver, volume_id: str) -> None:
        async with self._deleting:
            if volume_id not in await driver.volumes():
                return
            try:
                await driver.delete(volume_id)
                log.info("volume.freed", id=volume_id, node=self._cluster.node)
            except PannierError as error:
                log.warning("volume.not-freed", id=volume_id, error=str(error))
