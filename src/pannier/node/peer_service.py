"""What this node does for other nodes: :class:`~pannier.contract.peers.Peer`."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Mapping

from pannier.agent.drivers import Drivers
from pannier.backups.work import BackupWork
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.bodies import (
    BlockSum,
    PeerTogetherOrder,
    PeerTogetherStep,
    RenewalOrder,
)
from pannier.contract.peers import Peer
from pannier.contract.together import TogetherView
from pannier.contract.usage import UsageSampleView
from pannier.contract.views import (
    BackupKeyView,
    BlocksView,
    CertificateView,
    CheckView,
    ConversionProgress,
    FileSystemView,
    HandoverReply,
    HookView,
    MemoryView,
    MoveProgress,
    NodeView,
    PiecesView,
    RemovalsView,
    RenewalReply,
    RoomUseView,
    SnapshotView,
)
from pannier.contract.volumes import LiveVolumeView, VolumeCopyView, VolumeView
from pannier.copies.differences import Differences
from pannier.copies.file_systems import FileSystems
from pannier.copies.mending import Mending
from pannier.copies.verification import Verification
from pannier.core.backup_plans import parse_plan
from pannier.core.clone_source import CloneSource
from pannier.core.errors import Conflict, InvalidInput
from pannier.core.generation import Generation
from pannier.core.hooks import Moment
from pannier.core.options import parse_options
from pannier.core.removals import Removals
from pannier.core.volume import Volume
from pannier.holding.clones import Clones
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.conversions import Conversions, ConversionWish
from pannier.holding.handover import Handovers
from pannier.holding.memories import remembered
from pannier.holding.one_moment import Together
from pannier.holding.promising import Promising
from pannier.holding.recovery import Recovery
from pannier.holding.rollback import Rollback
from pannier.holding.snapshots import Snapshots
from pannier.holding.takeover import Takeover
from pannier.holding.volumes import Volumes
from pannier.node.certificates import Certificates
from pannier.node.node_views import NodeViews
from pannier.node.removing import Removing
from pannier.node.room_use import RoomUse
from pannier.node.signing import Signing
from pannier.node.usage_log import UsageLog
from pannier.node.volume_views import VolumeViews
from pannier.pki.renewal import RenewalRequest
from pannier.swarm.services import Services


class PeerService:
    """Answers the other nodes, each through :meth:`by`."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        volume_views: VolumeViews,
        node_views: NodeViews,
        volumes: Volumes,
        room_use: RoomUse,
        usage_log: UsageLog,
        handovers: Handovers,
        recovery: Recovery,
        takeover: Takeover,
        promising: Promising,
        snapshots: Snapshots,
        together: Together,
        backup_work: BackupWork,
        cluster_keys: ClusterKeys,
        rollback: Rollback,
        conversions: Conversions,
        clones: Clones,
        verification: Verification,
        differences: Differences,
        mending: Mending,
        file_systems: FileSystems,
        services: Services,
        removing: Removing,
        certificates: Certificates,
        signing: Signing,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._volume_views = volume_views
        self._node_views = node_views
        self._volumes = volumes
        self._room_use = room_use
        self._usage_log = usage_log
        self._handovers = handovers
        self._recovery = recovery
        self._takeover = takeover
        self._promising = promising
        self._snapshots = snapshots
        self._together = together
        self._backup_work = backup_work
        self._cluster_keys = cluster_keys
        self._rollback = rollback
        self._conversions = conversions
        self._clones = clones
        self._verification = verification
        self._differences = differences
        self._mending = mending
        self._file_systems = file_systems
        self._services = services
        self._removing = removing
        self._certificates = certificates
        self._signing = signing
        self._asking = ""  # No node has this name: what only a node may ask is refused.

    def by(self, node: str) -> Peer:
        """This node, as the node of that name may call it."""
        service = copy.copy(self)
        service._asking = node
        return service

    async def peer_volume(self, name: str) -> LiveVolumeView | VolumeCopyView:
        """Live facts: the holder's, or on any other node whether it has a copy."""
        volume = self._volume(name)
        if volume.grant.node == self._cluster.node:
            return await self._volume_views.live(volume)
        return await self._volume_views.copy(volume)

    def _volume(self, name: str) -> Volume:
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return volume

    async def peer_memory(self, after: str) -> MemoryView:
        """What this node remembers of volumes' records."""
        return remembered(self._cluster.catalog.volumes(), after=after)

    async def peer_room_use(self) -> list[RoomUseView]:
        """What each volume takes of this node's pools."""
        return await self._room_use.here()

    async def peer_usage(self, name: str) -> list[UsageSampleView]:
        """What a volume took of this node's pools over time."""
        return self._usage_log.here(self._volume(name))

    async def peer_node(self) -> NodeView:
        """This node with its pool's figures, and what its engine can do."""
        return await self._node_views.here()

    async def peer_certificates(self) -> list[CertificateView]:
        """Another node lists all certificates."""
        return self._certificates.here()

    async def peer_renew(self, order: RenewalOrder) -> RenewalReply:
        """Another node needs a certificate renewed, and the authority is here."""
        request = RenewalRequest(order.certificate, order.csr)
        return RenewalReply(certificate=await self._signing.renew_here(request))

    async def peer_handover(self, name: str, *, epoch: int) -> HandoverReply:
        """Another node wants the volume."""
        return await self._handovers.asked(name, epoch=epoch, peer=self._asking)

    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None:
        """Another node was asked to remove a volume that is held here."""
        await self._volumes.remove_here(name, volume_id, actor=actor)

    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str
    ) -> VolumeView:
        """Another node needs a volume whose holder is gone, and this one has the best copy."""
        if generation is None:
            return self._volume_views.listed(await self._takeover.take(name, epoch=epoch))
        volume = await self._recovery.take(
            name, epoch=epoch, generation=Generation.parse(generation), actor=actor
        )
        return self._volume_views.listed(volume)

    async def peer_verify(self, name: str, *, generation: str | None) -> CheckView:
        """Another node was asked to have all copies of a volume read."""
        wanted = Generation.parse(generation) if generation else None
        return await self._verification.here(name, wanted)

    async def peer_pieces(
        self, name: str, *, generation: str, start: int, end: int | None, piece_bytes: int
    ) -> PiecesView:
        """Another node looks for what the copies differ in."""
        return await self._differences.here(
            self._volume(name), generation=generation, start=start, end=end, piece_bytes=piece_bytes
        )

    async def peer_blocks(
        self, name: str, *, generation: str, blocks: list[BlockSum]
    ) -> BlocksView:
        """Another node mends its copy."""
        return await self._mending.here(self._volume(name), generation=generation, blocks=blocks)

    async def peer_check(self, name: str) -> FileSystemView:
        """Another node was asked to check the file system in all copies of a volume."""
        return await self._file_systems.here(name)

    async def peer_set_aside(self, name: str, *, epoch: int) -> CheckView:
        """Another node has compared the copies, and this one is not what the holder has."""
        return await self._verification.set_aside(name, epoch=epoch)

    async def peer_lost_copy(self, name: str, *, epoch: int) -> None:
        """Another node has nothing of a volume that is held here, whatever the record says."""
        await self._verification.lost(name, epoch=epoch, peer=self._asking)

    async def peer_promise(self, volumes: Mapping[str, int], *, seconds: float) -> list[str]:
        """Another node holds these volumes and has lost the store."""
        return self._promising.promise(volumes, seconds=seconds, peer=self._asking)

    async def peer_removals(self, counts: Mapping[str, int]) -> RemovalsView:
        """Another node removes a node, or asks which were removed."""
        if counts:
            await self._removing.take_in(Removals(counts=counts))
        known = self._removing.known
        return RemovalsView(counts=dict(known.counts), ages=dict(known.ages), floor=known.floor)

    async def peer_create(self, name: str, options: Mapping[str, str], *, actor: str) -> VolumeView:
        """Another node was asked for a volume that shall be made here."""
        await self._drivers.opened()
        spec = parse_options(options, default_driver=self._drivers.default)
        if spec.nodes and self._cluster.node not in spec.nodes:
            raise InvalidInput(f"nodes={','.join(spec.nodes)} does not name {self._cluster.node}")
        volume = await self._volumes.create_here(name, spec, options, actor=actor)
        return self._volume_views.listed(volume)

    async def peer_snapshot(
        self,
        name: str,
        snapshot: str,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
    ) -> SnapshotView:
        """Another node was asked for a snapshot of a volume that is held here."""
        return await self._snapshots.create_here(
            name, snapshot, keep_seconds=keep_seconds, labels=labels, actor=actor
        )

    def peer_together(self, order: PeerTogetherOrder) -> AsyncGenerator[TogetherView, None]:
        """Another node leads snapshots at one moment, also of volumes that are held here."""
        return self._together.part(order, peer=self._asking)

    async def peer_together_step(self, order: PeerTogetherStep) -> None:
        """Another node says that such snapshots may go on."""
        await self._together.step(order, peer=self._asking)

    async def peer_roll_back(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        """Another node was asked to take a volume back that is held here."""
        return await self._rollback.roll_back_here(name, snapshot, actor=actor)

    def peer_convert(
        self, name: str, options: Mapping[str, str], *, waits: bool, actor: str
    ) -> AsyncGenerator[ConversionProgress, None]:
        """Another node was asked to convert a volume that is held here."""
        wish = ConversionWish(name=name, options=options, waits=waits, actor=actor)
        return self._conversions.run(wish)

    async def peer_clone(
        self,
        name: str,
        *,
        new: str,
        snapshot: str | None,
        options: Mapping[str, str],
        actor: str,
    ) -> VolumeView:
        """Another node was asked for a clone of a volume that is held here."""
        source = CloneSource(name, snapshot or "")
        made = await self._clones.create_here(source, new, options, actor=actor)
        return self._volume_views.listed(made)

    async def peer_snapshots(self, name: str) -> list[str]:
        """Another node asks which snapshots are here."""
        return await self._snapshots.here(name)

    async def peer_backup_key(self, id: str) -> BackupKeyView:
        """Another node lacks a key of the cluster's."""
        return self._cluster_keys.here(id)

    async def peer_take_key(self, id: str) -> None:
        """Another node is about to name a key."""
        await self._cluster_keys.take(id)

    def peer_put_backup(
        self, name: str, *, snapshot: str, target: str, plan: str | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        """Another node was asked for a backup, and this one has the snapshot."""
        return self._backup_work.put_there(
            name,
            snapshot=snapshot,
            target=target,
            plan=None if plan is None else parse_plan(plan),
            actor=actor,
        )

    async def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """Another node was asked to move a volume that is held here."""
        volume = (await self._cluster.fresh(name)).record
        if volume.grant.node != self._cluster.node:
            raise Conflict(
                f"volume {name} moved to node {volume.grant.node} meanwhile", remedy="ask again"
            )
        async for step in self._handovers.move(volume, node, wait_seconds=wait_seconds):
            yield step

    def peer_hook(self, service: str, *, hook: Moment) -> AsyncGenerator[HookView, None]:
        """Another node moves a service whose container runs here."""
        return self._services.hook_here(hook, service, peer=self._asking)
