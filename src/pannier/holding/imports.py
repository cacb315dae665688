"""New volumes that begin with somebody else's files.

The tree is made and filled first, under an id that nobody knows; the record comes last, by compare-and-swap, and gives the
volume its name. So nobody can use it before it is whole. This node has noted the id (:mod:`pannier.holding.import_notes`):
what a power cut or a killed daemon leaves is removed, or, where it was whole already, gets its record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.core.errors import (
    AlreadyExists,
    OutcomeUnknown,
    PannierError,
    Stale,
    VolumeNotFound,
)
from pannier.core.importing import ImportNote, check_begins_here
from pannier.core.options import check_copies, parse_options
from pannier.core.volume import HistoryEntry, Volume, VolumeSpec, check_name
from pannier.holding.adding import Adding
from pannier.holding.import_notes import BegunImports
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.holding.volumes import Volumes
from pannier.host.clock import Clock
from pannier.host.files import sync_filesystem_of
from pannier.host.records import decode, encode
from pannier.storage.base import Driver, RootAttributes
from pannier.storage.blocking import in_thread, told_as_storage_error

log = structlog.get_logger(__name__)

EPOCH = 1
"""The first of every volume."""


@dataclass(slots=True)
class Draft:
    """A volume that is being filled.

    Attributes:
        volume: the record that it is to have.
        note: what this node has noted of it.
        kept: whether its tree stays: the cluster knows it, or may know it.
    """

    volume: Volume
    driver: Driver
    note: ImportNote
    kept: bool = False

    @property
    def path(self) -> Path:
        """Its files, while it is attached."""
        return self.driver.data_path(self.volume.id, EPOCH)


class Imports:
    """Makes volumes that get their names when they are whole, and puts away what became of none."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        volumes: Volumes,
        adding: Adding,
        volume_keys: KeysOfVolumes,
        begun: BegunImports,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._volumes = volumes
        self._adding = adding
        self._volume_keys = volume_keys
        self._begun = begun
        self._clock = clock
        self._here: set[str] = set()
        """Ids of those that this run of the daemon works on."""

    @asynccontextmanager
    async def draft(
        self, name: str, options: Mapping[str, str], *, origin: str, actor: str
    ) -> AsyncIterator[Draft]:
        """A new volume on this node, attached, to be filled in the block and published there. Else nothing of it stays.

        Args:
            origin: where its files come from, for people.

        Raises:
            AlreadyExists: the name is taken. Conflict: it is being imported, is to be elsewhere, or no node can take a copy.
            InvalidInput: an option; StoreUnavailable; StorageError, PoolFull: it cannot be made.
        """
        driver, volume = await self._prepare(name, options, detail=f"from {origin}, by {actor}")
        note = ImportNote(name=name, driver=driver.name)
        async with self._drafted(Draft(volume, driver, note)) as draft:
            yield draft

    @asynccontextmanager
    async def replacement(self, old: Volume, spec: VolumeSpec) -> AsyncIterator[Draft]:
        """As :meth:`draft`, with what is to be published in place of a volume (:meth:`publish_instead`).

        Raises:
            NotHolder: this node has no such driver. Conflict: it is being converted already, or no node can take a copy.
            StorageError, PoolFull: it cannot be made.
        """
        self._begun.check_free(old.name)
        volume = await self._volumes.new_record(old.name, spec, detail="")
        driver = self._drivers.of(volume)
        note = ImportNote(name=old.name, driver=driver.name, replaces=old.id)
        async with self._drafted(Draft(volume, driver, note)) as draft:
            yield draft

    @asynccontextmanager
    async def _drafted(self, draft: Draft) -> AsyncIterator[Draft]:
        volume, driver, note = draft.volume, draft.driver, draft.note
        self._here.add(volume.id)
        try:
            await self._begun.put(volume.id, note)
            try:
                root = RootAttributes(
                    uid=volume.spec.uid, gid=volume.spec.gid, mode=volume.spec.mode
                )
                with self._volume_keys.begun(volume):
                    await driver.create(
                        volume.id, epoch=EPOCH, root=root, size_bytes=volume.spec.size
                    )
                    await driver.attach(volume.id, epoch=EPOCH, grow=False)
                    yield draft
            finally:
                if not draft.kept and not draft.note.service:
                    await self._remove(volume.id, draft.note, driver)
        finally:
            self._here.discard(volume.id)

    async def _prepare(
        self, name: str, options: Mapping[str, str], *, detail: str
    ) -> tuple[Driver, Volume]:
        check_name(name)
        check_copies(options, nodes=len(self._cluster.catalog.nodes()))
        await self._check_free(name)
        await self._drivers.opened()
        spec = parse_options(options, default_driver=self._drivers.default)
        check_begins_here(options, nodes=spec.nodes, here=self._cluster.node)
        volume = await self._volumes.new_record(name, spec, detail=detail)
        driver = self._drivers.of(volume)
        await self._adding.refuse_in_a_strange_store(name, driver)
        return driver, volume

    async def _check_free(self, name: str) -> None:
        self._begun.check_free(name)
        try:
            taken = (await self._cluster.fresh(name)).record
        except VolumeNotFound:
            return
        raise _is_taken(taken)

    async def renew(self, draft: Draft) -> None:
        """Bring everything to the disk, so that what is read next comes from there.

        Raises:
            StorageError: the disk refused something.
        """
        with told_as_storage_error(f"write out volume {draft.volume.name}"):
            await in_thread(sync_filesystem_of, draft.path)
        await draft.driver.detach(draft.volume.id, epoch=EPOCH)
        await draft.driver.attach(draft.volume.id, epoch=EPOCH, grow=False)

    async def note(self, draft: Draft, note: ImportNote) -> None:
        """Change what is noted of a draft.

        Raises:
            StorageError: it cannot be written.
        """
        await self._begun.put(draft.volume.id, note)
        draft.note = note

    async def publish(self, draft: Draft) -> Volume:
        """Give a whole volume its name. The cluster has it from then on, and nobody uses it yet.

        Raises:
            AlreadyExists: the name was taken meanwhile. StoreUnavailable: it was not published.
            OutcomeUnknown: it may have been; it is published once the store answers.
            StorageError: the disk refused something.
        """
        return await self._publish(draft, self._add)

    async def publish_instead(
        self, draft: Draft, commit: Callable[[Volume], Awaitable[Volume]]
    ) -> Volume:
        """Give a whole volume the name of the one that it replaces, by ``commit``, which gets the record and returns it as it was
        written.

        Raises:
            OutcomeUnknown: it may have it; :meth:`settle` finds that out. PannierError: it has not; StorageError: the disk refused.
        """
        return await self._publish(draft, commit)

    async def _publish(self, draft: Draft, commit: Callable[[Volume], Awaitable[Volume]]) -> Volume:
        volume, driver = draft.volume, draft.driver
        if driver.generations_in_use:
            await driver.snapshot(volume.id, epoch=EPOCH)
        else:
            await self.renew(draft)
        await driver.detach(volume.id, epoch=EPOCH)
        await self.note(draft, replace(draft.note, record=encode(volume).decode()))
        draft.kept = True
        try:
            return await commit(volume)
        except OutcomeUnknown:
            raise
        except PannierError:
            draft.kept = False
            raise

    async def _add(self, volume: Volume) -> Volume:
        try:
            written = await self._cluster.registry.add_volume(volume)
        except (Stale, OutcomeUnknown) as error:
            found = await self._found(volume, error)
            if found is None:
                raise
            if found.id != volume.id:
                raise _is_taken(found) from error
            return found
        self._cluster.catalog.remember(written.record, revision=written.revision)
        log.info("volume.imported", volume=volume.name, id=volume.id, node=self._cluster.node)
        return written.record

    async def _found(self, volume: Volume, error: PannierError) -> Volume | None:
        """What has the name now; None where nothing has. After an unknown outcome, only what is there is an answer."""
        try:
            found = await self._cluster.registry.volume(volume.name)
        except PannierError as unread:
            raise OutcomeUnknown(
                f"volume {volume.name} may have been made: {unread.message}",
                remedy=f"pannier volume show {volume.name}, when the store answers",
            ) from error
        if found is None:
            return None
        self._cluster.catalog.remember(found.record, revision=found.revision)
        return found.record

    async def ended(self, draft: Draft) -> None:
        """Nothing is left to be done for a draft that was published.

        Raises:
            StorageError: this cannot be written; the next start of the daemon finds it out.
        """
        await self._begun.drop(draft.volume.id)

    async def _remove(self, volume_id: str, note: ImportNote, driver: Driver) -> None:
        """Remove a tree that the cluster does not know. What cannot be removed now is later (:meth:`settle`)."""
        try:
            await self._drop(volume_id, note, driver)
        except (PannierError, OSError) as error:
            log.warning("import.not-removed", id=volume_id, error=str(error))

    async def _drop(self, volume_id: str, note: ImportNote, driver: Driver) -> None:
        if note.record:  # it must not be published after all, if it cannot be removed now
            await self._begun.put(volume_id, replace(note, record=""))
        await driver.detach(volume_id, epoch=EPOCH)
        await driver.delete(volume_id)
        await self._begun.drop(volume_id)

    async def without_service(self, volume_id: str, note: ImportNote) -> ImportNote:
        """The service of an import that is :meth:`left` has tasks again. Returns what is noted then.

        Raises:
            StorageError: this cannot be written.
        """
        note = replace(note, service="", replicas=0)
        await self._begun.put(volume_id, note)
        return note

    def left(self) -> Mapping[str, ImportNote]:
        """Imports that nobody works on any more: an earlier run of the daemon began them, or they could not be ended."""
        return {key: note for key, note in self._begun.all().items() if key not in self._here}

    async def settle(self, volume_id: str, note: ImportNote) -> None:
        """End an import that is :meth:`left`: one that was whole gets its record, anything else is removed.

        A record that was sent when power failed may still be on its way. So its name is asked for once more, and what comes of
        that holds: only one of two can be the first.

        Raises:
            PannierError: it is tried again later.
        """
        driver = self._drivers.get(note.driver)
        if driver is None:
            return  # its pool cannot be opened yet
        if note.record and await self._is_known(volume_id, note):
            await self._begun.drop(volume_id)
        else:
            await self._drop(volume_id, note, driver)

    async def _is_known(self, volume_id: str, note: ImportNote) -> bool:
        """Whether the cluster knows the volume, if need be from now on. False: it never will."""
        if volume_id in await self._cluster.registry.known_ids():  # in the trash, perhaps
            return True
        if note.replaces:
            await self._give_up(volume_id, note)
            return False
        remedy = "see pannier doctor for data of no volume"
        volume = decode(note.record.encode(), Volume, what=f"import {volume_id}", remedy=remedy)
        try:
            await self._add(volume)
        except AlreadyExists:
            log.info("import.name-taken", volume=note.name, id=volume_id)
            return False
        return True

    async def _give_up(self, volume_id: str, note: ImportNote) -> None:
        """See that a replacement never gets its name, not even by a change that is still on its way.

        Raises:
            Stale: the name has just changed hands. StoreUnavailable; OutcomeUnknown.
        """
        registry = self._cluster.registry
        await self._adding.check_store(f"what was begun of volume {note.name} stays")
        entry = HistoryEntry(
            at=self._clock.unix(),
            what="purged",
            node=self._cluster.node,
            epoch=EPOCH,
            detail="its conversion was cut off: nobody ever had it",
        )
        found = await registry.volume(note.name)
        if found is not None and found.record.id == volume_id:
            raise Stale(f"volume {note.name} was converted meanwhile", remedy="this is seen anew")
        await registry.give_up_unborn(note.name, volume_id, beside=found, entry=entry)


def _is_taken(found: Volume) -> AlreadyExists:
    return AlreadyExists(
        f"there is a volume {found.name} already, on node {found.grant.node}; nothing was changed",
        remedy=f"choose another name, or remove that one: pannier volume rm {found.name}",
    )
