"""This node's volumes: brings disk and mounts in line with the records, one volume at a time.

A change of a volume's local data happens only under the volume's lock, and every step may be
repeated after a crash: what to do is decided anew from the record and the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.agent.mounts import Mounts
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.core.errors import (
    Corrupt,
    NotHolder,
    PannierError,
    Stale,
    StorageError,
    StoreUnavailable,
    VolumeInUse,
)
from pannier.core.generation import Generation
from pannier.core.ownership import (
    AskHolder,
    Disbelieve,
    LocalState,
    Lost,
    Promote,
    Serve,
    Unseal,
    plan_cleanup,
    plan_serving,
)
from pannier.core.pace import AgentPace
from pannier.core.restored import disk_is_newer
from pannier.core.volume import Grant, HistoryEntry, Volume
from pannier.host.clock import Clock
from pannier.host.mountflags import takes_no_writes
from pannier.host.threads import in_own_thread
from pannier.storage.base import Driver, GrowingDriver

log = structlog.get_logger(__name__)


class Custody:
    """Holds, mounts and gives up volumes on this node."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        mounts: Mounts,
        lease: Lease,
        clock: Clock,
        pace: AgentPace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._use = use
        self._mounts = mounts
        self._lease = lease
        self._clock = clock
        self._pace = pace
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, volume: Volume) -> asyncio.Lock:
        """Taken for every change of the volume's local data."""
        return self._locks.setdefault(volume.id, asyncio.Lock())

    async def serve(self, volume: Volume) -> Path:
        """Make the volume writable and mounted here, and return the path for Docker.

        The caller has the lock. A remembered record is enough only for a holder's writable tree. A
        fresh record is read in every other case, and if another node may have taken the volume over.

        Raises:
            NotHolder: another node holds it; Corrupt: its data is not here; StoreUnavailable;
            Unavailable: another machine has this node's name; NewerFormat: only a newer version can serve it.
        """
        await self._lease.check_name_not_taken()
        volume.check_format(f"the record of volume {volume.name}")
        local = await self._local(volume)
        plan = plan_serving(volume, local, node=self._cluster.node)
        driver = self._drivers.of(volume)
        if self._taken_perhaps(volume, local):
            volume = await self.prove(volume)
            await driver.unseal(volume.id, epoch=volume.grant.epoch)
        elif not isinstance(plan, Serve):
            volume = (await self.take_up(volume)).record
            await driver.unseal(volume.id, epoch=volume.grant.epoch)
        if not self._lease.holds(volume):
            raise StoreUnavailable(
                f"node {self._cluster.node} cannot prove that it holds volume {volume.name}: its lease has "
                f"run out",
                remedy="see pannier status for the store; it is tried again by itself",
            )
        shown = await in_own_thread(partial(takes_no_writes, self._mounts.path(volume.name)))
        if shown and not self._use.was_given(volume) and not await self._use.processes(volume):
            # Since a time at which its disk took no writes. It cannot be attached beside that.
            await self.take_down(volume)
        await self._attach(volume, driver)
        source = driver.data_path(volume.id, volume.grant.epoch)
        if not await self._use.processes(volume):
            return await in_own_thread(partial(self._mounts.replace, volume.name, source))
        return await in_own_thread(partial(self._mounts.mount, volume.name, source))

    async def _attach(self, volume: Volume, driver: Driver) -> None:
        if volume.spec.size is not None and isinstance(driver, GrowingDriver):
            driver.give_room(volume.id, volume.spec.size)
        await driver.attach(volume.id, epoch=volume.grant.epoch, grow=volume.spec.size is None)

    async def grow(self, volume: Volume) -> None:
        """Have an attached volume that is held here as large as its record says, if the kernel allows that in use.

        Raises:
            StorageError: it cannot be attached any more.
        """
        driver = self._drivers.of(volume)
        async with self.lock(volume):
            if volume.id in await driver.attached():
                await self._attach(volume, driver)

    def _taken_perhaps(self, volume: Volume, local: LocalState) -> bool:
        """Whether another node may have taken the volume over, while this one was off or had no lease, or the store was
        restored from an older backup.

        What is remembered may be older than the volume's second copy. Nobody is in sync with the present epoch, though,
        before this node has a generation of it on its disk.
        """
        if self._cluster.catalog.doubts(volume.name):
            return True
        copied = any(each.epoch == volume.grant.epoch for each in local.generations)
        if volume.spec.copies == 1 and not copied:
            return False
        return not self._cluster.catalog.trusted or not self._lease.holds(volume)

    async def prove(self, volume: Volume) -> Volume:
        """Make sure that this node holds a volume, and that nobody is just taking it over.

        The caller has the lock. The record is read and written anew. A takeover that was sent while
        this node had no lease expects the earlier revision, so it fails from then on.

        Raises:
            As :meth:`take_up`.
        """
        while True:
            term = self._lease.term
            found = await self.take_up(volume)
            try:
                written = await self._cluster.replace(found.record, expect=found.revision)
            except Stale:
                continue
            self._lease.proven(written.record, term=term)
            return written.record

    async def prove_all(self) -> None:
        """Prove each volume that the present lease does not cover yet, for ever: run as a task."""
        while True:
            for volume in self._cluster.catalog.volumes():
                mine = (
                    volume.grant.node == self._cluster.node and volume.spec.driver in self._drivers
                )
                if mine and volume.spec.copies > 1 and self._lease.needs_proof(volume):
                    await self._prove_one(volume)
            await asyncio.sleep(self._pace.prove_look)

    async def _prove_one(self, volume: Volume) -> None:
        try:
            async with self.lock(volume):
                await self.prove(volume)
        except PannierError as error:
            log.info("volume.not-proven", volume=volume.name, error=str(error))

    async def take_up(self, volume: Volume) -> Versioned[Volume]:
        """Make sure, by a fresh record, that this node holds a volume and has its live tree.

        The caller has the lock. A sealed tree is not unsealed here, but the caller may unseal it
        afterwards: a change of the record that had no answer may still be on its way to the store.
        It expects the record's present revision, so the record is written anew to make it fail.

        Raises:
            NotHolder: another node holds it; Corrupt: its data is not here; StoreUnavailable;
            OutcomeUnknown: a sealed tree must stay sealed.
        """
        while True:
            found = await self._cluster.fresh(volume.name)
            record = found.record
            if record.id != volume.id:
                raise NotHolder(f"volume {volume.name} is another one now", remedy="ask again")
            match plan_serving(record, await self._local(record), node=self._cluster.node):
                case Serve():
                    return found
                case Unseal():
                    try:
                        return await self._cluster.replace(record, expect=found.revision)
                    except Stale:
                        continue  # what was on its way has arrived
                case Promote(base, epoch, on_top):
                    await self._end_former(record)
                    await self._drivers.of(record).promote(
                        record.id, base, epoch=epoch, size_bytes=record.spec.size, on_top=on_top
                    )
                    log.info("volume.promoted", volume=record.name, epoch=epoch, base=str(base))
                    return found
                case AskHolder(holder, epoch):
                    raise NotHolder(
                        f"volume {volume.name} is held by node {holder} (epoch {epoch})",
                        remedy="ask that node for it",
                    )
                case Disbelieve(newest):
                    raise disk_is_newer(record, newest, node=self._cluster.node)
                case Lost(epoch, missing):
                    raise self._lost(record, epoch, str(missing) if missing else None)

    def _lost(self, volume: Volume, epoch: int, base: str | None) -> Corrupt:
        what = f"generation {base}" if base else "its data"
        return Corrupt(
            f"node {self._cluster.node} should hold volume {volume.name} (epoch {epoch}), but {what} is not "
            f"on its disk, and an empty directory is never given instead",
            remedy="see whether the right disk is mounted as the pool: pannier doctor",
        )

    async def _local(self, volume: Volume) -> LocalState:
        return (await self._drivers.of(volume).inspect(volume.id)).state

    async def tidy(
        self, volume: Volume, *, needed: Callable[[], frozenset[Generation]] | None = None
    ) -> None:
        """Remove what this node no longer needs of the volume. The caller has the lock.

        Decided by a fresh record; nothing is removed if the store does not answer. ``needed`` returns
        the generations that other copies may have as their newest. It is called after the disk was
        read: what the copies get later is newer than all that. None if this is not known; a holder
        then keeps all generations as long as the volume has replicas.
        """
        record = (await self._cluster.fresh(volume.name)).record
        if record.id != volume.id or record.spec.driver not in self._drivers:
            return
        driver = self._drivers.of(record)
        local = await self._local(record)
        if needed is not None:
            kept = needed()
        else:
            kept = local.generations if record.replicas else frozenset()
        cleanup = plan_cleanup(record, local, node=self._cluster.node, needed=kept)
        for epoch in cleanup.drop:
            await driver.drop_live(record.id, epoch=epoch)
        for generation in cleanup.delete:
            await driver.delete_generation(record.id, generation)

    async def tidy_copy(self, volume: Volume) -> None:
        """Remove what this node, which is not the holder, no longer needs of the present epoch. The caller has the lock.

        Decided by ``volume`` as it is remembered, so the store is not read. That is enough as long as this node has begun
        no takeover of it (:meth:`Promises.refuses`): whoever else makes this node the holder names its newest
        generation, which stays. What is of earlier epochs may be a stray by a newer record, and is left to :meth:`tidy`.
        """
        driver = self._drivers.of(volume)
        cleanup = plan_cleanup(volume, await self._local(volume), node=self._cluster.node)
        for generation in cleanup.delete:
            if generation.epoch == volume.grant.epoch:
                await driver.delete_generation(volume.id, generation)

    async def _depose_strays(self, volume: Volume) -> None:
        """Stop containers that went on with a former tree while this daemon did not run."""
        if volume.grant.node != self._cluster.node:
            await self._end_former(volume)

    async def _end_former(self, volume: Volume) -> None:
        """Stop all use of trees of earlier epochs that this node did not give away.

        This comes before the volume is served here again: a sync call of a process that still uses
        such a tree must not be acknowledged as one of the present volume.
        """
        for epoch, sealed in (await self._local(volume)).sealed.items():
            if not sealed and epoch < volume.grant.epoch:
                former = replace(volume, grant=Grant(self._cluster.node, epoch))
                await self.depose(former, successor=volume.grant.node)

    async def take_down(self, volume: Volume) -> None:
        """Unmount the volume's path. The caller has the lock and saw that nobody uses it.

        Raises:
            VolumeInUse: somebody has begun to. StorageError: the kernel refused.
        """
        try:
            await in_own_thread(partial(self._mounts.unmount, volume.name))
        except VolumeInUse:
            if await self._use.in_use(volume):
                raise
            await in_own_thread(
                partial(self._mounts.unmount, volume.name, detach=True)
            )  # some look on

    async def detach_idle(self) -> None:
        """Detach volumes that nobody has used for a while, for ever: run as a task."""
        idle: dict[str, float] = {}
        used: dict[str, float] = {}
        while True:
            await asyncio.sleep(self._pace.idle_look)
            try:
                await self._detach_what_is_idle(idle, used)
            except PannierError as error:  # a disk that failed, for instance
                log.info("volumes.not-detached", error=str(error))

    async def _detach_what_is_idle(self, idle: dict[str, float], used: dict[str, float]) -> None:
        """One look.

        Args:
            idle: since when each attached volume is not used, by its id.
            used: when each was last seen in use.
        """
        attached = [await driver.attached() for driver in self._drivers]
        now, there = self._clock.now(), frozenset().union(*attached)
        for gone in idle.keys() - there:
            del idle[gone]
            used.pop(gone, None)
        for volume in self._cluster.catalog.volumes():
            if volume.id not in there or volume.grant.node != self._cluster.node:
                continue
            since = idle.setdefault(volume.id, now)
            seen = volume.id in used and now - used[volume.id] < self._pace.busy_look
            if seen and self._use.engine_uses(volume):
                idle[volume.id] = now
            elif await self._use.is_seen(volume):
                idle[volume.id] = used[volume.id] = now
            elif now - since >= self._pace.linger:
                await self._detach_one(volume)

    async def _detach_one(self, volume: Volume) -> None:
        driver = self._drivers.of(volume)
        try:
            async with self.lock(volume):
                if not await self._use.is_seen(volume):
                    await self.take_down(volume)
                    await driver.detach(volume.id, epoch=volume.grant.epoch)
        except PannierError as error:
            log.info("volume.not-detached", volume=volume.name, error=str(error))

    async def mount_anew(self, volume: Volume) -> None:
        """End all use of a volume of which the disk refused a write, and detach it.

        Its next Mount attaches it again, and its data is checked then. Until it is detached, nothing of it
        is confirmed: what was lost is not known.
        """
        log.error("volume.write-refused", volume=volume.name, epoch=volume.grant.epoch)
        await self._use.end(volume)
        async with self.lock(volume):
            await self._use.end(volume)
            await self._drivers.of(volume).detach(volume.id, epoch=volume.grant.epoch)
        await self.note(volume, "mounted anew", "the disk had refused a write")

    async def note(self, volume: Volume, what: str, detail: str, *, of: str | None = None) -> bool:
        """Add a line to a volume's history, if its holder is still the same and the store answers.

        Args:
            of: the node that it is about; this one if nothing is said.

        Returns:
            Whether the store has answered: then it is there, or not of this holder's time any more.
        """
        entry = HistoryEntry(
            at=self._clock.unix(),
            what=what,
            node=of or self._cluster.node,
            epoch=volume.grant.epoch,
            detail=detail,
        )

        def add(found: Volume) -> Volume | None:
            same = (found.id, found.grant) == (volume.id, volume.grant)
            return found.with_entry(entry) if same else None

        try:
            read = partial(self._cluster.fresh, volume.name)
            found = await self._cluster.registry.change(read, add)
        except PannierError as error:
            log.info("volume.not-noted", volume=volume.name, what=what, error=str(error))
            return False
        self._cluster.catalog.remember(found.record, revision=found.revision)
        return True

    async def fence(self, volume: Volume) -> None:
        """End all use of a volume that another node may have taken over; the data here is kept.

        The use is ended before the lock is taken: whoever has the lock may be waiting for the store.
        """
        log.warning("volume.fenced", volume=volume.name, epoch=volume.grant.epoch)
        await self._use.end(volume)
        async with self.lock(volume):
            if self._lease.holds(volume):
                return
            await self._use.end(volume)
            try:
                local = await self._local(volume)
                if local.sealed.get(volume.grant.epoch) is False:
                    await self._drivers.of(volume).seal(volume.id, epoch=volume.grant.epoch)
            except StorageError as error:
                if not self._lease.withheld:
                    raise
                # A disk that takes no writes needs no seal against them.
                log.warning("volume.not-sealed", volume=volume.name, error=str(error))

    async def depose_if_live(self, volume: Volume, *, successor: str) -> None:
        """Stop all use of a tree that was never sealed, or that a failed disk does not show any more.

        The caller has the lock.
        """
        if volume.spec.driver not in self._drivers:
            return
        try:
            sealed = (await self._local(volume)).sealed.get(volume.grant.epoch)
        except StorageError as error:
            log.warning("volume.not-seen", volume=volume.name, error=str(error))
            sealed = False
        if sealed is False:
            await self.depose(volume, successor=successor)

    async def depose(self, volume: Volume, *, successor: str) -> None:
        """Stop all use of a volume that was given to another node without us; keep what is here.

        The caller has the lock. Its containers are killed: what they write no longer belongs to the
        volume, and they must not believe it does.
        """
        await self._use.end(volume)
        self._lease.forget(volume)
        log.warning(
            "volume.deposed", volume=volume.name, epoch=volume.grant.epoch, successor=successor
        )

    async def adopt(self) -> None:
        """After a start: finish or undo what an earlier run left half done. The store answers.

        A volume for which this fails is tried again until it was done, or is gone.
        """
        done: set[str] = set()
        while True:
            left = [volume for volume in self._cluster.catalog.volumes() if volume.id not in done]
            for volume in left:
                if volume.spec.driver not in self._drivers:
                    continue
                async with self.lock(volume):
                    try:
                        await self._depose_strays(volume)
                        await self.tidy(volume)
                        done.add(volume.id)
                    except PannierError as error:
                        log.warning("volume.not-tidied", volume=volume.name, error=str(error))
            waiting = any(self._drivers.expects(v.spec.driver) for v in left)
            if not waiting or all(volume.id in done for volume in left):
                return
            await asyncio.sleep(self._pace.adopt_pause)
