"""What the API answers and the CLI shows: plain values, encoded as JSON with these names.

Those of volumes are in :mod:`~pannier.contract.volumes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pannier.contract.words import (
    CertificateKind,
    CertificateState,
    CheckState,
    ConversionPhase,
    EventKind,
    FileSystemState,
    HandoverState,
    ImportPhase,
    Level,
    MovePhase,
    NodeState,
    ServicePhase,
    SyncWay,
)
from pannier.core.hooks import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRecordView:
    """A record that a copy keeps: its run, the newest generation when it was made, and its number in the run."""

    run: str
    generation: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """Another node's copy, as the holder knows it.

    ``lag_seconds`` is the age of its data; None where this is not known yet. While all goes well, it is at
    most the volume's interval plus the time of one transfer, even if nothing is written. ``in_sync``: it
    may take over, and sync calls wait for it. ``error`` says why it is behind. ``room_percent`` is about
    what its node's pool has free. ``follows``: whether it gets each record; None where its holder does not say.
    ``record_error``: why it has not kept the last record that it was sent; empty where it has. ``record``: the newest that
    it has confirmed; None without any. ``sent_anew``: why it is sent everything, where differences to what it has did not
    arrive again and again; empty where it is not. ``refused``: why it could not take in everything the last time; empty where
    it could, or gets differences.
    """

    node: str
    generation: str | None = None
    lag_seconds: float | None = None
    in_sync: bool = False
    error: str = ""
    room_percent: int | None = None
    follows: bool | None = None
    record_error: str = ""
    record: KeptRecordView | None = None
    sent_anew: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadView:
    """The middle and the worst of several times, in seconds."""

    median: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncView:
    """How the holder makes sync calls durable, and what the last groups of them waited for.

    The times are all there or, without any group, all None. Each group has a time of each part; the medians of the
    parts do not add up to the median of the whole.

    Attributes:
        way: by what the next group would be made durable, as far as is known.
        reason: why not by a record; empty where it is one.
        remedy: what a person can do about that; empty where it passes by itself.
        groups: how many of the last groups the times are of.
        by_generation: how many of them waited for a generation.
        last_reason: why the last of those did.
        total: the whole.
        local: this node's own disk.
        turn: the group before, or a generation that was just made.
        cut: the making of a record, or a generation.
        copies: the slowest of the awaited copies: the way there, and its journal or disk.
    """

    way: SyncWay
    reason: str = ""
    remedy: str = ""
    groups: int = 0
    by_generation: int = 0
    last_reason: str = ""
    total: SpreadView | None = None
    local: SpreadView | None = None
    turn: SpreadView | None = None
    cut: SpreadView | None = None
    copies: SpreadView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """What a node found when it read its copy of a volume to the last byte.

    ``digest`` is the same for the same bytes, where the file system has no checksums.
    """

    node: str
    state: CheckState
    generation: str | None = None
    digest: str | None = None
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceView:
    """What a node has in one piece of a generation.

    ``start`` is where it begins, in bytes. ``digest`` is the same for the same bytes, and empty if all are zero.
    ``proved``: whether all that is not zero fits the checksums that were stored when it came.
    """

    start: int
    digest: str
    proved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesView:
    """What a node has in a range of a generation; pieces of zeros may be left out."""

    pieces: list[PieceView]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """A page of what a node remembers of volumes' records.

    Attributes:
        records: each as JSON, as the store keeps it; in the order of their names.
        more: whether there are others after them.
    """

    records: list[str]
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockView:
    """The bytes of a block that begins at ``start``; base64 in JSON."""

    start: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksView:
    """The blocks that a node has with the checksums that were asked for, in whatever generation.

    ``here``: whether it has the generation that the asking node has, so that what is missing is not right there.
    """

    here: bool
    blocks: list[BlockView]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystemView:
    """What a node found when it checked the file system in its copy of a volume.

    ``findings`` is what e2fsck would mend, in its own words.
    """

    node: str
    state: FileSystemState
    generation: str | None = None
    findings: list[str] = field(default_factory=list)
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferView:
    """A hand-over or move that is under way."""

    target: str
    phase: MovePhase
    round: int
    sent_bytes: int
    started_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """One line of the stream that a move answers with.

    Some fields are set only in some phases: ``in_use_by`` (waiting: for whom), ``pause_seconds`` (done),
    and ``error``, ``code`` and ``remedy`` (failed).
    """

    phase: MovePhase
    volume: str
    source: str
    target: str
    round: int = 0
    sent_bytes: int = 0
    in_use_by: list[str] = field(default_factory=list)
    pause_seconds: float | None = None
    total_seconds: float | None = None
    generation: str | None = None
    code: str | None = None
    error: str | None = None
    remedy: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self.phase in (MovePhase.DONE, MovePhase.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomUseView:
    """What a volume takes of a node's pool, in bytes of the disk.

    Attributes:
        volume: its name; empty where a node does not say anything.
        holds: whether the node holds it; else it has a copy.
        removed: whether it is in the trash.
        files_bytes: of the volume as it is now, or of the newest generation of a copy. None where it cannot be told.
        generations_bytes: what generations without a name keep besides. None also where the driver does not tell it apart.
        snapshots_bytes: what only snapshots keep.
        error: why it cannot be told.
    """

    node: str
    volume: str
    holds: bool
    removed: bool = False
    files_bytes: int | None = None
    generations_bytes: int | None = None
    snapshots_bytes: int | None = None
    error: str = ""

    def measured(self, files: int, generations: int | None, snapshots: int | None) -> RoomUseView:
        """The same with what was found."""
        return replace(
            self, files_bytes=files, generations_bytes=generations, snapshots_bytes=snapshots
        )

    def failed(self, error: str) -> RoomUseView:
        """The same with why nothing was found."""
        return replace(self, error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """One line of the stream that an import answers with.

    Attributes:
        node: the one that it runs on, which will hold the volume.
        used_bytes: what the new volume takes by now, to within some megabytes.
        in_use_by: who uses the source, while it waits for their end.
        service: the one that is stopped, and started with the volume.
        pause_seconds: from the time at which nobody used the source any more until the end; with ``service``, from its stop.
    """

    phase: ImportPhase
    volume: str
    source: str
    node: str
    used_bytes: int = 0
    in_use_by: list[str] = field(default_factory=list)
    service: str | None = None
    pause_seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self.phase is ImportPhase.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """One line of the stream that a conversion answers with.

    Attributes:
        node: the one that holds the volume.
        used_bytes: what the new volume takes by now, to within some megabytes.
        in_use_by: who uses the volume, while it waits for their end.
        pause_seconds: for how long nobody could use it.
        former: id in the trash of what it was; empty before the end.
    """

    phase: ConversionPhase
    volume: str
    node: str
    used_bytes: int = 0
    in_use_by: list[str] = field(default_factory=list)
    pause_seconds: float | None = None
    former: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self.phase is ConversionPhase.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class HookView:
    """A hook in a container: it has begun, or with ``ended`` it has ended.

    Attributes:
        failure: why it failed; empty where it did not.
        output: the last lines that it printed.
        abort: whether the move fails if the hook does.
    """

    hook: Moment
    container: str
    ended: bool = False
    failure: str = ""
    output: list[str] = field(default_factory=list)
    abort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """Something that a service's move has done, ``seconds`` after its start."""

    seconds: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMoveProgress:
    """One line of the stream that a service's move answers with.

    Attributes:
        source: the node that the service ran on; None where it ran on none.
        volumes: how each volume's own move goes.
        steps: all that has happened up to now.
        pause_seconds: from the old container's end until Swarm calls the new one running; with a
            health check, that is when it is healthy. None where no container on another node ended.
    """

    phase: ServicePhase
    service: str
    source: str | None
    target: str
    volumes: list[MoveProgress] = field(default_factory=list)
    steps: list[StepView] = field(default_factory=list)
    pause_seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self.phase is ServicePhase.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """A Swarm service with volumes of ours.

    Attributes:
        nodes: where it runs.
        volumes: those of its volumes that exist.
        copies_on: nodes from which it could start with all of them, without a transfer.
        tied_to: the constraint that a move has added and that is still there; None without one.
    """

    name: str
    nodes: list[str]
    volumes: list[str]
    copies_on: list[str]
    tied_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalView:
    """A node's journal: the records of other nodes' volumes that it keeps until their generations come.

    The figures are None where there is no journal.

    Attributes:
        total_bytes: of its file.
        live_bytes: what is needed of it.
        most_bytes: what may be needed; what does not fit is refused, and goes with a generation.
        volumes: what each volume needs, in bytes.
        trouble: why there is none, or why it takes nothing; empty where it is in order.
        damaged: which volumes may lack records that were confirmed, and why.
    """

    total_bytes: int | None = None
    live_bytes: int | None = None
    most_bytes: int | None = None
    volumes: dict[str, int] = field(default_factory=dict)
    trouble: str = ""
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as users see it.

    ``swarm`` is its engine's node id in Docker Swarm. ``sync_obstacle`` says why sync calls of its
    containers would not be held; empty where they are, None where the node or its engine was not asked.
    ``disk_error`` says why its disk keeps no volumes; empty where it does, None where it was not asked.
    ``journal`` is None where it was not asked, or has no driver that keeps records.
    """

    name: str
    address: str
    state: NodeState
    drivers: list[str]
    version: str
    volumes: int
    joined_at: str
    pool_total_bytes: int | None = None
    pool_free_bytes: int | None = None
    swarm: str | None = None
    sync_obstacle: str | None = None
    disk_error: str | None = None
    journal: JournalView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """A snapshot of a volume. Times are RFC 3339, UTC.

    Attributes:
        keep_until: when it goes by itself; None: never.
        by_schedule: whether a schedule made it, and removes it once it does not keep it any more.
        on: nodes that have it; not_on: nodes with a copy of the volume that lacks it; silent: those that did not say. None in
            lists, for which no node is asked.
        hook_failures: what hooks that may fail said when it was made; only in the answer to that.
    """

    volume: str
    name: str
    generation: str
    made_at: str
    keep_until: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    on: list[str] | None = None
    not_on: list[str] | None = None
    silent: list[str] | None = None
    hook_failures: list[str] = field(default_factory=list)
    by_schedule: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """A schedule of all volumes that have some labels. ``volumes``: those that have it by now."""

    name: str
    schedule: str
    labels: dict[str, str]
    volumes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOutProgress:
    """One line of the stream with which the copying of files out of a volume answers.

    ``to``: where they are; empty until all of them are.
    """

    volume: str
    path: str
    copied_bytes: int
    to: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return bool(self.to)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupTargetView:
    """Where backups go. Its secrets are never shown. Times are RFC 3339, UTC.

    Attributes:
        repository: the id of restic's repository there.
        read_only: only to restore from it.
    """

    name: str
    url: str
    repository: str
    added_at: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupView:
    """A backup of a volume. Times are RFC 3339, UTC.

    Attributes:
        id: restic's, of its snapshot.
        generation: of the volume, from which it was read; snapshot: what that was called. Backups of a service's volumes that are
            of one moment have the same. Empty where an earlier version has made it.
        bytes: of all files; None in lists, where it was made by an earlier version.
        node: the node that has read it; it, and what follows, is told only when a backup is made.
        added_bytes: what the target did not have yet.
        read_files, unchanged_files: numbers of files that were read, and that were not.
        not_removed: why the older ones are still there that need not stay; empty where all went well.
    """

    target: str
    id: str
    volume: str
    volume_id: str
    generation: str
    made_at: str
    node: str | None = None
    bytes: int | None = None
    added_bytes: int | None = None
    read_files: int | None = None
    unchanged_files: int | None = None
    not_removed: str = ""
    snapshot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillView:
    """The last restore drill of a volume at a target. Times are RFC 3339, UTC.

    Attributes:
        failure: why it failed; empty where it went well.
        last_good: when the last one went well; None: never.
        seconds: how long it took; told only when it is made.
    """

    target: str
    volume: str
    backup: str
    at: str
    failure: str = ""
    last_good: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedView:
    """What a prune has left and removed at a target: ids of backups."""

    target: str
    kept: list[str]
    removed: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupKeyView:
    """A key to the secrets of targets, base64; from node to node only."""

    id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterKeyView:
    """The key that encrypts the keys of volumes and the secrets of backup targets, as one node sees it.

    ``id`` names it, and says nothing of it; null where nothing was encrypted yet, or the store does not answer. ``locked``: with a
    passphrase, and in no node's file. ``missing``: ids of keys that ``node`` does not have. ``volumes``: how many are encrypted. ``earlier``: those of them whose
    keys are sealed with an earlier one, until their holders have sealed them anew.
    """

    id: str | None
    locked: bool
    node: str
    missing: list[str]
    volumes: int
    earlier: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """``pannier status``."""

    cluster: str
    node: str
    version: str
    store: dict[str, str]
    store_ok: bool
    nodes: list[NodeView]
    volumes: int
    problems: list[str]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something that happened. ``at`` is RFC 3339, UTC."""

    at: str
    kind: EventKind
    subject: str
    node: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashView:
    """A removed volume that can still be restored."""

    name: str
    id: str
    holder: str
    removed_at: str
    expires_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """One line of ``pannier doctor``."""

    level: Level
    subject: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A join token, shown once."""

    token: str
    expires_at: str
    uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """What a new node needs: its certificate and the CA's (PEM), and the store's address.

    ``store_certificate`` is for the same key, and opens the store; it and ``store_ca`` are empty where an earlier version
    set the store up, which takes ``certificate``.
    """

    cluster: str
    certificate: str
    ca: str
    store: str
    store_certificate: str = ""
    store_ca: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalsView:
    """How often nodes were removed, as far as a node knows: see :class:`pannier.core.removals.Removals`.

    Attributes:
        counts: by name.
        ages: by name, in seconds.
        floor: of those that are forgotten.
    """

    counts: dict[str, int]
    ages: dict[str, float] = field(default_factory=dict)
    floor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalReply:
    """A renewed certificate, and the CA's below it (PEM)."""

    certificate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView:
    """A certificate. Where it is unseen, ``error`` says why, and what it says is null.

    Attributes:
        name: of the node, user or etcd member; of an authority, what it calls itself.
        node: the node on which it is, or was noted; null for what a store's member shows and no node keeps.
        where: a path on that node, or a member's address.
        serial: hexadecimal.
        valid_from, valid_until: it counts from then until then.
    """

    name: str
    kind: CertificateKind
    node: str | None
    where: str
    state: CertificateState
    subject: str | None = None
    serial: str | None = None
    valid_from: str | None = None
    valid_until: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverReply:
    """A holder's answer to a node that wants the volume.

    ``in_use_by`` says by whom, where it is in use.
    """

    state: HandoverState
    in_use_by: list[str]
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """The body of every answer that is not a success."""

    code: str
    message: str
    remedy: str = ""
