"""Creating, removing and restoring volumes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.contract.peers import Peers, holder_unreachable
from pannier.copies.replication import candidates_of
from pannier.core.errors import (
    Conflict,
    OutcomeUnknown,
    PeerUnavailable,
    Stale,
    StorageError,
    StoreUnavailable,
    VolumeInUse,
    VolumeNotFound,
)
from pannier.core.options import check_copies, check_same_options, parse_options
from pannier.core.placement import place_holder, place_replicas
from pannier.core.volume import Grant, HistoryEntry, Volume, VolumeSpec, check_name
from pannier.holding.handover import Handovers
from pannier.host.clock import Clock
from pannier.storage.base import Driver, LocalCopy, RootAttributes

log = structlog.get_logger(__name__)


class Volumes:
    """The life of a volume: from creation to the trash and back."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        use: Use,
        handovers: Handovers,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._use = use
        self._handovers = handovers
        self._peers = peers
        self._clock = clock
        self._catalog = self._cluster.catalog
        self._registry = self._cluster.registry

    async def find(self, name: str) -> Volume:
        """A volume from memory, or from the store if it is not in memory.

        Raises:
            VolumeNotFound; StoreUnavailable: unknown here, and the store cannot be asked.
        """
        return self._catalog.volume(name) or (await self._cluster.fresh(name)).record

    async def create(self, name: str, options: Mapping[str, str], *, actor: str) -> Volume:
        """Make an empty volume on the node that the option ``nodes`` wishes for, else here.

        Where it exists and ``options`` ask for nothing different, it is returned as it is.
        """
        check_name(name)
        check_copies(options, nodes=len(self._catalog.nodes()))
        try:
            existing = await self.find(name)
        except VolumeNotFound:
            existing = None
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"volume {name} is not known here, and the cluster's store does not answer "
                f"({error.message}); nothing was created",
                remedy="try again when it does: pannier status shows its members",
            ) from error
        if existing:
            check_same_options(existing, options)
            return existing
        await self._drivers.opened()
        spec = parse_options(options, default_driver=self._drivers.default)
        candidates = candidates_of(self._cluster)
        chosen = place_holder(spec, candidates, here=self._cluster.node)
        if chosen != self._cluster.node:
            return await self._create_at(chosen, name, options, actor=actor)
        return await self.create_here(name, spec, options, actor=actor)

    async def _create_at(
        self, node: str, name: str, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        record = self._catalog.node(node)
        assert record is not None
        await self._peers.to(record).peer_create(name, options, actor=actor)
        return (await self._cluster.fresh(name)).record

    async def create_here(
        self, name: str, spec: VolumeSpec, options: Mapping[str, str], *, actor: str
    ) -> Volume:
        """Make the tree first and the record second: a record always has its data.

        A crash in between leaves an empty tree under an id that nobody knows (doctor lists it).
        """
        node = self._cluster.node
        replicas: tuple[str, ...] = ()
        if spec.copies > 1:
            nodes = candidates_of(self._cluster)
            replicas = place_replicas(spec, nodes, holder=node)
        volume = Volume(
            name=name,
            id=f"{name}.{secrets.token_hex(4)}",
            spec=spec,
            grant=Grant(node, 1),
            replicas=replicas,
            created_at=self._clock.unix(),
        )
        entry = HistoryEntry(
            at=volume.created_at, what="created", node=node, epoch=1, detail=f"by {actor}"
        )
        volume = volume.with_entry(entry)
        driver = self._drivers.of(volume)
        await self._refuse_in_a_strange_store(name, driver)
        root = RootAttributes(uid=spec.uid, gid=spec.gid, mode=spec.mode)
        await driver.create(volume.id, epoch=1, root=root, size_bytes=spec.size)
        try:
            written = await self._registry.add_volume(volume)
        except Stale:
            await driver.delete(volume.id)
            winner = (await self._cluster.fresh(name)).record
            check_same_options(winner, options)
            return winner
        except StoreUnavailable:
            await driver.delete(volume.id)
            raise
        except OutcomeUnknown as error:
            return await self._settle_creation(volume, error)
        self._catalog.remember(written.record, revision=written.revision)
        log.info("volume.created", volume=name, id=volume.id, node=node, by=actor)
        return written.record

    async def _refuse_in_a_strange_store(self, name: str, driver: Driver) -> None:
        """Refuse if the store may have lost records: an empty volume must not replace one with data.

        Raises:
            StoreUnavailable: the store is empty, or another cluster's; Conflict: this node has data
            of a volume of this name that the store does not know.
        """
        cluster = self._catalog.cluster
        found = await self._registry.cluster()
        if cluster is not None and (found is None or found.id != cluster):
            raise StoreUnavailable(
                f"the store is {'empty' if found is None else 'another cluster' + chr(39) + 's'}; "
                f"volume {name} was not created",
                remedy="restore the store from a snapshot; the volumes' data is on the nodes",
            )
        alike = {one for one in await driver.volumes() if one.rpartition(".")[0] == name}
        if not alike:
            return
        known = await self._registry.known_ids()
        for unknown in sorted(alike - known):
            copy = await driver.inspect(unknown)
            if copy.generations or await _has_content(driver, unknown, copy):
                raise Conflict(
                    f"node {self._cluster.node} has data of a volume {name} ({unknown}) that the "
                    f"store does not know; no empty one is made in its place",
                    remedy="was the store restored from an older snapshot? See pannier doctor",
                )

    async def _settle_creation(self, volume: Volume, error: OutcomeUnknown) -> Volume:
        found = await self._registry.volume(volume.name)
        if found and found.record.id == volume.id:
            self._catalog.remember(found.record, revision=found.revision)
            return found.record
        # Not there now, but a commit that is still on its way may make it: the tree stays.
        raise error

    async def remove(self, name: str, *, actor: str) -> Volume:
        """Move a volume to the trash, wherever it is held."""
        volume = (await self._cluster.fresh(name)).record
        volume.check_not_protected()
        if volume.grant.node == self._cluster.node:
            return await self.remove_here(name, volume.id, actor=actor)
        holder = self._cluster.holder_of(volume)
        try:
            await self._peers.to(holder).peer_remove(name, volume_id=volume.id, actor=actor)
        except PeerUnavailable as error:
            raise holder_unreachable(volume, error) from error
        self._catalog.forget(name)
        return replace(volume, removed_at=self._clock.unix())

    async def remove_here(self, name: str, volume_id: str, *, actor: str) -> Volume:
        """Move a volume that is held here to the trash; refused while anything uses it."""
        volume = (await self._cluster.fresh(name)).record
        if volume.id != volume_id or volume.grant.node != self._cluster.node:
            raise Stale(
                f"volume {name} has changed", remedy="look at it again: pannier volume show"
            )
        volume.check_not_protected()
        async with self._custody.lock(volume):
            if await self._use.in_use(volume):
                users = await self._use.users(volume)
                raise VolumeInUse(
                    f"volume {name} is in use on node {self._cluster.node} by {', '.join(users)}",
                    remedy="stop and remove that first; nothing was changed",
                )
            if running := self._handovers.of(volume):
                raise Conflict(
                    f"volume {name} is on its way to node {running.target.name}",
                    remedy="wait until it is there, then remove it",
                )
            return await self._to_trash(await self._custody.take_up(volume), actor=actor)

    async def _to_trash(self, fresh: Versioned[Volume], *, actor: str) -> Volume:
        volume, node = fresh.record, self._cluster.node
        volume.check_not_protected()  # it may be since a moment ago, and is not sealed then
        driver, epoch = self._drivers.of(volume), volume.grant.epoch
        await self._drivers.check_disk(volume)
        await self._custody.take_down(volume)
        try:
            await driver.seal(volume.id, epoch=epoch)
        except BaseException:
            await driver.unseal(volume.id, epoch=epoch)
            raise
        removed = replace(volume, removed_at=self._clock.unix()).with_entry(
            HistoryEntry(
                at=self._clock.unix(), what="removed", node=node, epoch=epoch, detail=f"by {actor}"
            )
        )
        try:
            await self._registry.trash_volume(removed, expect=fresh.revision)
        except (StoreUnavailable, StorageError):  # certainly not done
            await driver.unseal(volume.id, epoch=epoch)
            raise
        except OutcomeUnknown:
            # If it did not happen, or this is unknown, the tree stays sealed until the next Mount.
            if not any(found.record.id == volume.id for found in await self._registry.trash()):
                raise
        self._catalog.forget(volume.name)
        self._use.forget(volume)
        log.info("volume.removed", volume=volume.name, id=volume.id, by=actor)
        return removed

    async def trash(self) -> list[Volume]:
        """Removed volumes that can be restored."""
        return [found.record for found in await self._registry.trash()]

    async def restore(self, name_or_id: str, *, actor: str) -> Volume:
        """Bring a volume back from the trash; of several with one name, the one removed last.

        Raises:
            VolumeNotFound: nothing of that name or id is in the trash; Stale: its name is taken.
        """
        matching = [
            found
            for found in await self._registry.trash()
            if name_or_id in (found.record.name, found.record.id)
        ]
        if not matching:
            raise VolumeNotFound(
                f"there is nothing called {name_or_id} in the trash",
                remedy="pannier volume trash shows what can be restored",
            )
        found = max(matching, key=lambda item: item.record.removed_at or 0)
        volume = replace(found.record, removed_at=None, removed_in=None).with_entry(
            HistoryEntry(
                at=self._clock.unix(),
                what="restored",
                node=found.record.grant.node,
                epoch=found.record.grant.epoch,
                detail=f"by {actor}",
            )
        )
        try:
            back = await self._registry.restore_volume(volume, expect=found.revision)
        except Stale as error:
            if await self._registry.volume(volume.name):
                raise Stale(
                    f"there is another volume {volume.name} now",
                    remedy="remove that one first; the old one stays in the trash until then",
                ) from error
            raise
        except OutcomeUnknown:
            there = await self._registry.volume(volume.name)
            if there is None or there.record.id != volume.id:
                raise
            back = there
        self._catalog.remember(back.record, revision=back.revision)
        return back.record


async def _has_content(driver: Driver, volume_id: str, copy: LocalCopy) -> bool:
    """Whether any live tree has an entry, or is sealed: an unfinished creation leaves an empty one."""
    if any(tree.sealed for tree in copy.live):
        return True
    for tree in copy.live:
        await driver.attach(volume_id, epoch=tree.epoch, grow=False)
    try:
        paths = [driver.data_path(volume_id, tree.epoch) for tree in copy.live]
        return await asyncio.to_thread(lambda: any(any(path.iterdir()) for path in paths))
    finally:
        for tree in copy.live:  # nobody else would: the cluster does not know the volume
            await driver.detach(volume_id, epoch=tree.epoch)
