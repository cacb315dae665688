"""A cluster in a dictionary: both protocols that the API exposes, for tests of it and of its clients.

It keeps the promises that callers can see (errors, phases, what a repetition does) and notes every
call that has an actor or a peer.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from msgspec import structs

from pannier.contract.backup_progress import BackupProgress
from pannier.contract.bodies import (
    BackupTargetOrder,
    BlockSum,
    JoinOrder,
    PeerTogetherOrder,
    PeerTogetherStep,
    RenewalOrder,
    RotateOrder,
    UnlockOrder,
)
from pannier.contract.operations import LOCAL
from pannier.contract.together import TogetherView
from pannier.contract.usage import UsageSampleView, VolumeUsageView, usage_view
from pannier.contract.views import (
    BackupKeyView,
    BackupTargetView,
    BackupView,
    BlocksView,
    BlockView,
    CertificateView,
    CheckView,
    ClusterKeyView,
    ConversionProgress,
    CopyView,
    DrillView,
    EventView,
    FileSystemView,
    FindingView,
    HandoverReply,
    HookView,
    ImportProgress,
    JoinReply,
    MemoryView,
    MoveProgress,
    NodeView,
    PiecesView,
    PieceView,
    PolicyView,
    PrunedView,
    RemovalsView,
    RenewalReply,
    RoomUseView,
    ServiceMoveProgress,
    ServiceView,
    SnapshotView,
    StatusView,
    StepView,
    SyncView,
    TakeOutProgress,
    TokenView,
    TransferView,
    TrashView,
)
from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView, VolumeView
from pannier.contract.words import (
    BackupPhase,
    CertificateKind,
    CertificateState,
    CheckState,
    ConversionPhase,
    EventKind,
    FileSystemState,
    HandoverState,
    HolderState,
    ImportPhase,
    Level,
    MovePhase,
    NodeState,
    ServicePhase,
    TogetherPhase,
)
from pannier.core.clones import name_of_clone
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    InvalidInput,
    NodeNotFound,
    NotFound,
    NotHolder,
    VolumeInUse,
    VolumeNotFound,
)
from pannier.core.hooks import Moment
from pannier.core.importing import ImportSource
from pannier.core.options import parse_options
from pannier.core.schedules import parse_schedule

_THEN = "2026-01-02T03:04:05Z"


@dataclass(frozen=True, slots=True)
class NotedCall:
    """A call that changes something: what was asked, of what, and who asked."""

    operation: str
    subject: str
    actor: str
    peer: str = ""


@dataclass(slots=True)
class FakeCluster:
    """Three nodes and no volumes; ``here`` is the node that answers.

    Attributes:
        failing: operations that raise, by name.
        in_use: volume name to containers that use it; they never stop by themselves.
        transfers: volume name to what its view shows as under way.
        silent: nodes that do not answer.
        calls: what was asked, in order.
        more_events: what ``events(follow=True)`` yields after the past ones; None ends it.
        strict: whether volume options and schedules are read, or taken as they come; and whether what does not go together is
            refused.
        renewing: what answers a request for a renewal; without it the certificate stays as it is.
    """

    here: str = "node1"
    nodes_by_name: dict[str, NodeView] = field(default_factory=dict)
    volumes_by_name: dict[str, VolumeView] = field(default_factory=dict)
    removed: dict[str, VolumeView] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    in_use: dict[str, list[str]] = field(default_factory=dict)
    transfers: dict[str, TransferView] = field(default_factory=dict)
    syncs: dict[str, SyncView] = field(default_factory=dict)
    snapshots_of: dict[str, list[SnapshotView]] = field(default_factory=dict)
    policies_by_name: dict[str, PolicyView] = field(default_factory=dict)
    targets: dict[str, BackupTargetView] = field(default_factory=dict)
    keys: list[ClusterKeyView] = field(
        default_factory=lambda: [
            ClusterKeyView(
                id="9f" * 32, locked=False, node="node1", missing=[], volumes=1, earlier=[]
            )
        ]
    )
    """The cluster's, the last one now."""
    drills: dict[str, DrillView] = field(default_factory=dict)
    backups_made: list[BackupView] = field(default_factory=list)
    copies: dict[str, list[CopyView]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    findings: list[FindingView] = field(default_factory=list)
    past: list[EventView] = field(default_factory=list)
    calls: list[NotedCall] = field(default_factory=list)
    more_events: asyncio.Queue[EventView | None] = field(default_factory=asyncio.Queue)
    tokens: list[str] = field(default_factory=list)
    strict: bool = True
    renewing: Callable[[RenewalOrder], Awaitable[RenewalReply]] | None = None
    actor: str = LOCAL
    peer: str = ""

    def __post_init__(self) -> None:
        for number in (1, 2, 3):
            name = f"node{number}"
            self.nodes_by_name[name] = NodeView(
                name=name,
                address=f"10.0.0.{number}",
                state=NodeState.UP,
                drivers=["btrfs", "directory"],
                version="0.1.0",
                volumes=0,
                joined_at=_THEN,
                pool_total_bytes=100 * 2**30,
                pool_free_bytes=75 * 2**30,
            )

    def by(self, actor: str) -> Self:
        """The same cluster, asked by a user or tool."""
        asked = copy.copy(self)
        asked.actor, asked.peer = actor, ""
        return asked

    def by_node(self, name: str) -> Self:
        """The same cluster, asked by another node."""
        asked = copy.copy(self)
        asked.actor, asked.peer = "", name
        return asked

    def _begin(self, operation: str) -> None:
        """Begin an operation that changes nothing; fails if the test wants it to."""
        if operation in self.failing:
            raise self.failing[operation]

    def _change(self, operation: str, subject: str, *, actor: str | None = None) -> None:
        """Begin a change, or any operation that a node asks for: note the call; fails likewise."""
        self.calls.append(
            NotedCall(operation, subject, self.actor if actor is None else actor, self.peer)
        )
        self._begin(operation)

    def _volume(self, name: str) -> VolumeView:
        if name not in self.volumes_by_name:
            raise VolumeNotFound(
                f"there is no volume {name}", remedy="'pannier volume ls' shows what there is"
            )
        return self.volumes_by_name[name]

    def _node(self, name: str) -> NodeView:
        if name not in self.nodes_by_name:
            raise NodeNotFound(
                f"there is no node {name}", remedy="'pannier node ls' shows what there is"
            )
        return self.nodes_by_name[name]

    def _note(self, kind: EventKind, subject: str, detail: str = "") -> None:
        self.past.append(
            EventView(at=_THEN, kind=kind, subject=subject, node=self.here, detail=detail)
        )

    # The API's use cases

    async def status(self) -> StatusView:
        self._begin("status")
        return StatusView(
            cluster="test",
            node=self.here,
            version="0.1.0",
            store={"kind": "memory"},
            store_ok=True,
            nodes=list(self.nodes_by_name.values()),
            volumes=len(self.volumes_by_name),
            problems=[],
        )

    async def nodes(self) -> list[NodeView]:
        self._begin("nodes")
        return list(self.nodes_by_name.values())

    async def node(self, name: str) -> NodeView:
        self._begin("node")
        return self._node(name)

    async def drain_node(self, name: str, *, drained: bool) -> NodeView:
        self._change("drain_node", name)
        self.nodes_by_name[name] = replace(
            self._node(name), state=NodeState.DRAINED if drained else NodeState.UP
        )
        return self.nodes_by_name[name]

    async def certificates(self) -> list[CertificateView]:
        self._begin("certificates")
        return [_certificate(name) for name in self.nodes_by_name]

    async def renew_own_certificate(self, *, address: str | None) -> CertificateView:
        self._change("renew_own_certificate", address or "")
        return _certificate(self.here)

    async def renew_certificate(self, order: RenewalOrder) -> RenewalReply:
        self._change("renew_certificate", "")
        if self.renewing is not None:
            return await self.renewing(order)
        return RenewalReply(certificate=order.certificate)

    async def peer_certificates(self) -> list[CertificateView]:
        self._change("peer_certificates", "")
        return [_certificate(self.here)]

    async def peer_renew(self, order: RenewalOrder) -> RenewalReply:
        self._change("peer_renew", "")
        return RenewalReply(certificate=order.certificate)

    async def create_snapshot(
        self, name: str, snapshot: str, *, keep_seconds: float | None, labels: Mapping[str, str]
    ) -> SnapshotView:
        self._change("create_snapshot", name)
        holder = self._volume(name).holder
        there = self.snapshots_of.setdefault(name, [])
        if any(each.name == snapshot for each in there):
            raise AlreadyExists(f"volume {name} has a snapshot {snapshot} already")
        made = SnapshotView(
            volume=name,
            name=snapshot,
            generation="1.1",
            made_at=_THEN,
            keep_until=None if keep_seconds is None else _THEN,
            labels=dict(labels),
        )
        there.append(made)
        return replace(made, on=[holder], not_on=[], silent=sorted(self.silent))

    async def snapshots(self, name: str) -> list[SnapshotView]:
        self._begin("snapshots")
        self._volume(name)
        return list(self.snapshots_of.get(name, []))

    async def snapshot(self, name: str, snapshot: str) -> SnapshotView:
        self._begin("snapshot")
        return replace(self._snapshot(name, snapshot), on=[self._volume(name).holder])

    def _snapshot(self, name: str, snapshot: str) -> SnapshotView:
        self._volume(name)
        for each in self.snapshots_of.get(name, []):
            if each.name == snapshot:
                return each
        raise NotFound(f"volume {name} has no snapshot {snapshot}")

    async def remove_snapshot(self, name: str, snapshot: str) -> SnapshotView:
        self._change("remove_snapshot", name)
        gone = self._snapshot(name, snapshot)
        self.snapshots_of[name].remove(gone)
        return gone

    async def peer_snapshot(
        self,
        name: str,
        snapshot: str,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
    ) -> SnapshotView:
        return await self.by(actor).create_snapshot(
            name, snapshot, keep_seconds=keep_seconds, labels=labels
        )

    async def create_service_snapshot(
        self,
        name: str,
        *,
        snapshot: str | None,
        keep_seconds: float | None,
        labels: Mapping[str, str],
    ) -> list[SnapshotView]:
        self._change("create_service_snapshot", name)
        self._service(name)
        return [
            await self.create_snapshot(
                volume, snapshot or "web-now", keep_seconds=keep_seconds, labels=labels
            )
            for volume in self.volumes_by_name
        ]

    async def clone_service(
        self, name: str, *, name_as: str, options: Mapping[str, str]
    ) -> list[VolumeView]:
        self._change("clone_service", name)
        self._service(name)
        return [
            await self.clone_volume(
                each, new=name_of_clone(name_as, each), snapshot=None, options=options
            )
            for each in list(self.volumes_by_name)
        ]

    async def back_up_service(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        self._change("back_up_service", name)
        self._service(name)
        done: list[BackupView] = []
        for volume in self.volumes_by_name:
            async for step in self.back_up_volume(volume, target=target):
                if step.backup is None:
                    yield replace(step, volume=volume)
                else:
                    done.append(step.backup)
        yield BackupProgress(phase=BackupPhase.DONE, node=self.here, backups=done)

    def _service(self, name: str) -> None:
        if name != "web":
            raise NotFound(f"the Swarm has no service {name}", remedy="see docker service ls")

    async def peer_together(self, order: PeerTogetherOrder) -> AsyncGenerator[TogetherView, None]:
        self._change("peer_together", order.snapshot)
        yield TogetherView(phase=TogetherPhase.PREPARED)
        made = [
            await self.by(order.actor).create_snapshot(
                name, order.snapshot, keep_seconds=order.keep_seconds, labels=order.labels
            )
            for name in order.volumes
        ]
        yield TogetherView(phase=TogetherPhase.DONE, snapshots=made)

    async def peer_together_step(self, order: PeerTogetherStep) -> None:
        self._change("peer_together_step", order.phase)
        raise NotFound(f"node {self.here} makes no such snapshots any more")

    async def policies(self) -> list[PolicyView]:
        self._begin("policies")
        return list(self.policies_by_name.values())

    async def set_policy(
        self, name: str, *, schedule: str, labels: Mapping[str, str]
    ) -> PolicyView:
        self._change("set_policy", name)
        self.policies_by_name[name] = PolicyView(
            name=name,
            schedule=str(parse_schedule(schedule)) if self.strict else schedule,
            labels=dict(labels),
            volumes=list(self.volumes_by_name),
        )
        return self.policies_by_name[name]

    async def remove_policy(self, name: str) -> PolicyView:
        self._change("remove_policy", name)
        if name not in self.policies_by_name:
            raise NotFound(f"there is no policy {name}")
        return self.policies_by_name.pop(name)

    async def roll_back_volume(
        self, name: str, snapshot: str, *, stop_service: bool = False
    ) -> SnapshotView:
        self._change("roll_back_volume", name)
        self._snapshot(name, snapshot)
        users = self.in_use.get(name)
        if users and not stop_service:
            raise VolumeInUse(f"volume {name} is in use by {', '.join(users)}")
        kept = SnapshotView(
            volume=name,
            name="before-rollback-20260102T030405Z",
            generation="1.2",
            made_at=_THEN,
        )
        self.snapshots_of[name].append(kept)
        return kept

    async def peer_roll_back(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        return await self.by(actor).roll_back_volume(name, snapshot)

    async def peer_snapshots(self, name: str) -> list[str]:
        self._change("peer_snapshots", name)
        return [each.generation for each in await self.snapshots(name)]

    async def clone_volume(
        self, name: str, *, new: str, snapshot: str | None, options: Mapping[str, str]
    ) -> VolumeView:
        self._change("clone_volume", name)
        source = self._volume(name)
        if snapshot is not None:
            self._snapshot(name, snapshot)
        if new in self.volumes_by_name:
            raise AlreadyExists(f"volume {new} exists", remedy="use another name")
        self.volumes_by_name[new] = structs.replace(
            source,
            name=new,
            id=f"id-{new}",
            options={**source.options, **options},
            cloned_from=f"{name}@{snapshot}" if snapshot else name,
        )
        self._note(EventKind.VOLUME_CREATED, new)
        return self.volumes_by_name[new]

    async def peer_clone(
        self,
        name: str,
        *,
        new: str,
        snapshot: str | None,
        options: Mapping[str, str],
        actor: str,
    ) -> VolumeView:
        return await self.by(actor).clone_volume(name, new=new, snapshot=snapshot, options=options)

    async def cluster_key(self) -> ClusterKeyView:
        self._begin("cluster_key")
        return self.keys[-1]

    async def rotate_key(self, order: RotateOrder) -> ClusterKeyView:
        self._change("rotate_key", "")
        if self.strict and self.keys[-1].locked and order.passphrase is None:
            raise InvalidInput("the cluster's keys are locked with a passphrase")
        made = replace(self.keys[-1], id="7d" * 32, locked=bool(order.passphrase))
        self.keys.append(made)
        return made

    async def unlock_key(self, order: UnlockOrder) -> ClusterKeyView:
        self._change("unlock_key", "")
        if self.strict and not self.keys[-1].locked:
            raise Conflict("the cluster's keys are not locked with a passphrase")
        return self.keys[-1]

    async def backup_targets(self) -> list[BackupTargetView]:
        self._begin("backup_targets")
        return list(self.targets.values())

    async def add_backup_target(self, order: BackupTargetOrder) -> BackupTargetView:
        self._change("add_backup_target", order.name)
        if order.name in self.targets:
            raise AlreadyExists(f"there is a backup target {order.name} already")
        made = BackupTargetView(
            name=order.name,
            url=order.url,
            repository="5e" * 32,
            added_at=_THEN,
            read_only=order.read_only,
        )
        self.targets[order.name] = made
        return made

    def _target(self, name: str) -> BackupTargetView:
        if name not in self.targets:
            raise NotFound(f"there is no backup target {name}")
        return self.targets[name]

    async def remove_backup_target(self, target: str) -> BackupTargetView:
        self._change("remove_backup_target", target)
        self._target(target)
        return self.targets.pop(target)

    async def backups(self, target: str) -> list[BackupView]:
        self._begin("backups")
        self._target(target)
        return [each for each in self.backups_made if each.target == target]

    async def back_up_volume(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        self._change("back_up_volume", name)
        volume = self._volume(name)
        if self.strict and target is None and len(self.targets) != 1:
            raise InvalidInput(f"there are {len(self.targets)} backup targets")
        made = BackupView(
            target=self._target(target or next(iter(self.targets), "")).name,
            id="1f0c5a2e",
            volume=name,
            volume_id=volume.id,
            generation="1.1",
            made_at=_THEN,
            node="node2",
            bytes=2048,
            added_bytes=1024,
            read_files=1,
            unchanged_files=3,
        )
        self.backups_made.append(made)
        yield BackupProgress(phase=BackupPhase.READING, node="node2", done_bytes=1024, percent=50)
        yield BackupProgress(phase=BackupPhase.DONE, node="node2", backup=made)

    async def restore_backup(
        self, target: str, *, volume: str, backup: str | None, new: str, options: Mapping[str, str]
    ) -> AsyncGenerator[BackupProgress, None]:
        self._change("restore_backup", new)
        if not [each for each in await self.backups(target) if each.volume == volume]:
            raise NotFound(f"there is no backup of a volume {volume}")
        if new in self.volumes_by_name:
            raise AlreadyExists(f"there is a volume {new} already")
        made = await self.create_volume(new, options)
        yield BackupProgress(phase=BackupPhase.DONE, node=self.here, restored=made)

    async def backup_drills(self) -> list[DrillView]:
        self._begin("backup_drills")
        return list(self.drills.values())

    async def drill_backup(
        self,
        target: str,
        *,
        volume: str,
        backup: str | None,
        check_command: str | None,
        image: str | None,
    ) -> AsyncGenerator[BackupProgress, None]:
        self._change("drill_backup", volume)
        found = [each for each in await self.backups(target) if each.volume == volume]
        if not found:
            raise NotFound(f"there is no backup of a volume {volume}")
        if self.strict and (check_command is None) is not (image is None):
            raise InvalidInput("a check needs a command and an image")
        made = DrillView(
            target=target, volume=volume, backup=found[-1].id, at=_THEN, last_good=_THEN
        )
        self.drills[volume] = made
        done = replace(made, seconds=1.5)
        yield BackupProgress(phase=BackupPhase.DONE, node=self.here, drill=done)

    async def verify_backups(self, target: str) -> AsyncGenerator[BackupProgress, None]:
        self._change("verify_backups", target)
        yield BackupProgress(phase=BackupPhase.DONE, node=self.here, verified=self._target(target))

    async def prune_backups(
        self, target: str, *, keep_last: int, keep_daily: int, keep_weekly: int, keep_monthly: int
    ) -> PrunedView:
        self._change("prune_backups", target)
        self._target(target)
        if self.strict and not keep_last + keep_daily + keep_weekly + keep_monthly:
            raise InvalidInput("nothing is said of which backups stay")
        return PrunedView(target=target, kept=[each.id for each in self.backups_made], removed=[])

    async def peer_backup_key(self, id: str) -> BackupKeyView:
        self._change("peer_backup_key", "")
        raise NotFound(f"node {self.here} does not have the key {id[:8]}")

    async def peer_take_key(self, id: str) -> None:
        self._change("peer_take_key", "")

    async def peer_put_backup(
        self, name: str, *, snapshot: str, target: str, plan: str | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        async for step in self.by(actor).back_up_volume(name, target=target):
            yield step

    async def recover_volume(self, name: str, *, accept_loss: bool) -> VolumeView:
        self._change("recover_volume", name)
        if not accept_loss:
            raise Conflict(f"volume {name} would lose writes", remedy="use --accept-loss")
        return self._volume(name)

    async def verify_volume(self, name: str, *, trust_holder: bool = False) -> list[CheckView]:
        self._begin("verify_volume")
        return [CheckView(node=self._volume(name).holder, state=CheckState.WHOLE, generation="1.1")]

    async def peer_verify(self, name: str, *, generation: str | None) -> CheckView:
        self._change("peer_verify", name)
        return CheckView(node="node1", state=CheckState.WHOLE, generation="1.1")

    async def check_volume(self, name: str) -> list[FileSystemView]:
        self._begin("check_volume")
        return [FileSystemView(node=self._volume(name).holder, state=FileSystemState.SOUND)]

    async def show_tree(self, name: str, *, tree: str, at: str) -> None:
        self._change("show_tree", name)
        self._volume(name)

    async def take_out(
        self, name: str, *, tree: str | None, path: str, to: str
    ) -> AsyncGenerator[TakeOutProgress, None]:
        self._change("take_out", name)
        self._volume(name)
        yield TakeOutProgress(volume=name, path=path, copied_bytes=5)
        yield TakeOutProgress(volume=name, path=path, copied_bytes=10, to=f"{to}/{path}")

    async def clean_volume(self, name: str, *, paths: list[str]) -> None:
        self._change("clean_volume", name)
        self._volume(name)

    async def peer_check(self, name: str) -> FileSystemView:
        self._change("peer_check", name)
        return FileSystemView(node="node1", state=FileSystemState.SOUND, generation="1.1")

    async def peer_pieces(
        self, name: str, *, generation: str, start: int, end: int | None, piece_bytes: int
    ) -> PiecesView:
        self._change("peer_pieces", name)
        return PiecesView(pieces=[PieceView(start=start, digest="5f", proved=True)])

    async def peer_blocks(
        self, name: str, *, generation: str, blocks: list[BlockSum]
    ) -> BlocksView:
        self._change("peer_blocks", name)
        found = [BlockView(start=block.start, content=b"\0" * 4096) for block in blocks]
        return BlocksView(here=True, blocks=found)

    async def peer_set_aside(self, name: str, *, epoch: int) -> CheckView:
        self._change("peer_set_aside", name)
        self._volume(name)
        return CheckView(node="node1", state=CheckState.MADE_ANEW, generation="1.1")

    async def peer_lost_copy(self, name: str, *, epoch: int) -> None:
        self._change("peer_lost_copy", name)
        self._volume(name)

    async def room_use(self) -> list[RoomUseView]:
        return [
            RoomUseView(node=each.holder, volume=each.name, holds=True).measured(4096, 2048, 1024)
            for each in self.volumes_by_name.values()
        ] + [
            RoomUseView(node=node, volume="", holds=False).failed(f"node {node} does not answer")
            for node in sorted(self.silent)
        ]

    async def peer_room_use(self) -> list[RoomUseView]:
        self._change("peer_room_use", "")
        return await self.room_use()

    async def peer_memory(self, after: str) -> MemoryView:
        self._change("peer_memory", "")
        return MemoryView(records=[])

    async def peer_removals(self, counts: Mapping[str, int]) -> RemovalsView:
        """See :class:`~pannier.contract.peers.Peer`."""
        return RemovalsView(counts=dict(counts))

    async def peer_promise(self, volumes: Mapping[str, int], *, seconds: float) -> list[str]:
        self._change("peer_promise", ",".join(volumes))
        return list(volumes)

    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str
    ) -> VolumeView:
        self._change("peer_take", name, actor=actor)
        return self._volume(name)

    async def remove_node(self, name: str, *, lost: bool) -> None:
        self._change("remove_node", name)
        self._node(name)
        if not lost and any(v.holder == name for v in self.volumes_by_name.values()):
            raise Conflict(f"node {name} holds volumes", remedy="move them first")
        del self.nodes_by_name[name]

    async def create_token(self, *, ttl_seconds: float, uses: int) -> TokenView:
        self._change("create_token", f"{ttl_seconds:g}s")
        self.tokens.append(f"token-{len(self.tokens) + 1}")
        return TokenView(token=self.tokens[-1], expires_at=_THEN, uses=uses)

    async def join(self, order: JoinOrder) -> JoinReply:
        self._begin("join")
        if not order.token.startswith("token-"):
            raise Denied("the token is not accepted", remedy="make a new one: pannier token create")
        return JoinReply(cluster="test", certificate="PEM", ca="PEM", store="sqlite")

    async def volumes(self) -> list[VolumeView]:
        self._begin("volumes")
        return list(self.volumes_by_name.values())

    async def volume(self, name: str) -> LiveVolumeView | RememberedVolumeView:
        self._begin("volume")
        volume = self._volume(name)
        if volume.holder in self.silent:
            return RememberedVolumeView(**structs.asdict(volume), copies_on=[volume.holder])
        return self._live(volume)

    def _live(self, volume: VolumeView) -> LiveVolumeView:
        name = volume.name
        return LiveVolumeView(
            **structs.asdict(volume),
            generation="1.1",
            generations=["1.1"],
            used_bytes=4096,
            in_use_by=self.in_use.get(name, []),
            copies=self.copies.get(name, []),
            copies_on=[volume.holder],
            mountpoint=f"/mounts/{name}",
            transfer=self.transfers.get(name),
            sync_calls=0,
            sync_waiting_seconds=0.0,
            sync=self.syncs.get(name),
        )

    async def create_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        self._change("create_volume", name)
        if self.strict:
            parse_options(options)
        if name in self.volumes_by_name:
            raise AlreadyExists(f"volume {name} exists", remedy="use another name")
        self.volumes_by_name[name] = VolumeView(
            name=name,
            id=f"id-{name}",
            holder=self.here,
            holder_state=HolderState.UP,
            epoch=1,
            driver="btrfs",
            options=dict(options),
            created_at=_THEN,
        )
        self._note(EventKind.VOLUME_CREATED, name)
        return self.volumes_by_name[name]

    async def set_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        self._change("set_volume", name)
        volume = self._volume(name)
        changed = structs.replace(volume, options={**volume.options, **options})
        self.volumes_by_name[name] = changed
        self._note(EventKind.VOLUME_OPTIONS_CHANGED, name)
        return changed

    async def remove_volume(self, name: str) -> TrashView:
        self._change("remove_volume", name)
        volume = self._volume(name)
        if self.in_use.get(name):
            users = ", ".join(self.in_use[name])
            raise VolumeInUse(f"volume {name} is used by {users}", remedy="stop it first")
        self.removed[name] = self.volumes_by_name.pop(name)
        self._note(EventKind.VOLUME_REMOVED, name)
        return _as_trash(volume)

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float
    ) -> AsyncGenerator[MoveProgress, None]:
        self._change("move_volume", name)
        volume = self._volume(name)
        self._node(node)
        now = MoveProgress(
            phase=MovePhase.COPYING, volume=name, source=volume.holder, target=node, round=1
        )
        yield now
        yield replace(now, round=2, sent_bytes=5 * 2**20)
        users = self.in_use.get(name, [])
        if users:
            yield replace(
                now, phase=MovePhase.WAITING, round=2, sent_bytes=5 * 2**20, in_use_by=users
            )
            yield replace(
                now,
                phase=MovePhase.FAILED,
                code=VolumeInUse.code,
                error=f"volume {name} is still used by {', '.join(users)} on {volume.holder}",
                remedy="stop it, then move again: most of the data is there",
            )
            return
        yield replace(now, phase=MovePhase.SWITCHING, round=3, sent_bytes=6 * 2**20)
        self.volumes_by_name[name] = structs.replace(volume, holder=node, epoch=volume.epoch + 1)
        self._note(EventKind.VOLUME_MOVED, name, f"{volume.holder} to {node}")
        yield replace(
            now,
            phase=MovePhase.DONE,
            round=3,
            sent_bytes=6 * 2**20,
            pause_seconds=0.21,
            total_seconds=3.5,
            generation=f"{volume.epoch + 1}.1",
        )

    async def services(self) -> list[ServiceView]:
        self._begin("services")
        volumes = list(self.volumes_by_name)
        view = ServiceView(name="web", nodes=[self.here], volumes=volumes, copies_on=[self.here])
        return [view]

    async def volume_usage(self, name: str) -> VolumeUsageView:
        self._begin("volume_usage")
        volume = self._volume(name)
        days = (
            UsageSampleView(
                node=volume.holder, at=day * 86_400.0, holds=True, files_bytes=day << 30
            )
            for day in range(1, 5)
        )
        return usage_view(name, days, size=10 << 30, silent=self.silent)

    async def convert_volume(
        self, name: str, options: Mapping[str, str], *, stop_service: bool = False
    ) -> AsyncGenerator[ConversionProgress, None]:
        self._change("convert_volume", name)
        volume = self._volume(name)
        if (users := self.in_use.get(name, [])) and not stop_service:
            raise VolumeInUse(f"volume {name} is used by {users}", remedy="--stop-service")
        now = ConversionProgress(
            phase=ConversionPhase.COPYING, volume=name, node=volume.holder, used_bytes=5 * 2**20
        )
        yield now
        changed = {**volume.options, **options}
        self.volumes_by_name[name] = structs.replace(volume, options=changed)
        done = replace(now, phase=ConversionPhase.DONE, pause_seconds=1.25, former=f"{name}.1")
        yield done

    async def import_volume(
        self,
        name: str,
        *,
        source: str,
        options: Mapping[str, str],
        switch_service: str | None,
        wait_seconds: float,
    ) -> AsyncGenerator[ImportProgress, None]:
        self._change("import_volume", name)
        ImportSource.parse(source)
        now = ImportProgress(
            phase=ImportPhase.COPYING,
            volume=name,
            source=source,
            node=self.here,
            service=switch_service,
        )
        yield now
        await self.create_volume(name, options)
        yield replace(now, phase=ImportPhase.DONE, used_bytes=5 * 2**20, pause_seconds=0.4)

    async def move_service(
        self,
        name: str,
        node: str,
        *,
        now: bool,
        stay: bool,
        timeout_seconds: float,
    ) -> AsyncGenerator[ServiceMoveProgress, None]:
        self._change("move_service", name)
        if name != "web":
            raise NotFound(f"the Swarm has no service {name}", remedy="see docker service ls")
        self._node(node)
        steps = [StepView(seconds=0.0, what=f"web runs on {self.here}")]
        copy = MoveProgress(phase=MovePhase.COPYING, volume="data", source=self.here, target=node)
        first = ServiceMoveProgress(
            phase=ServicePhase.COPYING, service=name, source=self.here, target=node, steps=steps
        )
        yield replace(first, volumes=[copy])
        steps.append(StepView(seconds=1.5, what=f"web runs on {node}"))
        yield replace(first, phase=ServicePhase.DONE, pause_seconds=0.4)

    async def peer_hook(self, service: str, *, hook: Moment) -> AsyncGenerator[HookView, None]:
        self._change("peer_hook", service)
        if service != "web":
            raise NotFound(f"no container of service {service} runs on node {self.here}")
        began = HookView(hook=hook, container="web.1", abort=hook is Moment.BEFORE)
        yield began
        yield replace(began, ended=True, output=["done"])

    async def history(self, name: str) -> list[EventView]:
        self._begin("history")
        self._volume(name)
        return [event for event in self.past if event.subject == name]

    async def explain_volume(self, name: str) -> list[FindingView]:
        self._begin("explain_volume")
        volume = self._volume(name)
        return [
            FindingView(level=Level.OK, subject=f"volume {name}", what=f"held by {volume.holder}"),
        ]

    async def trash(self) -> list[TrashView]:
        self._begin("trash")
        return [_as_trash(volume) for volume in self.removed.values()]

    async def restore_volume(self, name_or_id: str) -> VolumeView:
        self._change("restore_volume", name_or_id)
        for name, volume in self.removed.items():
            if name_or_id in (name, volume.id):
                if name in self.volumes_by_name:
                    raise AlreadyExists(f"volume {name} exists", remedy="remove it first")
                self.volumes_by_name[name] = self.removed.pop(name)
                return volume
        raise VolumeNotFound(f"{name_or_id} is not in the trash", remedy="see 'volume trash'")

    async def purge_volume(self, name_or_id: str) -> TrashView:
        self._change("purge_volume", name_or_id)
        for name, volume in self.removed.items():
            if name_or_id in (name, volume.id):
                self._note(EventKind.VOLUME_PURGED, name)
                return _as_trash(self.removed.pop(name))
        raise VolumeNotFound(f"{name_or_id} is not in the trash", remedy="see 'trash ls'")

    async def empty_trash(self) -> list[TrashView]:
        self._change("empty_trash", "")
        gone = [_as_trash(volume) for volume in self.removed.values()]
        self.removed.clear()
        return gone

    async def doctor(self) -> list[FindingView]:
        self._begin("doctor")
        return self.findings

    async def events(self, *, follow: bool) -> AsyncGenerator[EventView, None]:
        self._begin("events")
        for event in self.past:
            yield event
        while follow:
            event_or_end = await self.more_events.get()
            if event_or_end is None:
                return
            yield event_or_end

    # What other nodes ask

    async def peer_volume(self, name: str) -> LiveVolumeView:
        self._change("peer_volume", name)
        volume = self._volume(name)
        if volume.holder != self.here:
            raise NotHolder(f"{self.here} does not hold volume {name}")
        return self._live(volume)

    async def peer_node(self) -> NodeView:
        self._change("peer_node", "")
        return self._node(self.here)

    async def peer_handover(self, name: str, *, epoch: int) -> HandoverReply:
        self._change("peer_handover", name)
        volume = self._volume(name)
        users = self.in_use.get(name, [])
        if users:
            return HandoverReply(state=HandoverState.IN_USE, in_use_by=users, sent_bytes=1024)
        self.volumes_by_name[name] = structs.replace(volume, holder=self.peer, epoch=epoch + 1)
        return HandoverReply(state=HandoverState.GIVEN, in_use_by=[])

    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None:
        self._change("peer_remove", name, actor=actor)
        if self._volume(name).id != volume_id:
            raise VolumeNotFound(f"volume {name} is another one now")
        await self.by(actor).remove_volume(name)

    async def peer_create(self, name: str, options: Mapping[str, str], *, actor: str) -> VolumeView:
        self._change("peer_create", name, actor=actor)
        return await self.by(actor).create_volume(name, options)

    async def peer_usage(self, name: str) -> list[UsageSampleView]:
        self._change("peer_usage", name)
        return (await self.volume_usage(name)).samples

    async def peer_convert(
        self, name: str, options: Mapping[str, str], *, waits: bool, actor: str
    ) -> AsyncGenerator[ConversionProgress, None]:
        self._change("peer_convert", name, actor=actor)
        async for step in self.by(actor).convert_volume(name, options, stop_service=waits):
            yield step

    async def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        self._change("peer_move", name, actor=actor)
        steps = self.by(actor).move_volume(name, node, wait_seconds=wait_seconds)
        async for progress in steps:
            yield progress


def _as_trash(volume: VolumeView) -> TrashView:
    return TrashView(
        name=volume.name,
        id=volume.id,
        holder=volume.holder,
        removed_at=_THEN,
        expires_at="2026-01-03T03:04:05Z",
    )


def _certificate(node: str) -> CertificateView:
    return CertificateView(
        name=node,
        kind=CertificateKind.NODE,
        node=node,
        where="/etc/pannier/node.crt",
        subject=f"CN={node},O=test",
        serial="7",
        valid_from=_THEN,
        valid_until="2027-01-02T03:04:05Z",
        state=CertificateState.GOOD,
    )
