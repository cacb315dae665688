"""Giving a volume that is held here options for which its files have to be copied.

1. A draft with the new options is filled from the volume, which goes on being used.
2. Its users end.
3. The draft gets what was changed since. All is read back from the disk and compared. No lock is held for that, which takes its time:
   whoever mounts the volume meanwhile has it, and the conversion fails.
4. If nobody uses the volume and nothing of it was changed, it is sealed. In one step of the store the draft gets its name, and it goes
   to the trash.

If power fails before that step, the volume is what it was; after it, it is the new one. If the step's answer never comes, the volume
stays sealed until somebody mounts it: then its record is written anew, so that the step cannot come late.
The draft is settled by this node's notes (:meth:`~pannier.holding.imports.Imports.settle`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.contract.views import ConversionProgress
from pannier.contract.words import ConversionPhase
from pannier.core.conversion import converted, exchanged, in_use
from pannier.core.declarations import changes
from pannier.core.errors import (
    Conflict,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    PoolFull,
    VolumeInUse,
)
from pannier.core.options import check_copies
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume, VolumeSpec
from pannier.holding.filling import fill, followed
from pannier.holding.handover import Handovers
from pannier.holding.imports import Draft, Imports
from pannier.holding.snapshots import check_stays
from pannier.host.clock import Clock
from pannier.storage.blocking import in_thread
from pannier.storage.tree import rsync
from pannier.storage.tree.fingerprint import Fingerprint, fingerprint

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionWish:
    """What somebody asked for.

    Attributes:
        options: as they were typed.
        waits: for those who use the volume to end, as long as anybody reads the progress.
    """

    name: str
    options: Mapping[str, str]
    waits: bool
    actor: str


class Conversions:
    """Conversions on this node. One ends when nobody reads its progress any more."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        use: Use,
        handovers: Handovers,
        imports: Imports,
        room: RoomGuard,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self.cluster = cluster
        self.custody = custody
        self.drivers = drivers
        self.use = use
        self.handovers = handovers
        self.imports = imports
        self.clock = clock
        self.pace = pace
        self._room = room

    async def run(self, wish: ConversionWish) -> AsyncGenerator[ConversionProgress, None]:
        """Convert a volume that is held here, and report progress.

        Raises:
            VolumeNotFound; InvalidInput: an option cannot be read, or two do not go together.
            VolumeInUse: somebody uses it, and the wish does not wait.
            Conflict: nothing of it needs a copy; the volume is protected, on its way to another node or being converted, or was
                changed meanwhile; NotHolder: it is held elsewhere, or this node has no such driver.
            PoolFull: there is no room for it. StorageError: something cannot be read or written.
            StoreUnavailable: nothing was changed. OutcomeUnknown: it may be converted.
        """
        await rsync.check_installed()
        volume = (await self.cluster.fresh(wish.name)).record
        if volume.grant.node != self.cluster.node:
            raise NotHolder(
                f"volume {wish.name} is held by node {volume.grant.node}", remedy="ask again"
            )
        check_copies(wish.options, nodes=len(self.cluster.catalog.nodes()))
        spec = converted(volume, wish.options)
        if spec is None:
            raise Conflict(
                f"nothing of that needs a copy of volume {wish.name}",
                remedy=f"change it in place: pannier volume set {wish.name}",
            )
        job = _Conversion(wish, volume, spec, self)
        if not wish.waits:
            await job.check_unused()
        steps = followed(
            job.run(),
            name=f"convert {wish.name}",
            progress=job.progress,
            look=self.pace.conversion_look,
            check=lambda: self._check_room(job),
        )
        async with aclosing(steps):
            async for step in steps:
                yield step

    def _check_room(self, job: _Conversion) -> None:
        """Give up before the writers of other volumes have to stand still.

        Raises:
            PoolFull: the pool has no room for more.
        """
        if job.draft is not None and job.draft.driver.pool in self._room.short():
            raise PoolFull(
                f"the pool of node {self.cluster.node} has no room for a second {job.wish.name}; nothing was changed",
                remedy="make room: pannier volume trash shows what was removed; or enlarge the pool",
            )


