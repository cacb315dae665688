"""Clones: new volumes that begin as what another one is, or was in a snapshot.

A clone is made where the other volume is held, in this order: a generation of that; the same bytes as the first generation of the
clone, and its live tree; the clone's record. Until the record is there, a note beside its data says so. If it never comes, as
after a power cut, the id is given up in the store, which refuses a record that is still on its way; then the data is deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers, holder_unreachable
from pannier.copies.replicated import Replicated
from pannier.copies.replication import Replicator, candidates_of
from pannier.core.clone_origin import CloneOrigin
from pannier.core.clone_source import CloneSource
from pannier.core.clones import place_clone, spec_of_clone
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    PannierError,
    PeerUnavailable,
    VolumeNotFound,
)
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.options import FROM, check_copies
from pannier.core.pace import HoldingPace
from pannier.core.volume import Beginning, Grant, HistoryEntry, Volume, check_name
from pannier.holding.adding import Adding, new_volume_id
from pannier.holding.snapshots import Snapshots
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.host.clock import Clock
from pannier.storage.base import CloningDriver

log = structlog.get_logger(__name__)


class Clones:
    """Makes clones, and tidies away what was begun of them."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        replicator: Replicator,
        snapshots: Snapshots,
        adding: Adding,
        volume_keys: KeysOfVolumes,
        peers: Peers,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._replicator = replicator
        self._snapshots = snapshots
        self._adding = adding
        self._volume_keys = volume_keys
        self._peers = peers
        self._clock = clock
        self._pace = pace
        self._making: set[str] = set()
        """Ids of those that are just being made here."""

    async def clone(
        self, source: CloneSource, name: str, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        """As :meth:`create`, of a name that must be free.

        Raises:
            AlreadyExists: there is a volume of that name.
        """
        check_name(name)
        try:
            await self._cluster.fresh(name)
        except VolumeNotFound:
            return await self.create(source, name, options, actor=actor)
        raise AlreadyExists(f"volume {name} exists", remedy="use another name")

    async def create(
        self, source: CloneSource, name: str, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        """Make a volume that begins as what another one is, or was. See :meth:`create_here`.

        Raises:
            PeerUnavailable: the holder of that one does not answer.
        """
        check_name(name)
        check_copies(options, nodes=len(self._cluster.catalog.nodes()))
        volume = (await self._cluster.fresh(source.volume)).record
        if volume.grant.node == self._cluster.node:
            return await self.create_here(source, name, options, actor=actor)
        holder = self._cluster.holder_of(volume)
        peer = self._peers.to(holder)
        try:
            await peer.peer_clone(
                source.volume,
                new=name,
                snapshot=source.snapshot or None,
                options=options,
                actor=actor,
            )
        except PeerUnavailable as error:
            raise holder_unreachable(volume, error) from error
        return (await self._cluster.fresh(name)).record

    async def create_here(
        self, source: CloneSource, name: str, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        """Make a volume that begins as what another one, which is held here, is or was in a snapshot.

        Without a snapshot it has all that was written before the call. It may be in use. The volume is returned if it was made
        meanwhile of the same, with the same options.

        Raises:
            VolumeNotFound, NotFound: there is no such volume, or no such snapshot of it. AlreadyExists.
            InvalidInput: an option cannot be, or not for this clone.
            Conflict: the other volume is no image, this node does not have the snapshot or may get no new volume, or there are not
                enough nodes for the copies; NotHolder, Stale.
            StorageError: the disk refused, or has no room (PoolFull). Then nothing is left.
            StoreUnavailable: nothing is left. OutcomeUnknown: the volume may be there, or come yet.
        """
        options = {**options, FROM.name: str(source)}
        volume = (await self._cluster.fresh(source.volume)).record
        spec_of_clone(volume, options)  # before anything is done
        driver = self._driver(volume)
        await self._adding.refuse_in_a_strange_store(name, driver)
        with self._as_being_made(name) as volume_id:
            try:
                async with self._custody.lock(volume):  # nothing is tidied away meanwhile
                    volume = (await self._custody.take_up(volume)).record
                    made = await self._planned(
                        volume, source, name, volume_id, options, actor=actor
                    )
                    await self._share(volume, made, driver)
                await self._begin(volume, made, driver)
                await self._arrives(volume, made)
            except BaseException:
                await driver.delete(volume_id)
                raise
            found = await self._adding.add(made, driver, options, actor=actor)
            if found.id == volume_id:
                await driver.born(volume_id)
        return found

    def _driver(self, volume: Volume) -> CloningDriver:
        driver = self._drivers.of(volume)
        if not isinstance(driver, CloningDriver):
            raise Conflict(f"the driver of volume {volume.name} makes no clones")
        return driver

    @contextmanager
    def _as_being_made(self, name: str) -> Iterator[str]:
        """The id of a clone, which is not taken for one that was cut off as long as the block lasts."""
        volume_id = new_volume_id(name)
        self._making.add(volume_id)
        try:
            yield volume_id
        finally:
            self._making.discard(volume_id)

    async def _planned(
        self,
        volume: Volume,
        source: CloneSource,
        name: str,
        volume_id: str,
        options: Mapping[str, str],
        *,
        actor: str,
    ) -> Volume:
        """The clone's record. The generation that it is made of is here."""
        spec = spec_of_clone(volume, options)
        replicas = place_clone(
            volume,
            spec,
            candidates_of(self._cluster),
            wanted=source,
            nodes_asked="nodes" in options,
        )
        origin = CloneOrigin(
            volume=volume.name,
            volume_id=volume.id,
            snapshot=source.snapshot,
            generation=await self._generation(volume, source),
        )
        made = Volume(
            name=name,
            id=volume_id,
            spec=spec,
            grant=Grant(self._cluster.node, 1),
            replicas=replicas,
            base=origin.base,
            lineage=(Beginning(1, origin.base, OnTop.NOTHING),),
            created_at=self._clock.unix(),
            origin=origin,
        )
        key = await self._volume_keys.of_clone(volume, volume_id)
        shared = ""
        if key is not None:
            made, shared = made.encrypted_with(key), ", with the same key"
        return made.with_entry(
            HistoryEntry(
                at=made.created_at,
                what="created",
                node=self._cluster.node,
                epoch=1,
                detail=f"as a clone of {origin.described}{shared}, by {actor}",
            )
        )

    async def _generation(self, volume: Volume, source: CloneSource) -> Generation:
        if source.snapshot:
            wanted = volume.snapshot(source.snapshot).generation
            if wanted not in (await self._drivers.of(volume).inspect(volume.id)).generations:
                raise Conflict(
                    f"node {self._cluster.node}, which holds volume {volume.name}, does not have its snapshot {source.snapshot}",
                    remedy=f"move it to a node that has it: pannier volume snapshot show {source.volume} {source.snapshot}",
                )
            return wanted
        return await self._snapshots.make_generation(volume)

    async def _share(self, volume: Volume, made: Volume, driver: CloningDriver) -> None:
        """Make the clone's first generation: the other volume is not needed any more then."""
        assert made.origin is not None
        generation, base = made.origin.generation, made.origin.base
        await driver.clone(volume.id, generation, volume=made.id, base=base, unborn=True)

    async def _begin(self, volume: Volume, made: Volume, driver: CloningDriver) -> None:
        """Make the clone's live tree. That may take a while where it becomes larger."""
        base = made.base
        assert base is not None
        size, before = made.spec.size, volume.spec.size
        if size is not None and before is not None and size > before:
            await driver.enlarge(made.id, base, epoch=1, size_bytes=size, more_bytes=size - before)
        else:
            await driver.promote(made.id, base, epoch=1, size_bytes=size, on_top=OnTop.NOTHING)

    async def _arrives(self, volume: Volume, made: Volume) -> None:
        """Wait until the nodes that shall have a copy of the clone have the generation that it was made of, as far as they are in
        sync: they make theirs of that. But not for long: one that lacks it is sent everything."""
        assert made.origin is not None
        if made.origin.snapshot or (replicated := self._replicator.known(volume)) is None:
            return
        wanted, until = made.origin.generation, self._clock.now() + self._pace.clone
        waited_for = set(made.replicas) & set(volume.in_sync)
        while not replicated.ended and self._clock.now() < until:
            if not any(_lacks(replicated, node, wanted) for node in waited_for):
                return
            await asyncio.sleep(self._pace.clone_look)

    # -- what was cut off ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Tidy away what was begun of clones that never got a record, for ever: run as a task."""
        while True:
            for driver in self._drivers:
                if isinstance(driver, CloningDriver):
                    await self._settle_all(driver)
            await asyncio.sleep(self._pace.unborn_look)

    async def _settle_all(self, driver: CloningDriver) -> None:
        try:
            unborn = sorted(await driver.unborn() - self._making)
        except PannierError as error:
            log.info("clones.not-settled", error=str(error))
            return
        for volume_id in unborn:
            try:
                await self._settle(volume_id, driver)
            except PannierError as error:
                log.info("clone.not-settled", id=volume_id, error=str(error))

    async def _settle(self, volume_id: str, driver: CloningDriver) -> None:
        """A clone has its record, or never gets one.

        Raises:
            Stale: somebody has just made a volume of its name. StoreUnavailable; OutcomeUnknown.
        """
        name = volume_id.rpartition(".")[0]
        known, registry = self._cluster.catalog.volume(name), self._cluster.registry
        found = await registry.volume(name)
        names = {each.id for each in (known, found.record if found else None) if each is not None}
        if volume_id in names or await registry.trashed(volume_id) is not None:
            await driver.born(volume_id)
            return
        if await registry.purge_of(volume_id) is None:
            await self._adding.check_store(f"what was begun of volume {name} stays")
            entry = HistoryEntry(
                at=self._clock.unix(),
                what="purged",
                node=self._cluster.node,
                epoch=1,
                detail="its making as a clone was cut off: nobody ever had it",
            )
            await registry.give_up_unborn(name, volume_id, beside=found, entry=entry)
        await driver.delete(volume_id)
        log.info("clone.given-up", volume=name, id=volume_id)


def _lacks(replicated: Replicated, node: str, wanted: Generation) -> bool:
    progress = replicated.progress.get(node)
    confirmed = progress.generation if progress is not None else None
    return confirmed is None or confirmed.number < wanted.number
