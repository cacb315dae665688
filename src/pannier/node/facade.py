"""What people may ask of this node: :class:`~pannier.contract.operations.Operations`."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Mapping
from functools import partial

from pannier import __version__
from pannier.agent.use import Use
from pannier.backups.drills import Drills
from pannier.backups.targets import Targets
from pannier.backups.work import BackupWork
from pannier.cluster.cluster import Cluster
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.bodies import (
    BackupTargetOrder,
    JoinOrder,
    RenewalOrder,
    RotateOrder,
    UnlockOrder,
)
from pannier.contract.operations import LOCAL, Operations
from pannier.contract.usage import VolumeUsageView
from pannier.contract.views import (
    BackupTargetView,
    BackupView,
    CertificateView,
    CheckView,
    ClusterKeyView,
    ConversionProgress,
    DrillView,
    EventView,
    FileSystemView,
    FindingView,
    ImportProgress,
    JoinReply,
    MoveProgress,
    NodeView,
    PolicyView,
    PrunedView,
    RenewalReply,
    RoomUseView,
    ServiceMoveProgress,
    ServiceView,
    SnapshotView,
    StatusView,
    TakeOutProgress,
    TokenView,
    TrashView,
)
from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView, VolumeView
from pannier.contract.words import Level
from pannier.copies.file_systems import FileSystems
from pannier.copies.option_changes import OptionChanges
from pannier.copies.verification import Verification
from pannier.core.backup_plans import Retention
from pannier.core.clone_source import CloneSource
from pannier.core.errors import StorageError, Unavailable, VolumeNotFound
from pannier.core.importing import ImportSource
from pannier.holding.clones import Clones
from pannier.holding.looking import Looking
from pannier.holding.policies import Policies
from pannier.holding.recovery import Recovery
from pannier.holding.rollback import Rollback
from pannier.holding.snapshots import Snapshots
from pannier.holding.volumes import Volumes
from pannier.node.certificates import Certificates
from pannier.node.cleaning import Cleaning
from pannier.node.cluster_wide import ClusterWide
from pannier.node.converting import Converting
from pannier.node.diagnosis import explain
from pannier.node.doctor import Doctor
from pannier.node.events import changes, history_of, purged_events, recent
from pannier.node.importing import Importing, ImportWish
from pannier.node.membership import Membership
from pannier.node.node_views import NodeViews
from pannier.node.renewing import Renewing
from pannier.node.resizing import check_size
from pannier.node.room_use import RoomUse
from pannier.node.rotating import Rotating
from pannier.node.signing import Signing
from pannier.node.trash import Trash
from pannier.node.usage_log import UsageLog
from pannier.node.volume_views import VolumeViews
from pannier.pki.renewal import RenewalRequest
from pannier.swarm.service_clones import ServiceClones
from pannier.swarm.service_plan import Wish
from pannier.swarm.service_snapshots import ServiceSnapshots
from pannier.swarm.service_stops import ServiceStops
from pannier.swarm.services import Services


class NodeService:
    """Answers people and their tools."""

    def __init__(
        self,
        *,
        name: str,
        cluster: Cluster,
        use: Use,
        cluster_wide: ClusterWide,
        volume_views: VolumeViews,
        node_views: NodeViews,
        volumes: Volumes,
        importing: Importing,
        room_use: RoomUse,
        usage_log: UsageLog,
        option_changes: OptionChanges,
        snapshots: Snapshots,
        policies: Policies,
        rollback: Rollback,
        converting: Converting,
        clones: Clones,
        rotating: Rotating,
        targets: Targets,
        backup_work: BackupWork,
        drills: Drills,
        trash: Trash,
        cleaning: Cleaning,
        membership: Membership,
        certificates: Certificates,
        signing: Signing,
        renewing: Renewing,
        doctor: Doctor,
        recovery: Recovery,
        verification: Verification,
        file_systems: FileSystems,
        looking: Looking,
        services: Services,
        service_snapshots: ServiceSnapshots,
        service_clones: ServiceClones,
        service_stops: ServiceStops,
        doubt: float,
    ) -> None:
        """Put the parts together."""
        self._name = name
        self._cluster = cluster
        self._use = use
        self._cluster_wide = cluster_wide
        self._volume_views = volume_views
        self._node_views = node_views
        self._volumes = volumes
        self._importing = importing
        self._room_use = room_use
        self._usage_log = usage_log
        self._option_changes = option_changes
        self._snapshots = snapshots
        self._policies = policies
        self._rollback = rollback
        self._converting = converting
        self._clones = clones
        self._rotating = rotating
        self._targets = targets
        self._backup_work = backup_work
        self._drills = drills
        self._trash = trash
        self._cleaning = cleaning
        self._membership = membership
        self._certificates = certificates
        self._signing = signing
        self._renewing = renewing
        self._doctor = doctor
        self._recovery = recovery
        self._verification = verification
        self._file_systems = file_systems
        self._looking = looking
        self._services = services
        self._service_snapshots = service_snapshots
        self._service_clones = service_clones
        self._service_stops = service_stops
        self._doubt = doubt
        self._catalog = self._cluster.catalog
        self._actor = LOCAL

    def by(self, actor: str) -> Operations:
        """The same service, with ``actor`` recorded as the one who asked. Without this it is LOCAL."""
        service = copy.copy(self)
        service._actor = actor
        return service

    # -- nodes ----------------------------------------------------------------------------------

    async def status(self) -> StatusView:
        """The whole cluster at a glance, as far as it can be seen from here."""
        store = await self._cluster.registry.store.health()
        findings = await self._doctor.examine()
        return StatusView(
            cluster=self._name,
            node=self._cluster.node,
            version=__version__,
            store={member: health.in_short for member, health in store.items()},
            store_ok=sum(not health.problem for health in store.values()) * 2 > len(store),
            nodes=await self.nodes(),
            volumes=len(self._catalog.volumes()),
            problems=[f"{f.subject}: {f.what}" for f in findings if f.level is Level.PROBLEM],
            warnings=[f"{f.subject}: {f.what}" for f in findings if f.level is Level.WARNING],
        )

    async def nodes(self) -> list[NodeView]:
        """All nodes, from memory."""
        return self._node_views.all()

    async def node(self, name: str) -> NodeView:
        """One node, with its pool's figures where it answers."""
        return await self._cluster_wide.node(name)

    async def drain_node(self, name: str, *, drained: bool) -> NodeView:
        """Let a node give its volumes away as they become idle, and get no new ones; or undo that."""
        return self._node_views.listed(await self._membership.drain(name, drained=drained))

    async def remove_node(self, name: str, *, lost: bool) -> None:
        """Take a node out of the cluster; refused while it holds a volume and is not lost."""
        await self._membership.remove(name, lost=lost, actor=self._actor)

    async def create_token(self, *, ttl_seconds: float, uses: int) -> TokenView:
        """A token with which machines may join."""
        return await self._membership.create_token(ttl_seconds=ttl_seconds, uses=uses)

    async def join(self, order: JoinOrder) -> JoinReply:
        """Admit a machine that has a token."""
        return await self._membership.join(order)

    # -- certificates ---------------------------------------------------------------------------

    async def certificates(self) -> list[CertificateView]:
        """All certificates, as the nodes that have them tell it."""
        return await self._certificates.everywhere()

    async def renew_own_certificate(self, *, address: str | None) -> CertificateView:
        """Renew this node's certificates now."""
        try:
            await self._renewing.renew(address=address)
            return self._certificates.own()
        except OSError as error:
            raise StorageError(
                f"a certificate cannot be written: {error}", remedy="see the disk, then try again"
            ) from error

    async def renew_certificate(self, order: RenewalOrder) -> RenewalReply:
        """Renew the certificate of whoever the request proves."""
        request = RenewalRequest(order.certificate, order.csr)
        return RenewalReply(certificate=await self._signing.renew(request))

    # -- volumes --------------------------------------------------------------------------------

    async def volumes(self) -> list[VolumeView]:
        """All volumes, from memory."""
        return [self._volume_views.listed(volume) for volume in self._catalog.volumes()]

    async def volume(self, name: str) -> LiveVolumeView | RememberedVolumeView:
        """One volume, with what only its holder knows where that node answers."""
        return await self._cluster_wide.volume(name)

    async def room_use(self) -> list[RoomUseView]:
        """What each volume takes of each pool."""
        return await self._room_use.everywhere()

    async def volume_usage(self, name: str) -> VolumeUsageView:
        """What a volume took of the pools over time."""
        return await self._usage_log.everywhere(name)

    async def create_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        """Make a volume."""
        return self._volume_views.listed(
            await self._volumes.create(name, options, actor=self._actor)
        )

    def import_volume(
        self,
        name: str,
        *,
        source: str,
        options: Mapping[str, str],
        switch_service: str | None,
        wait_seconds: float,
    ) -> AsyncGenerator[ImportProgress, None]:
        """Make a volume out of files on this node; progress as it goes."""
        return self._importing.run_import(
            ImportWish(
                name=name,
                source=ImportSource.parse(source),
                options=options,
                service=switch_service,
                wait_seconds=wait_seconds,
                actor=self._actor,
            )
        )

    async def set_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        """Change options of a volume."""
        await check_size(name, options, cluster=self._cluster, cluster_wide=self._cluster_wide)
        changed = await self._option_changes.set(name, options, actor=self._actor)
        return self._volume_views.listed(changed)

    def convert_volume(
        self, name: str, options: Mapping[str, str], *, stop_service: bool = False
    ) -> AsyncGenerator[ConversionProgress, None]:
        """Change options of a volume that need a copy of its files; progress as it goes."""
        return self._converting.convert(name, options, stop_service=stop_service, actor=self._actor)

    async def create_snapshot(
        self, name: str, snapshot: str, *, keep_seconds: float | None, labels: Mapping[str, str]
    ) -> SnapshotView:
        """Make a snapshot of a volume."""
        return await self._snapshots.create(
            name, snapshot, keep_seconds=keep_seconds, labels=labels, actor=self._actor
        )

    async def snapshots(self, name: str) -> list[SnapshotView]:
        """All snapshots of a volume."""
        return await self._snapshots.all(name)

    async def snapshot(self, name: str, snapshot: str) -> SnapshotView:
        """One snapshot, with the nodes that have it."""
        return await self._snapshots.show(name, snapshot)

    async def remove_snapshot(self, name: str, snapshot: str) -> SnapshotView:
        """Remove a snapshot for ever."""
        return await self._snapshots.remove(name, snapshot, actor=self._actor)

    async def policies(self) -> list[PolicyView]:
        """All policies."""
        return await self._policies.all()

    async def set_policy(
        self, name: str, *, schedule: str, labels: Mapping[str, str]
    ) -> PolicyView:
        """Add a policy, or change it."""
        return await self._policies.set(name, schedule=schedule, labels=labels, actor=self._actor)

    async def remove_policy(self, name: str) -> PolicyView:
        """Remove a policy."""
        return await self._policies.remove(name, actor=self._actor)

    async def roll_back_volume(
        self, name: str, snapshot: str, *, stop_service: bool = False
    ) -> SnapshotView:
        """Take a volume back to a snapshot."""
        roll_back = partial(self._rollback.roll_back, name, snapshot, actor=self._actor)
        if not stop_service:
            return await roll_back()
        await self._rollback.check(name, snapshot)
        return await self._service_stops.around(name, roll_back, actor=self._actor)

    async def clone_volume(
        self, name: str, *, new: str, snapshot: str | None, options: Mapping[str, str]
    ) -> VolumeView:
        """Make a clone of a volume."""
        source = CloneSource(name, snapshot or "")
        made = await self._clones.clone(source, new, options, actor=self._actor)
        return self._volume_views.listed(made)

    # -- the cluster's key -----------------------------------------------------------------------

    async def cluster_key(self) -> ClusterKeyView:
        """The key that encrypts volumes."""
        return await self._rotating.show()

    async def rotate_key(self, order: RotateOrder) -> ClusterKeyView:
        """Put another key in its place."""
        return await self._rotating.rotate(passphrase=order.passphrase, actor=self._actor)

    async def unlock_key(self, order: UnlockOrder) -> ClusterKeyView:
        """Have the keys that are locked with a passphrase."""
        return await self._rotating.unlock(order.passphrase, actor=self._actor)

    # -- backups --------------------------------------------------------------------------------

    async def backup_targets(self) -> list[BackupTargetView]:
        """All backup targets."""
        return await self._targets.all()

    async def add_backup_target(self, order: BackupTargetOrder) -> BackupTargetView:
        """Add a backup target."""
        return await self._targets.add(order, actor=self._actor)

    async def remove_backup_target(self, target: str) -> BackupTargetView:
        """Forget a backup target."""
        return await self._targets.remove(target, actor=self._actor)

    async def backups(self, target: str) -> list[BackupView]:
        """All backups at a target."""
        return await self._targets.backups(target)

    def verify_backups(self, target: str) -> AsyncGenerator[BackupProgress, None]:
        """Read all that is at a target."""
        return self._backup_work.verify(target)

    async def prune_backups(
        self, target: str, *, keep_last: int, keep_daily: int, keep_weekly: int, keep_monthly: int
    ) -> PrunedView:
        """Remove backups that need not stay."""
        return await self._targets.prune(
            target,
            Retention(last=keep_last, daily=keep_daily, weekly=keep_weekly, monthly=keep_monthly),
        )

    def restore_backup(
        self, target: str, *, volume: str, backup: str | None, new: str, options: Mapping[str, str]
    ) -> AsyncGenerator[BackupProgress, None]:
        """Make a new volume of a backup."""
        return self._backup_work.restore(
            target, volume, backup=backup, new=new, options=options, actor=self._actor
        )

    async def backup_drills(self) -> list[DrillView]:
        """The last restore drills."""
        return await self._drills.all()

    def drill_backup(
        self,
        target: str,
        *,
        volume: str,
        backup: str | None,
        check_command: str | None,
        image: str | None,
    ) -> AsyncGenerator[BackupProgress, None]:
        """Bring a backup back, look at it, and remove it again."""
        return self._backup_work.drill(
            target, volume, backup=backup, check=check_command, image=image, actor=self._actor
        )

    def back_up_volume(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        """Back a volume up."""
        return self._backup_work.back_up(name, target=target, actor=self._actor)

    # -- volumes whose holder is lost, and their copies -------------------------------------------

    async def recover_volume(self, name: str, *, accept_loss: bool) -> VolumeView:
        """Give a lost holder's volume to the newest copy."""
        volume = await self._recovery.recover(name, accept_loss=accept_loss, actor=self._actor)
        return self._volume_views.listed(volume)

    async def verify_volume(self, name: str, *, trust_holder: bool = False) -> list[CheckView]:
        """Have every copy of a volume read to the last byte."""
        return await self._verification.everywhere(name, trust_holder=trust_holder)

    async def check_volume(self, name: str) -> list[FileSystemView]:
        """Have the file system in every copy of a volume checked."""
        return await self._file_systems.everywhere(name)

    async def show_tree(self, name: str, *, tree: str, at: str) -> None:
        """Mount a former state of a volume, read-only, on this node."""
        await self._looking.show(name, tree=tree, at=at)

    def take_out(
        self, name: str, *, tree: str | None, path: str, to: str
    ) -> AsyncGenerator[TakeOutProgress, None]:
        """Copy files out of a volume to a new place on this node."""
        return self._looking.take_out(name, tree=tree, path=path, to=to)

    async def clean_volume(self, name: str, *, paths: list[str]) -> None:
        """Remove files of a volume that stands still, on this node."""
        await self._cleaning.remove(name, paths, actor=self._actor)

    async def remove_volume(self, name: str) -> TrashView:
        """Move a volume to the trash."""
        return self._volume_views.trashed(await self._volumes.remove(name, actor=self._actor))

    def move_volume(
        self, name: str, node: str, *, wait_seconds: float
    ) -> AsyncGenerator[MoveProgress, None]:
        """Make ``node`` the holder, wherever the volume is now; progress as it goes."""
        return self._cluster_wide.move_volume(
            name, node, wait_seconds=wait_seconds, actor=self._actor
        )

    async def history(self, name: str) -> list[EventView]:
        """What happened to a volume, oldest first; to a removed one if no present one has that name. Of volumes that
        left the trash, only that is known."""
        try:
            return history_of((await self._cluster.fresh(name)).record)
        except VolumeNotFound:
            for volume in self._catalog.trashed():
                if name in (volume.name, volume.id):
                    return history_of(volume)
            if purged := await purged_events(self._cluster.registry, name):
                return purged
            raise

    async def trash(self) -> list[TrashView]:
        """Removed volumes that can be restored."""
        return [self._volume_views.trashed(volume) for volume in await self._volumes.trash()]

    async def restore_volume(self, name_or_id: str) -> VolumeView:
        """Bring a volume back from the trash."""
        return self._volume_views.listed(await self._volumes.restore(name_or_id, actor=self._actor))

    async def purge_volume(self, name_or_id: str) -> TrashView:
        """Give up a removed volume for ever."""
        return self._volume_views.trashed(await self._trash.give_up(name_or_id, actor=self._actor))

    async def empty_trash(self) -> list[TrashView]:
        """Give up all removed volumes for ever."""
        gone = await self._trash.give_all_up(actor=self._actor)
        return [self._volume_views.trashed(volume) for volume in gone]

    async def explain_volume(self, name: str) -> list[FindingView]:
        """Who holds a volume, what will happen next, and the one safe command."""
        fresh = True
        try:
            record = (await self._cluster.fresh(name)).record
        except Unavailable:
            record, fresh = await self._volumes.find(name), False
        live = await self._cluster_wide.from_holder(record)
        suspended = self._use.suspended(record)
        return explain(
            record,
            live,
            is_up=self._catalog.is_up,
            fresh=fresh,
            suspended=suspended,
            doubt=self._doubt,
        )

    # -- services, and the whole ----------------------------------------------------------------

    async def services(self) -> list[ServiceView]:
        """The Swarm's services with volumes of ours."""
        return await self._services.all()

    def move_service(
        self,
        name: str,
        node: str,
        *,
        now: bool,
        stay: bool,
        timeout_seconds: float,
    ) -> AsyncGenerator[ServiceMoveProgress, None]:
        """Move a Swarm service with its volumes; progress as it goes."""
        wish = Wish(now=now, stay=stay, timeout_seconds=timeout_seconds, actor=self._actor)
        return self._services.move(name, node, wish=wish)

    async def create_service_snapshot(
        self,
        name: str,
        *,
        snapshot: str | None,
        keep_seconds: float | None,
        labels: Mapping[str, str],
    ) -> list[SnapshotView]:
        """Make snapshots of all volumes of a service, at one moment."""
        return await self._service_snapshots.create(
            name, snapshot, keep_seconds=keep_seconds, labels=labels, actor=self._actor
        )

    async def clone_service(
        self, name: str, *, name_as: str, options: Mapping[str, str]
    ) -> list[VolumeView]:
        """Make clones of all volumes of a service, as of one moment."""
        made = await self._service_clones.create(
            name, name_as=name_as, options=options, actor=self._actor
        )
        return [self._volume_views.listed(each) for each in made]

    def back_up_service(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        """Back all volumes of a service up, as of one moment."""
        return self._backup_work.back_up_service(name, target=target, actor=self._actor)

    async def doctor(self) -> list[FindingView]:
        """What is wrong and what to do."""
        return await self._doctor.examine()

    async def events(self, *, follow: bool) -> AsyncGenerator[EventView, None]:
        """What happened; with ``follow`` everything from now on too, without end."""
        for event in await recent(self._cluster):
            yield event
        if follow:
            async for event in changes(self._cluster):
                yield event
