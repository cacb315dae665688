"""A node, put together from its parts, for the daemon and the simulation alike.

The simulation runs the code that ships: only the ports in :class:`Outside` differ. Every part is
complete when it is constructed, and no setting that could lose data has a default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pannier.agent.custody import Custody
from pannier.agent.disks import Disks
from pannier.agent.drivers import Drivers
from pannier.agent.fencing import Fencing
from pannier.agent.freezing import Freezer
from pannier.agent.growing import Growing
from pannier.agent.lease import Lease
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import Mounts
from pannier.agent.own_name import OwnName, RecordsUnderName, SenderUnderName, StoreUnderName
from pannier.agent.promises import Promises
from pannier.agent.renewal import Keeper
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use, UsersOf
from pannier.backups.drill_schedule import DrillSchedule
from pannier.backups.drills import Drills
from pannier.backups.findings import BackupFindings
from pannier.backups.history import BackupHistory
from pannier.backups.restic import Restic
from pannier.backups.restoring import Restoring
from pannier.backups.running import Backups
from pannier.backups.schedule import BackupSchedule
from pannier.backups.services import ServiceBackups
from pannier.backups.targets import Targets
from pannier.backups.work import BackupWork
from pannier.backups.workroom import Workroom
from pannier.barrier.calls import Strategy
from pannier.barrier.groups import Backlog
from pannier.barrier.syncwrites import UnheldWriter
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.key_records import KeyRecords
from pannier.cluster.keyring import Keyring, RecordedKeys
from pannier.cluster.registry import Registry
from pannier.contract.peers import Peers
from pannier.contract.words import CertificateKind
from pannier.copies.acknowledging import Acknowledging
from pannier.copies.cloned import ClonedCopies
from pannier.copies.delivering import Delivering
from pannier.copies.differences import Differences
from pannier.copies.file_systems import FileSystems
from pannier.copies.lines import Lines
from pannier.copies.mending import Mending
from pannier.copies.named import FormerSnapshots, NamedGenerations
from pannier.copies.option_changes import OptionChanges
from pannier.copies.own_copies import OwnCopies
from pannier.copies.quarantined import QuarantinedCopies
from pannier.copies.receiving import Reception
from pannier.copies.replication import Replicator
from pannier.copies.settling import Settling
from pannier.copies.switching import Switching
from pannier.copies.verification import Verification
from pannier.core.lease import Terms
from pannier.core.node import Node
from pannier.core.pace import Pace
from pannier.core.removals import REMOVALS_FILE
from pannier.engine.base import Engine
from pannier.holding.adding import Adding
from pannier.holding.after_handover import AfterHandover
from pannier.holding.clones import Clones
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.conversions import Conversions
from pannier.holding.finding import CopyFinder
from pannier.holding.handover import Handovers
from pannier.holding.import_notes import BegunImports
from pannier.holding.imports import Imports
from pannier.holding.looking import Looking
from pannier.holding.memories import Memories
from pannier.holding.naming import Naming
from pannier.holding.one_moment import Together
from pannier.holding.policies import Policies
from pannier.holding.promising import Promising
from pannier.holding.putting_back import PuttingBack
from pannier.holding.quieting import SnapshotHooks
from pannier.holding.recovery import Recovery
from pannier.holding.rollback import Rollback
from pannier.holding.schedules import Schedules
from pannier.holding.set_back import Abdication
from pannier.holding.snapshots import Snapshots
from pannier.holding.takeover import Takeover
from pannier.holding.volume_keys import KeysOfVolumes
from pannier.holding.volumes import Volumes
from pannier.host.clock import Clock
from pannier.host.killing import Kill
from pannier.host.state_files import StateFiles
from pannier.node.asked_by_containers import AskedByContainers
from pannier.node.barrier_admission import BarrierAdmission, Marks
from pannier.node.certificate_ports import CertificatePorts
from pannier.node.certificates import Certificates
from pannier.node.cleaning import Cleaning
from pannier.node.cluster_wide import ClusterWide
from pannier.node.converting import Converting
from pannier.node.docker_volumes import VolumesForDocker
from pannier.node.doctor import Doctor
from pannier.node.facade import NodeService
from pannier.node.forgetting import Forgetting
from pannier.node.free_space import keep_free_space
from pannier.node.freeing import Freeing
from pannier.node.importing import Importing
from pannier.node.journal_room import JournalRoom
from pannier.node.leaving import Leaving
from pannier.node.membership import Membership
from pannier.node.node_views import NodeViews
from pannier.node.own_record import keep_activated, keep_introduced, keep_swarm_node
from pannier.node.peer_service import PeerService
from pannier.node.removing import Removing, StoreMember
from pannier.node.renewing import Renewing
from pannier.node.room_use import RoomUse
from pannier.node.rotating import Rotating
from pannier.node.signing import Signing
from pannier.node.tokens import Tokens
from pannier.node.trash import Trash, TrashTerms
from pannier.node.twins import Twins
from pannier.node.unheld import Unheld
from pannier.node.upkeep import Upkeep
from pannier.node.usage_log import UsageLog
from pannier.node.volume_views import VolumeViews
from pannier.pki.authority import Authority
from pannier.storage.base import Driver
from pannier.storage.keys import VolumeKeys
from pannier.store.base import Store
from pannier.swarm.asked_options import AskedOptions
from pannier.swarm.evacuation import Evacuation
from pannier.swarm.hooks import Hooks
from pannier.swarm.labels import Labels
from pannier.swarm.service_clones import ServiceClones
from pannier.swarm.service_snapshots import ServiceSnapshots
from pannier.swarm.service_stops import ServiceStops
from pannier.swarm.service_switch import ServiceSwitches
from pannier.swarm.services import Services
from pannier.transport.base import ChoosingSender, SendsRecords


class SyncCalls(Marks, Protocol):
    """The barrier, as the rest of the node knows it. What is added to :class:`Marks` raises nothing."""

    def waiting(self, volume: str) -> Backlog:
        """What waits for this volume now."""
        ...

    def containers(self, volume: str) -> frozenset[str]:
        """Ids of the containers whose sync calls on this volume are held."""
        ...

    def held(self) -> frozenset[str]:
        """Names of the volumes that have a mark."""
        ...

    def unheld_writers(self, volume: str) -> Sequence[UnheldWriter]:
        """Who could write to this volume past the barrier when that was looked at last."""
        ...


Calls = TypeVar("Calls", bound=SyncCalls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside(Generic[Calls]):
    """The ports through which a node meets the outside.

    Attributes:
        store: the cluster's memory; its session is the caller's.
        keeper: renews this node's lease.
        drivers: makes those that this node is meant to have, given the keys of encrypted volumes; by name, not opened yet,
            in the order of opening.
        engine: the container engine beside this node.
        peers: the other nodes' APIs.
        sender: sends generations to other nodes.
        record_sender: sends records to other nodes.
        mounts: the paths that Docker is given.
        users_of: who uses a directory, as the kernel sees it.
        kill: kills processes.
        freezer: freezes containers.
        files: where the node keeps what it must not forget.
        clock: this machine's.
        sync_calls: makes the barrier, given how a volume is made durable.
        configured_runtime: the default runtime that the engine's configuration names.
        authority: the cluster's certificate authority. Raises Conflict where it is not on this node.
        store_authority: that of the cluster's etcd; None where it has none, as in a cluster of an earlier version.
        store_member: the member of the store on this machine.
        pool_problems: what is wrong with the pool although it could be opened.
        certificates: this machine's, and how it comes by others.
        workroom: where backups are read and brought back.
    """

    store: Store
    keeper: Keeper
    drivers: Callable[[VolumeKeys], Mapping[str, Driver]]
    engine: Engine
    peers: Peers
    sender: ChoosingSender
    record_sender: SendsRecords
    mounts: Mounts
    users_of: UsersOf
    kill: Kill
    freezer: Freezer
    files: StateFiles
    clock: Clock
    sync_calls: Callable[[Strategy], Calls]
    configured_runtime: Callable[[], str]
    authority: Callable[[], Authority]
    store_authority: Callable[[], Authority | None]
    store_member: StoreMember
    pool_problems: Callable[[], Awaitable[list[str]]]
    certificates: CertificatePorts
    workroom: Workroom


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node is told about itself.

    Attributes:
        cluster: the cluster's id; None accepts any store.
        me: the record with which the node introduces itself.
        default_driver: keeps the volumes that ask for no other.
        boot_id: of the machine's present boot.
        terms: how long its lease lasts.
        store_address: told to machines that join.
        evacuate: whether nodes that are lost are drained in Swarm.
        pace: how often each part checks what it watches, and how long it waits.
        trash_bytes: what removed volumes may take in a pool; None for what there is room for.
        store_trusts_all: the store has no authority of its own: an earlier version set it up.
    """

    cluster: str | None
    me: Node
    default_driver: str
    boot_id: str
    terms: Terms
    store_address: str
    evacuate: bool
    pace: Pace
    trash_bytes: int | None = None
    store_trusts_all: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Something that runs for as long as the daemon does."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode(Generic[Calls]):
    """One node's parts. ``first`` is started before the API and the transport, ``then`` after them."""

    cluster: Cluster
    drivers: Drivers
    use: Use
    custody: Custody
    lease: Lease
    promises: Promises
    replicator: Replicator
    acknowledging: Acknowledging
    sync_calls: Calls
    reception: Reception
    verification: Verification
    handovers: Handovers
    takeover: Takeover
    promising: Promising
    recovery: Recovery
    volumes: Volumes
    docker: VolumesForDocker
    hooks: Hooks
    services: Services
    membership: Membership
    leaving: Leaving
    upkeep: Upkeep
    forgetting: Forgetting
    trash: Trash
    freeing: Freeing
    service: NodeService
    peer_service: PeerService
    after_handover: Callable[[Start], AfterHandover]
    first: tuple[Work, ...]
    then: tuple[Work, ...]

    def start(self, work: Collection[Work], start: Start) -> None:
        """Run each of ``work`` in the background."""
        for each in work:
            start(each.run(), each.name)

    def follow_handovers(self, start: Start) -> None:
        """Make volumes ready as they come, and put away what they leave behind."""
        self.cluster.catalog.listen(self.after_handover(start).hear)


