"""Creating, removing and restoring volumes."""

from __future__ import annotations

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
from pannier.core.clone_source import CloneSource
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
from pannier.core.options import FROM, check_copies, check_same_options, parse_options
from pannier.core.placement import place_holder, place_replicas
from pannier.core.volume import Grant, HistoryEntry, Volume, VolumeSpec, check_name
from pannier.holding.adding import Adding, new_volume_id
from pannier.holding.clones import Clones
from pannier.holding.handover import Handovers
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.host.clock import Clock
from pannier.storage.base import RootAttributes

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
        adding: Adding,
        volume_keys: KeysOfVolumes,
        clones: Clones,
        handovers: Handovers,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._use = use
        self._adding = adding
        self._volume_keys = volume_keys
        self._clones = clones
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
        """Make a volume: an empty one on the node that the option ``nodes`` wishes for, else here; or, with the option ``from``, a
        clone.

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
        if FROM.name in options:
            source = CloneSource.parse(options[FROM.name])
            return await self._clones.create(source, name, options, actor=actor)
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
        """Make an empty tree, and then the record.

        A crash in between leaves an empty tree under an id that nobody knows (doctor lists it).
        """
        volume = await self.new_record(name, spec, detail=f"by {actor}")
        driver = self._drivers.of(volume)
        await self._adding.refuse_in_a_strange_store(name, driver)
        root = RootAttributes(uid=spec.uid, gid=spec.gid, mode=spec.mode)
        with self._volume_keys.begun(volume):
            await driver.create(volume.id, epoch=1, root=root, size_bytes=spec.size)
            return await self._adding.add(volume, driver, options, actor=actor)

    async def new_record(self, name: str, spec: VolumeSpec, *, detail: str) -> Volume:
        """The record of a new volume that this node is to hold, with a key if it is to be encrypted; nothing is written.

        Args:
            detail: whose doing it is, for its history.

        Raises:
            Conflict: no other node can take a copy that is asked for.
            KeyMissing: no node that answers has the cluster's key. StoreUnavailable: it could not be asked for that.
        """
        node = self._cluster.node
        replicas: tuple[str, ...] = ()
        if spec.copies > 1:
            nodes = candidates_of(self._cluster)
            replicas = place_replicas(spec, nodes, holder=node)
        volume = Volume(
            name=name,
            id=new_volume_id(name),
            spec=spec,
            grant=Grant(node, 1),
            replicas=replicas,
            created_at=self._clock.unix(),
        )
        if spec.encrypted:
            volume = volume.encrypted_with(await self._volume_keys.new(volume.id))
        return volume.with_entry(
            HistoryEntry(at=volume.created_at, what="created", node=node, epoch=1, detail=detail)
        )

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