@dataclass(slots=True)
class _Conversion:
    """One conversion.

    Attributes:
        volume: as it was when it began.
        spec: what it is to be.
        draft: the new volume, once there is something of it.
    """

    wish: ConversionWish
    volume: Volume
    spec: VolumeSpec
    around: Conversions
    draft: Draft | None = None
    phase: ConversionPhase = ConversionPhase.COPYING
    _users: list[str] = field(default_factory=list)
    _pause_seconds: float | None = None

    async def progress(self) -> ConversionProgress:
        """How far it is."""
        used, draft = 0, self.draft
        if draft is not None:
            with suppress(PannierError, OSError):  # it may just be removed again
                used = await draft.driver.used_bytes(draft.volume.id)
        return ConversionProgress(
            phase=self.phase,
            volume=self.wish.name,
            node=self.around.cluster.node,
            used_bytes=used,
            in_use_by=list(self._users),
            pause_seconds=self._pause_seconds,
            former=self.volume.id if self.phase is ConversionPhase.DONE else "",
        )

    @property
    def _source(self) -> Path:
        return self.around.drivers.of(self.volume).data_path(
            self.volume.id, self.volume.grant.epoch
        )

    async def run(self) -> None:
        """Do it. Raises the error that ended it; nothing is left of it then."""
        around = self.around
        async with around.imports.replacement(self.volume, self.spec) as draft:
            self.draft = draft
            async with around.custody.lock(self.volume):
                await self._attach()
            for _ in range(2 if self.wish.waits else 1):  # less is left for the pause
                await rsync.copy(self._source, draft.path, in_use=True, called=self.wish.name)
            while not await self._finished(draft):
                self.phase = ConversionPhase.WAITING
                await asyncio.sleep(around.pace.conversion_look)
            await around.imports.ended(draft)
        self.phase = ConversionPhase.DONE

    async def _attach(self) -> None:
        """Have the volume's files here. The caller has the lock."""
        volume = (await self.around.custody.take_up(self.volume)).record
        driver, epoch = self.around.drivers.of(volume), volume.grant.epoch
        await driver.unseal(volume.id, epoch=epoch)
        await driver.attach(volume.id, epoch=epoch, grow=False)

    async def check_unused(self) -> None:
        """Refuse while somebody uses the volume.

        Raises:
            VolumeInUse: it says what would happen.
        """
        around = self.around
        self._users = await around.use.users(self.volume)
        if self._users or await around.use.in_use(self.volume):
            used = await around.drivers.of(self.volume).used_bytes(self.volume.id)
            raise in_use(self.volume, self._users, used_bytes=used)

    async def _finished(self, draft: Draft) -> bool:
        """Do the rest once nobody uses the volume. Returns whether it is done."""
        around = self.around
        async with around.custody.lock(self.volume):
            try:
                await self.check_unused()
            except VolumeInUse:
                if not self.wish.waits:
                    raise
                return False
            since = around.clock.now()
            check_stays(self.volume, around.handovers)
            self.phase = ConversionPhase.REST
            await self._attach()
            await around.custody.take_down(self.volume)
        filled = await fill(draft, self._source, imports=around.imports, comparing=self._compares)
        async with around.custody.lock(self.volume):
            await self._check_as_it_was(filled)
            await around.imports.publish_instead(draft, self._exchange)
        self._pause_seconds = around.clock.now() - since
        return True

    async def _check_as_it_was(self, filled: Fingerprint) -> None:
        """Make sure that nobody has used the volume since it was compared. The caller has the lock.

        Raises:
            Conflict: somebody does, or has changed it.
        """
        around = self.around
        await around.drivers.check_disk(self.volume)
        await self._attach()
        what = (await in_thread(fingerprint, self._source)).changed_since(filled)
        users = await around.use.users(self.volume)
        if what or await around.use.in_use(self.volume):
            raise Conflict(
                f"volume {self.volume.name} was used while it was converted: {what or ', '.join(users)}",
                remedy="nothing was changed; stop that, and do it again",
            )
        await around.custody.take_down(self.volume)

    def _compares(self) -> None:
        self.phase = ConversionPhase.COMPARING

    async def _exchange(self, new: Volume) -> Volume:
        """Seal the volume, and give its name to the new one. If that certainly failed, it can be written again."""
        around, old = self.around, self.volume
        driver, epoch = around.drivers.of(old), old.grant.epoch
        try:
            await driver.seal(old.id, epoch=epoch)
            written = await self._commit(new)
        except OutcomeUnknown:
            raise
        except PannierError:
            await driver.unseal(old.id, epoch=epoch)
            raise
        around.cluster.catalog.remember(written.record, revision=written.revision)
        around.use.forget(old)
        log.info("volume.converted", volume=old.name, former=old.id, id=new.id, by=self.wish.actor)
        return written.record

    async def _commit(self, new: Volume) -> Versioned[Volume]:
        registry, what = self.around.cluster.registry, changes(self.volume.spec, self.spec)
        at, actor = self.around.clock.unix(), self.wish.actor

        async def read() -> Versioned[Volume]:
            return await self.around.cluster.fresh(self.wish.name)

        def decide(found: Volume) -> Volume:
            if (found.id, found.grant, found.spec) != (
                self.volume.id,
                self.volume.grant,
                self.volume.spec,
            ):
                raise Conflict(
                    f"volume {found.name} was changed while it was converted",
                    remedy="look at it again, and do it again: pannier volume show",
                )
            return exchanged(found, new, what, at=at, actor=actor)[0]

        async def write(record: Volume, found: Versioned[Volume]) -> Versioned[Volume]:
            _, removed = exchanged(found.record, new, what, at=at, actor=actor)
            return await registry.exchange_volume(record, expect=found.revision, removed=removed)

        try:
            return await registry.change(read, decide, write=write)
        except OutcomeUnknown as error:
            found = await self._found(error)
            if found.record.id != new.id:
                raise
            return found

    async def _found(self, error: OutcomeUnknown) -> Versioned[Volume]:
        """What has the name now, after an answer that never came.

        Raises:
            OutcomeUnknown: that cannot be read either.
        """
        try:
            return await self.around.cluster.fresh(self.wish.name)
        except PannierError as unread:
            raise OutcomeUnknown(
                f"volume {self.wish.name} may have been converted: {unread.message}",
                remedy=f"pannier volume show {self.wish.name}, when the store answers",
            ) from error