Start = Callable[[Coroutine[Any, Any, None], str], None]
"""Runs work in the background, under a name."""


def assemble(outside: Outside[Calls], settings: Settings) -> LocalNode[Calls]:
    """Put a node together. Nothing runs yet; of what is outside, only its own small files are read.

    Raises:
        StorageError: one of these files cannot be read.
    """
    clock, pace, files, node = outside.clock, settings.pace, outside.files, settings.me.name
    engine, peers, mounts = outside.engine, outside.peers, outside.mounts

    # What of a node must not be done by two machines goes through these.
    lease = Lease(
        outside.store,
        keeper=outside.keeper,
        name=OwnName(node, settings.boot_id),
        terms=settings.terms,
        clock=clock,
    )
    store = StoreUnderName(outside.store, check=lease.check_name)
    named_sender = SenderUnderName(outside.sender, check=lease.check_sender)
    record_sender = RecordsUnderName(outside.record_sender, check=lease.check_sender)

    registry = Registry(store)
    catalog = Catalog(
        file=files.unsynced("catalog.json"), cluster=settings.cluster, boot_id=settings.boot_id
    )
    cluster = Cluster(node=node, registry=registry, catalog=catalog)

    # The agent: what is here, who uses it, and for how long this node may hold it.
    promises = Promises(
        file=files.durable("takeovers.json"), clock=clock, longest=pace.holding.promise
    )
    keyring = Keyring()
    recorded_keys = RecordedKeys(node=node, catalog=catalog, keyring=keyring)
    drivers = Drivers(
        outside.drivers(recorded_keys),
        default=settings.default_driver,
        node=node,
        pace=pace.node,
    )
    use = Use(
        drivers=drivers,
        mounts=mounts,
        mount_ids=MountIds(files.until_boot("mounts.json")),
        engine=engine,
        freezer=outside.freezer,
        users_of=outside.users_of,
        kill=outside.kill,
        clock=clock,
        pace=pace.agent,
    )
    custody = Custody(
        cluster=cluster,
        drivers=drivers,
        use=use,
        mounts=mounts,
        lease=lease,
        clock=clock,
        pace=pace.agent,
    )

    growing = Growing(cluster=cluster, custody=custody)
    catalog.listen(growing.hear)

    # Copies: kept up, and awaited by sync calls.
    switching = Switching()
    sender = Delivering(cluster=cluster, custody=custody, sender=named_sender, pace=pace.copies)
    named = NamedGenerations(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        peers=peers,
        clock=clock,
        pace=pace.copies,
    )
    replicator = Replicator(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        sender=sender,
        lines=Lines(
            cluster=cluster,
            drivers=drivers,
            sender=record_sender,
            clock=clock,
            pace=pace.copies,
        ),
        named=named,
        switching=switching,
        clock=clock,
        pace=pace.copies,
    )
    former_snapshots = FormerSnapshots(cluster=cluster, tidy=replicator.tidy)
    catalog.listen(former_snapshots.hear)
    acknowledging = Acknowledging(
        cluster=cluster,
        drivers=drivers,
        lease=lease,
        replicator=replicator,
        clock=clock,
        pace=pace.copies,
    )
    sync_calls = outside.sync_calls(acknowledging)
    cloned = ClonedCopies(cluster=cluster, custody=custody, drivers=drivers)
    catalog.listen(cloned.hear)
    reception = Reception(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        lease=lease,
        promises=promises,
        cloned=cloned,
    )
    differences = Differences(cluster=cluster, drivers=drivers, peers=peers)
    mending = Mending(cluster=cluster, drivers=drivers, peers=peers, pace=pace.copies)
    verification = Verification(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        peers=peers,
        differences=differences,
        mending=mending,
        settling=Settling(cluster=cluster, custody=custody, differences=differences),
        acknowledging=acknowledging,
        file=files.durable("verified.json"),
        clock=clock,
        pace=pace.copies,
    )
    file_systems = FileSystems(cluster=cluster, drivers=drivers, peers=peers)
    fencing = Fencing(
        cluster=cluster,
        custody=custody,
        use=use,
        lease=lease,
        rivals=acknowledging.rivals,
        clock=clock,
        pace=pace.agent,
    )

    # Holding: how a volume changes its holder.
    handovers = Handovers(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        use=use,
        sender=sender,
        replication=replicator,
        named=named,
        switching=switching,
        clock=clock,
        pace=pace.holding,
    )
    memories = Memories(cluster=cluster, peers=peers, pace=pace.holding)
    putting_back = PuttingBack(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        memories=memories,
        clock=clock,
        pace=pace.holding,
    )
    finder = CopyFinder(cluster=cluster, drivers=drivers, peers=peers)
    takeover = Takeover(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        finder=finder,
        memories=memories,
        peers=peers,
        promises=promises,
        clock=clock,
        pace=pace.holding,
    )
    abdication = Abdication(
        cluster=cluster,
        custody=custody,
        use=use,
        replicator=replicator,
        acknowledging=acknowledging,
        finder=finder,
        clock=clock,
        pace=pace.holding,
    )
    recovery = Recovery(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        finder=finder,
        peers=peers,
        promises=promises,
        takeover=takeover,
        putting_back=putting_back,
        clock=clock,
        pace=pace.holding,
    )
    promising = Promising(
        cluster=cluster,
        lease=lease,
        peers=peers,
        promises=promises,
        rivals=acknowledging.rivals,
        clock=clock,
        pace=pace.holding,
    )
    room = RoomGuard(
        cluster=cluster, drivers=drivers, custody=custody, use=use, clock=clock, pace=pace.agent
    )
    snapshot_hooks = SnapshotHooks(
        node=node,
        engine=engine,
        use=use,
        file=files.until_boot("snapshot-hooks.json"),
        clock=clock,
        pace=pace.holding,
    )
    naming = Naming(cluster=cluster, clock=clock, pace=pace.holding)
    snapshots = Snapshots(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        replicator=replicator,
        named=named,
        naming=naming,
        hooks=snapshot_hooks,
        handovers=handovers,
        room=room,
        peers=peers,
        clock=clock,
        pace=pace.holding,
    )
    cluster_keys = ClusterKeys(
        cluster=cluster,
        records=KeyRecords(registry),
        keyring=keyring,
        peers=peers,
        file=files.durable("backup-keys.json"),
        pace=pace.holding,
    )
    catalog.listen(cluster_keys.hear)
    volume_keys = KeysOfVolumes(recorded=recorded_keys, cluster_keys=cluster_keys)
    begun_imports = BegunImports(files.durable("imports.json"))
    adding = Adding(cluster=cluster, begun_imports=begun_imports)
    clones = Clones(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        replicator=replicator,
        snapshots=snapshots,
        adding=adding,
        volume_keys=volume_keys,
        peers=peers,
        clock=clock,
        pace=pace.holding,
    )
    volumes = Volumes(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        use=use,
        adding=adding,
        volume_keys=volume_keys,
        clones=clones,
        handovers=handovers,
        peers=peers,
        clock=clock,
    )

    together = Together(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        snapshots=snapshots,
        naming=naming,
        hooks=snapshot_hooks,
        clock=clock,
        pace=pace.holding,
    )
    rollback = Rollback(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        use=use,
        replicator=replicator,
        switching=switching,
        acknowledging=acknowledging,
        handovers=handovers,
        snapshots=snapshots,
        peers=peers,
        clock=clock,
    )

    policies = Policies(cluster=cluster)
    schedules = Schedules(
        cluster=cluster, snapshots=snapshots, policies=policies, clock=clock, pace=pace.holding
    )
    catalog.listen(schedules.hear)

    looking = Looking(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        snapshots=snapshots,
        tidy=replicator.tidy,
        pace=pace.holding,
    )

    # The node, as Docker, people and other nodes ask for it.
    removing = Removing(
        cluster=cluster,
        address=settings.me.address,
        peers=peers,
        member=outside.store_member,
        file=files.durable(REMOVALS_FILE),
        clock=clock,
        pace=pace.node,
    )
    membership = Membership(
        node=node,
        registry=registry,
        catalog=catalog,
        authority=outside.authority,
        tokens=Tokens(file=files.durable("tokens.json")),
        store_authority=outside.store_authority,
        removing=removing,
        store_address=settings.store_address,
        clock=clock,
    )
    signing = Signing(
        node=node,
        registry=registry,
        catalog=catalog,
        peers=peers,
        prove=outside.certificates.prove,
        authority=outside.authority,
        store_authority=outside.store_authority,
        removals=lambda: removing.known,
        issued=outside.certificates.issued,
        clock=clock,
    )
    renewing = Renewing(
        node=node,
        ports=outside.certificates,
        signing=signing,
        membership=membership,
        catalog=catalog,
        files={
            CertificateKind.NODE: files.until_boot("renewal.json"),
            CertificateKind.STORE: files.until_boot("renewal-store.json"),
            CertificateKind.ETCD: files.until_boot("renewal-etcd.json"),
        },
        clock=clock,
        pace=pace.node,
    )
    certificates = Certificates(
        cluster=cluster,
        ports=outside.certificates,
        peers=peers,
        trouble=renewing.trouble,
        has_authority=lambda: signing.is_here,
        clock=clock,
        pace=pace.node,
    )
    admission = BarrierAdmission(
        engine=engine, marks=sync_calls, configured=outside.configured_runtime, pace=pace.node
    )
    twins = Twins(catalog=catalog, engine=engine, pace=pace.node)
    trash = Trash(
        cluster=cluster,
        drivers=drivers,
        file=files.durable("trash.json"),
        terms=TrashTerms(keep_seconds=pace.node.trash, most_bytes=settings.trash_bytes),
        clock=clock,
    )
    freeing = Freeing(
        cluster=cluster,
        drivers=drivers,
        custody=custody,
        handovers=handovers,
        reception=reception,
        replicator=replicator,
        room=room,
        trash=trash,
        journals=JournalRoom(
            cluster=cluster, drivers=drivers, custody=custody, reception=reception, clock=clock
        ),
        clock=clock,
        pace=pace.node,
    )
    docker = VolumesForDocker(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        use=use,
        mounts=mounts,
        volumes=volumes,
        peers=peers,
        takeover=takeover,
        abdication=abdication,
        memories=memories,
        admission=admission,
        freeing=freeing,
        twins=twins,
        clock=clock,
        pace=pace.node,
    )
    unheld = Unheld(
        cluster=cluster,
        drivers=drivers,
        use=use,
        held_in=sync_calls.containers,
        writers=sync_calls.unheld_writers,
        pace=pace.node,
    )
    catalog.listen(trash.hear)
    volume_views = VolumeViews(
        cluster=cluster,
        drivers=drivers,
        use=use,
        mounts=mounts,
        handovers=handovers,
        replicator=replicator,
        backlog=sync_calls.waiting,
        unheld=unheld,
        room=room,
        policies=policies,
        clock=clock,
        pace=pace.node,
    )
    node_views = NodeViews(
        cluster=cluster, drivers=drivers, lease=lease, engine=engine, pace=pace.node
    )
    cluster_wide = ClusterWide(
        cluster=cluster,
        drivers=drivers,
        volumes=volumes,
        handovers=handovers,
        peers=peers,
        volume_views=volume_views,
        node_views=node_views,
        pace=pace.node,
    )
    hooks = Hooks(
        node=node,
        engine=engine,
        catalog=catalog,
        file=files.until_boot("hooks.json"),
        pace=pace.swarm,
    )
    services = Services(
        node=node,
        swarm=engine.swarm,
        catalog=catalog,
        hooks=hooks,
        peers=peers,
        cluster=cluster_wide,
        clock=clock,
        pace=pace.swarm,
    )
    service_snapshots = ServiceSnapshots(
        cluster=cluster, services=services, here=together, peers=peers, clock=clock
    )
    service_stops = ServiceStops(
        node=node, swarm=engine.swarm, services=services, clock=clock, pace=pace.swarm
    )
    imports = Imports(
        cluster=cluster,
        drivers=drivers,
        volumes=volumes,
        adding=adding,
        volume_keys=volume_keys,
        begun=begun_imports,
        clock=clock,
    )
    conversions = Conversions(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        use=use,
        handovers=handovers,
        imports=imports,
        room=room,
        clock=clock,
        pace=pace.holding,
    )
    importing = Importing(
        cluster=cluster,
        engine=engine,
        use=use,
        room=room,
        imports=imports,
        volumes=volumes,
        switches=ServiceSwitches(swarm=engine.swarm, clock=clock, pace=pace.swarm),
        clock=clock,
        pace=pace.node,
    )

    backup_records = BackupRecords(registry)
    doctor = Doctor(
        cluster=cluster,
        lease=lease,
        drivers=drivers,
        use=use,
        engine=engine,
        mounts=mounts,
        room=room,
        replicator=replicator,
        unheld=unheld,
        twins=twins,
        begun_imports=begun_imports,
        pool_problems=outside.pool_problems,
        store_trusts_all=settings.store_trusts_all,
        certificates=certificates,
        schedules=schedules,
        cluster_keys=cluster_keys,
        backup_findings=BackupFindings(cluster=cluster, records=backup_records, clock=clock),
        clock=clock,
        doubt=pace.agent.doubt,
    )
    room_use = RoomUse(cluster=cluster, drivers=drivers, peers=peers)
    usage_log = UsageLog(
        cluster=cluster,
        room_use=room_use,
        peers=peers,
        file=files.unsynced("usage.json"),
        clock=clock,
        pace=pace.node,
    )
    option_changes = OptionChanges(cluster=cluster, custody=custody, clock=clock)

    # Backups off-site.
    targets = Targets(
        cluster=settings.cluster or "",
        records=backup_records,
        keys=cluster_keys,
        restic=Restic(node=node, workroom=outside.workroom, pace=pace.backups),
        clock=clock,
    )
    backup_history = BackupHistory(cluster=cluster, clock=clock)
    rotating = Rotating(
        cluster=cluster,
        keys=cluster_keys,
        volume_keys=volume_keys,
        targets=targets,
        peers=peers,
        pace=pace.node,
    )
    backups = Backups(
        cluster=cluster,
        snapshots=snapshots,
        looking=looking,
        targets=targets,
        workroom=outside.workroom,
        peers=peers,
        history=backup_history,
        clock=clock,
        pace=pace.backups,
    )
    backup_schedule = BackupSchedule(
        cluster=cluster,
        records=backup_records,
        backups=backups,
        clock=clock,
        pace=pace.backups,
    )
    restoring = Restoring(
        imports=imports,
        volumes=volumes,
        targets=targets,
        room=room,
        give_up=lambda volume_id, actor: trash.give_up(volume_id, actor=actor),
        workroom=outside.workroom,
        node=node,
    )
    drills = Drills(
        cluster=cluster,
        records=backup_records,
        restoring=restoring,
        history=backup_history,
        clock=clock,
        pace=pace.backups,
    )
    drill_schedule = DrillSchedule(
        cluster=cluster,
        records=backup_records,
        drills=drills,
        clock=clock,
        pace=pace.backups,
    )
    service_clones = ServiceClones(
        cluster=cluster,
        services=services,
        snapshots=service_snapshots,
        clone=lambda source, name, options, actor: clones.clone(source, name, options, actor=actor),
        discard=lambda volume, actor: restoring.discard(volume, actor=actor),
        clock=clock,
    )
    backup_work = BackupWork(
        node=node,
        backups=backups,
        services=ServiceBackups(
            cluster=cluster,
            snapshots=service_snapshots,
            backups=backups,
            targets=targets,
            clock=clock,
            pace=pace.backups,
        ),
        restoring=restoring,
        drills=drills,
        targets=targets,
        listed=volume_views.listed,
    )
    service = NodeService(
        name=settings.cluster or "",
        cluster=cluster,
        use=use,
        cluster_wide=cluster_wide,
        volume_views=volume_views,
        node_views=node_views,
        volumes=volumes,
        importing=importing,
        room_use=room_use,
        usage_log=usage_log,
        option_changes=option_changes,
        snapshots=snapshots,
        policies=policies,
        rollback=rollback,
        converting=Converting(
            cluster=cluster,
            conversions=conversions,
            stops=service_stops,
            peers=peers,
            pace=pace.holding,
        ),
        clones=clones,
        rotating=rotating,
        targets=targets,
        backup_work=backup_work,
        drills=drills,
        trash=trash,
        cleaning=Cleaning(cluster=cluster, drivers=drivers, custody=custody, use=use, room=room),
        membership=membership,
        certificates=certificates,
        signing=signing,
        renewing=renewing,
        doctor=doctor,
        recovery=recovery,
        verification=verification,
        file_systems=file_systems,
        looking=looking,
        services=services,
        service_snapshots=service_snapshots,
        service_clones=service_clones,
        service_stops=service_stops,
        doubt=pace.agent.doubt,
    )
    peer_service = PeerService(
        cluster=cluster,
        drivers=drivers,
        volume_views=volume_views,
        node_views=node_views,
        volumes=volumes,
        room_use=room_use,
        usage_log=usage_log,
        handovers=handovers,
        recovery=recovery,
        takeover=takeover,
        promising=promising,
        snapshots=snapshots,
        together=together,
        backup_work=backup_work,
        cluster_keys=cluster_keys,
        rollback=rollback,
        conversions=conversions,
        clones=clones,
        verification=verification,
        differences=differences,
        mending=mending,
        file_systems=file_systems,
        services=services,
        removing=removing,
        certificates=certificates,
        signing=signing,
    )
    own_copies = OwnCopies(
        cluster=cluster, drivers=drivers, peers=peers, clock=clock, pace=pace.copies
    )
    quarantined = QuarantinedCopies(
        cluster=cluster,
        custody=custody,
        drivers=drivers,
        peers=peers,
        clock=clock,
        pace=pace.copies,
    )
    leaving = Leaving(
        cluster=cluster,
        custody=custody,
        use=use,
        room=room,
        lease=lease,
        acknowledging=acknowledging,
        membership=membership,
        pace=pace.node,
    )
    upkeep = Upkeep(cluster=cluster, use=use, handovers=handovers, trash=trash, pace=pace.node)
    forgetting = Forgetting(
        cluster=cluster,
        drivers=drivers,
        promises=promises,
        mounts=mounts,
        marks=sync_calls,
        membership=membership,
        clock=clock,
        pace=pace.node,
    )
    evacuation = Evacuation(
        cluster=cluster,
        swarm=engine.swarm,
        peers=peers,
        enabled=settings.evacuate,
        clock=clock,
        pace=pace.swarm,
    )
    labels = Labels(cluster=cluster, swarm=engine.swarm, clock=clock, pace=pace.swarm)
    asked_options = AskedOptions(
        cluster=cluster,
        swarm=engine.swarm,
        changes=option_changes,
        pace=pace.swarm,
    )
    asked_by_containers = AskedByContainers(
        engine=engine, cluster=cluster, changes=option_changes, pace=pace.node
    )
    disks = Disks(
        drivers=drivers,
        lease=lease,
        file=files.until_boot("hanging.json"),
        clock=clock,
        pace=pace.agent,
    )

    async def adopt() -> None:
        await drivers.tried.wait()
        await catalog.synced.wait()
        await custody.adopt()

    async def make_due_backups() -> None:
        await drivers.tried.wait()
        await catalog.synced.wait()
        await backup_schedule.run()

    async def make_due_drills() -> None:
        await drivers.tried.wait()
        await catalog.synced.wait()
        await drill_schedule.run()

    return LocalNode(
        cluster=cluster,
        drivers=drivers,
        use=use,
        custody=custody,
        lease=lease,
        promises=promises,
        replicator=replicator,
        acknowledging=acknowledging,
        sync_calls=sync_calls,
        reception=reception,
        verification=verification,
        handovers=handovers,
        takeover=takeover,
        promising=promising,
        recovery=recovery,
        volumes=volumes,
        docker=docker,
        hooks=hooks,
        services=services,
        membership=membership,
        leaving=leaving,
        upkeep=upkeep,
        forgetting=forgetting,
        trash=trash,
        freeing=freeing,
        service=service,
        peer_service=peer_service,
        after_handover=lambda start: AfterHandover(
            cluster=cluster, custody=custody, lease=lease, start=start, pace=pace.holding
        ),
        first=(
            Work("catalog", partial(catalog.follow, outside.store)),
            Work("catalog-copy", catalog.keep_saved),
            Work("drivers", drivers.keep_open),
            # Also while the store cannot be reached:
            Work("fencing", fencing.run),
            Work("certificate", renewing.run),
            Work("room", room.keep_free),
        ),
        then=(
            Work(
                "introduction",
                partial(keep_introduced, membership, settings.me, lease=lease, pace=pace.node),
            ),
            Work("lease", outside.keeper.run),
            Work("disks", disks.run),
            Work("proof", custody.prove_all),
            Work("idle", custody.detach_idle),
            Work("sound", room.keep_sound),
            Work("trim", room.keep_trimmed),
            Work("room-notes", room.keep_noted),
            Work("promises", promising.run),
            Work("in-sync", acknowledging.run),
            Work("set-back", abdication.run),
            Work("memories", memories.run),
            Work("putting-back", putting_back.run),
            Work("own-copies", own_copies.run),
            Work("admission", admission.run),
            Work("trash", trash.run),
            Work("freeing", freeing.run),
            Work("unheld", unheld.run),
            Work("twins", twins.run),
            Work("upkeep", upkeep.run),
            Work("forgetting", forgetting.run),
            Work("removals", removing.run),
            Work("quarantined", quarantined.run),
            Work("verification", verification.run),
            Work("replication", replicator.run),
            Work("former-snapshots", former_snapshots.run),
            Work("snapshots", snapshots.run),
            Work("clones", clones.run),
            Work("cloned-copies", cloned.run),
            Work("snapshot-hooks", snapshot_hooks.run),
            Work("imports", importing.run),
            Work("growing", growing.run),
            Work("usage", usage_log.run),
            Work("schedules", schedules.run),
            Work("deliveries", sender.run),
            Work("activation", partial(keep_activated, engine)),
            Work("adoption", adopt),
            Work("swarm-node", partial(keep_swarm_node, engine.swarm, membership, pace=pace.node)),
            Work("free-space", partial(keep_free_space, drivers, membership, pace=pace.node)),
            Work("evacuation", evacuation.run),
            Work("labels", labels.run),
            Work("asked-options", asked_options.run),
            Work("asked-by-containers", asked_by_containers.run),
            Work("hooks", hooks.run),
            Work("service-stops", service_stops.run),
            Work("cluster-keys", cluster_keys.run),
            Work("sealing-anew", rotating.run),
            Work("backup-schedule", make_due_backups),
            Work("drill-schedule", make_due_drills),
        ),
    )
