"""Adding a new volume's record, once its data is on this node's disk: a record always has its data."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress

import structlog

from pannier.cluster.cluster import Cluster
from pannier.core.errors import (
    Conflict,
    OutcomeUnknown,
    PannierError,
    Stale,
    StoreUnavailable,
)
from pannier.core.options import check_same_options
from pannier.core.volume import Volume
from pannier.holding.import_notes import BegunImports
from pannier.storage.base import CloningDriver, Driver, FileSystemDriver, LocalCopy

log = structlog.get_logger(__name__)


def new_volume_id(name: str) -> str:
    """An id for a volume that is being made."""
    return f"{name}.{secrets.token_hex(4)}"


class Adding:
    """Adds records of volumes that are held here."""

    def __init__(self, *, cluster: Cluster, begun_imports: BegunImports) -> None:
        self._cluster = cluster
        self._begun_imports = begun_imports

    async def refuse_in_a_strange_store(self, name: str, driver: Driver) -> None:
        """Refuse if the store may have lost records: a new volume must not replace one with data.

        Raises:
            StoreUnavailable: the store is empty, or another cluster's; Conflict: this node has data
            of a volume of this name that the store does not know, or it is just being imported.
        """
        self._begun_imports.check_free(name)
        await self.check_store(f"volume {name} was not created")
        alike = {one for one in await driver.volumes() if one.rpartition(".")[0] == name}
        if alike and isinstance(driver, CloningDriver):
            alike -= await driver.unborn()
        if not alike:
            return
        known = await self._cluster.registry.known_ids()
        for unknown in sorted(alike - known):
            copy = await driver.inspect(unknown)
            if copy.generations or await _has_content(driver, unknown, copy):
                raise Conflict(
                    f"node {self._cluster.node} has data of a volume {name} ({unknown}) that the "
                    f"store does not know; no new one is made in its place",
                    remedy="was the store restored from an older snapshot? See pannier doctor",
                )

    async def check_store(self, otherwise: str) -> None:
        """Make sure that the store is this cluster's.

        Args:
            otherwise: what was not done, for people.

        Raises:
            StoreUnavailable: it is empty, or another cluster's.
        """
        cluster = self._cluster.catalog.cluster
        found = await self._cluster.registry.cluster()
        if cluster is not None and (found is None or found.id != cluster):
            raise StoreUnavailable(
                f"the store is {'empty' if found is None else 'another cluster' + chr(39) + 's'}; {otherwise}",
                remedy="restore the store from a snapshot; the volumes' data is on the nodes",
            )

    async def add(
        self, volume: Volume, driver: Driver, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        """Write a new volume's record. Where that certainly failed, its data is removed.

        Returns:
            The record; that of another volume where somebody was faster and its options are the same.

        Raises:
            AlreadyExists: somebody was faster, with other options. StoreUnavailable: nothing was made.
            OutcomeUnknown: it may be there, or come yet; its data stays.
        """
        try:
            written = await self._cluster.registry.add_volume(volume)
        except Stale:
            await driver.delete(volume.id)
            winner = (await self._cluster.fresh(volume.name)).record
            check_same_options(winner, options)
            return winner
        except StoreUnavailable:
            await driver.delete(volume.id)
            raise
        except OutcomeUnknown as error:
            return await self._settle(volume, error)
        self._cluster.catalog.remember(written.record, revision=written.revision)
        node = self._cluster.node
        log.info("volume.created", volume=volume.name, id=volume.id, node=node, by=actor)
        return written.record

    async def _settle(self, volume: Volume, error: OutcomeUnknown) -> Volume:
        with suppress(PannierError):
            found = await self._cluster.registry.volume(volume.name)
            if found and found.record.id == volume.id:
                self._cluster.catalog.remember(found.record, revision=found.revision)
                return found.record
        # Not there now, but a commit that is still on its way may make it: the data stays.
        raise error


async def _has_content(driver: Driver, volume_id: str, copy: LocalCopy) -> bool:
    """Whether any live tree has an entry, or is sealed: an unfinished creation leaves an empty one."""
    if any(tree.sealed for tree in copy.live):
        return True
    if isinstance(driver, FileSystemDriver):  # it may be encrypted, and nobody has its key
        return any([await driver.has_files(volume_id, epoch=tree.epoch) for tree in copy.live])
    for tree in copy.live:
        await driver.attach(volume_id, epoch=tree.epoch, grow=False)
    try:
        paths = [driver.data_path(volume_id, tree.epoch) for tree in copy.live]
        return await asyncio.to_thread(lambda: any(any(path.iterdir()) for path in paths))
    finally:
        for tree in copy.live:  # nobody else would: the cluster does not know the volume
            await driver.detach(volume_id, epoch=tree.epoch)
