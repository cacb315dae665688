"""What nodes may ask of each other: the table of these operations, and how to reach the other nodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from pannier.contract import bodies
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.operation import OperationTable, peer
from pannier.contract.operations import (
    BACKUP_ERRORS,
    CHECK_SECONDS,
    CLONE_ERRORS,
    CLONE_SECONDS,
    CREATE_ERRORS,
    HELD_CONVERSION_ERRORS,
    MOVE_ERRORS,
    ROLLBACK_ERRORS,
    ROLLBACK_SECONDS,
    ROOM_USE_SECONDS,
    SNAPSHOT_ERRORS,
    SNAPSHOT_SECONDS,
    VERIFY_SECONDS,
)
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
from pannier.core import errors
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.hooks import Moment
from pannier.core.node import Node
from pannier.core.volume import Volume

HANDOVER_SECONDS = 15.0
"""For how long a client waits for a hand-over's answer; the holder answers within about 5 s."""
PROMISE_ANSWER_SECONDS = 2.0
"""How long a client waits for a promise: the holder asks all copies at once, and asks again after that."""
REMOVAL_SECONDS = 60.0
"""For how long a client waits until a member of etcd was started again: seconds, or more on a slow disk."""

_VOLUME = (errors.VolumeNotFound,)


class Peer(Protocol):
    """A node, as another one calls it; who asks is bound to the object: see :data:`PeerBy`.

    Every method may raise the errors listed here; ``Raises:`` of a method adds what is particular to it.

    Raises:
        PeerUnavailable: the called node cannot be reached; nothing was changed.
        Denied: one node does not accept the other's certificate.
        DeadlineExceeded: it was only asked for facts, and did not answer in time.
        OutcomeUnknown: it was asked for a change and did not answer, or the store did not answer it; the
            change may have been made.
        StoreUnavailable: it needs the store, which does not answer.
        Corrupt, NewerFormat: a record in the store is damaged, or only a newer version can act on it.
    """

    @peer("GET", "/node", "Live facts of this node")
    async def peer_node(self) -> NodeView:
        """Live facts of this node, its pool included.

        Raises:
            NodeNotFound: the called node does not find itself in the cluster, or not any more.
            StorageError: its pool cannot be read.
        """
        ...

    @peer(
        "POST",
        "/memory",
        "What this node remembers of volumes' records, page by page",
        body=bodies.PeerMemoryOrder,
    )
    async def peer_memory(self, after: str) -> MemoryView:
        """Volumes' records as this node remembers them: the store may have been restored from an older backup.

        Args:
            after: the last name of the page before; empty for the first page.
        """
        ...

    @peer(
        "GET",
        "/room-use",
        "What each volume takes of this node's pools",
        answer_seconds=ROOM_USE_SECONDS,
    )
    async def peer_room_use(self) -> list[RoomUseView]:
        """What each volume takes of this node's pools, those in the trash among them."""
        ...

    @peer(
        "GET",
        "/volumes/{volume}/usage",
        "What a volume took of this node's pools over time",
        raises=_VOLUME,
    )
    async def peer_usage(self, name: str) -> list[UsageSampleView]:
        """What a volume took of this node's pools over time, oldest first.

        Raises:
            VolumeNotFound: there is no such volume.
        """
        ...

    @peer("GET", "/certificates", "The certificates on this node")
    async def peer_certificates(self) -> list[CertificateView]:
        """The certificates on this node, with those that its authority remembers."""
        ...

    @peer(
        "POST",
        "/certificates/renewal",
        "Renew a certificate, on the node with the authority",
        body=bodies.RenewalOrder,
        raises=(errors.Conflict, errors.StorageError),
    )
    async def peer_renew(self, order: bodies.RenewalOrder) -> RenewalReply:
        """Renew the certificate of whoever the request proves: the asking node, or one that has asked it.

        Raises:
            Denied: the request proves nothing; or the node was removed, or the user's certificate has ended.
            Conflict: the authority is not here; or it is not due, or ends with the authority.
        """
        ...

    @peer(
        "POST",
        "/volumes",
        "Make a volume here",
        status=201,
        body=bodies.PeerVolumeOrder,
        raises=CREATE_ERRORS,
    )
    async def peer_create(self, name: str, options: Mapping[str, str], *, actor: str) -> VolumeView:
        """Make a volume here, on behalf of a node that was asked to place it here.

        Raises:
            InvalidInput: an option is not valid here.
            AlreadyExists: the volume exists, and its options are others.
            Conflict: there are too few nodes for its copies, or this node has data of a volume of this
                name that the store does not know; NotHolder where it has no such driver.
            StorageError: its pool is missing, full (PoolFull) or damaged.
        """
        ...

    @peer(
        "GET",
        "/volumes/{volume}",
        "What this node knows of a volume: as its holder, or as one that may have a copy",
        raises=(errors.VolumeNotFound, errors.NotHolder),
    )
    async def peer_volume(self, name: str) -> LiveVolumeView | VolumeCopyView:
        """Live facts of the holder; on any other node, whether it has a copy.

        Raises:
            VolumeNotFound: this node does not know it.
            NotHolder: this node holds it, and has no driver for it.
            StorageError: its data here cannot be read.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/handover",
        "The asking node wants to become the holder",
        body=bodies.HandoverOrder,
        raises=(errors.VolumeNotFound, errors.Stale, errors.NotHolder, errors.StorageError),
        answer_seconds=HANDOVER_SECONDS,
    )
    async def peer_handover(self, name: str, *, epoch: int) -> HandoverReply:
        """The asking node wants to become the holder after ``epoch``; answers within about 5 s.

        Raises:
            VolumeNotFound: there is no such volume.
            Stale: it is not held here, or not at ``epoch``; or it was changed while it was copied.
            Conflict: it is on its way to a third node, or the asking node has no driver for it.
            NodeNotFound: the asking node is not known here.
            VolumeInUse: its users did not stop while anybody wanted it.
            Unavailable: this node's disk has failed: a copy in sync takes over.
            PannierError: what else ended the hand-over, such as StorageError or PeerUnavailable.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/remove",
        "Move a volume that this node holds to the trash",
        body=bodies.PeerRemoval,
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.Stale, errors.StorageError),
    )
    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None:
        """Move a volume that this node holds to the trash.

        Raises:
            VolumeNotFound: there is no such volume.
            VolumeInUse: a container or a process uses it.
            Stale: it is another volume, is not held here, or was changed meanwhile.
            Conflict: it is on its way to another node.
            StorageError: this node's pool is missing or damaged.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/take",
        "Become the holder of a volume whose holder is lost",
        body=bodies.PeerTakeOrder,
        raises=(*_VOLUME, errors.Conflict, errors.StorageError),
    )
    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str
    ) -> VolumeView:
        """Become the holder after ``epoch``, whose holder is lost.

        Begins with ``generation``, by a person's decision; with None as a copy that is in sync. The holder at ``epoch`` itself
        stays it, and may begin without what is lost of what its epoch should begin with.

        Raises:
            VolumeNotFound: there is no such volume.
            Stale: it was changed since, or the holder is back.
            Conflict: the holder is up; or this copy is not in sync, or its newest generation is not
                ``generation``.
            NotFound: the record counts this copy as in sync, and nothing is here.
            NotHolder: this node has no driver for it.
            Unavailable: this node has promised the holder to wait.
            StorageError: this node's pool is missing or damaged.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/verify",
        "Read this node's copy to the last byte",
        body=bodies.VerifyOrder,
        raises=(*_VOLUME, errors.StorageError, errors.Unavailable),
        answer_seconds=VERIFY_SECONDS,
    )
    async def peer_verify(self, name: str, *, generation: str | None) -> CheckView:
        """Read this node's copy to the last byte; may take hours.

        It reads ``generation``, which other nodes read as well, or its newest one where that is gone by now.

        Raises:
            VolumeNotFound: this node does not know it.
            StorageError: the copy cannot be read. Damage that was found is in the answer.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/pieces",
        "What this node has in a range of a generation, piece by piece",
        body=bodies.PiecesOrder,
        raises=(*_VOLUME, errors.NotHolder, errors.StorageError),
        answer_seconds=VERIFY_SECONDS,
    )
    async def peer_pieces(
        self, name: str, *, generation: str, start: int, end: int | None, piece_bytes: int
    ) -> PiecesView:
        """Digests of the pieces of a generation; may take hours where all of it is read.

        Raises:
            VolumeNotFound: this node does not know it.
            NotHolder: this node does not keep it in blocks.
            StorageError: the generation is not here, or cannot be read.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/blocks",
        "Blocks of a volume, to mend a damaged copy with",
        body=bodies.BlocksOrder,
        raises=(*_VOLUME, errors.NotHolder, errors.StorageError),
    )
    async def peer_blocks(
        self, name: str, *, generation: str, blocks: list[bodies.BlockSum]
    ) -> BlocksView:
        """The blocks that this node has with these very checksums, in whatever generation.

        Raises:
            VolumeNotFound: this node does not know it.
            NotHolder: this node does not keep it in blocks.
            StorageError: its generations cannot be read.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/check",
        "Check the file system in this node's copy; nothing is mended",
        raises=(*_VOLUME, errors.Conflict, errors.StorageError),
        answer_seconds=CHECK_SECONDS,
    )
    async def peer_check(self, name: str) -> FileSystemView:
        """Check the file system in this node's copy.

        Raises:
            VolumeNotFound: this node does not know it.
            Conflict: it has no file system of its own.
            StorageError: the copy cannot be read.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/set-aside",
        "Set this node's copy aside and have it made anew: it is not what the holder has",
        body=bodies.HandoverOrder,
        raises=(*_VOLUME, errors.Stale, errors.Conflict, errors.StorageError),
    )
    async def peer_set_aside(self, name: str, *, epoch: int) -> CheckView:
        """Set this node's copy aside and have it made anew.

        Raises:
            VolumeNotFound: this node does not know it.
            Stale: the volume is not at ``epoch``. Conflict: this node holds it.
            StorageError: the copy cannot be set aside.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/lost-copy",
        "The asking node has nothing of a volume that this node holds, or lacks something of it",
        body=bodies.HandoverOrder,
        raises=(*_VOLUME, errors.Stale, errors.NotHolder, errors.Unavailable),
    )
    async def peer_lost_copy(self, name: str, *, epoch: int) -> None:
        """The asking node has nothing of a volume that is held here, at ``epoch``, or lacks what it has confirmed: send it all
        that it lacks, and count it again only when it has a generation that was made after this.

        Raises:
            NotHolder, Stale: it is not held here, or not at ``epoch``.
            Unavailable, OutcomeUnknown: the copy may still count as in sync; it is sent everything anyway.
        """
        ...

    @peer(
        "POST",
        "/promises",
        "Do not take volumes over for some time; the ids for which this is promised",
        body=bodies.PeerPromiseOrder,
        raises=(errors.Denied,),
        answer_seconds=PROMISE_ANSWER_SECONDS,
    )
    async def peer_promise(self, volumes: Mapping[str, int], *, seconds: float) -> list[str]:
        """Promise not to take these volumes (ids with epochs) over for ``seconds``.

        The asking node holds them and has lost the store. Returns the ids for which this is promised;
        the called node itself raises nothing.
        """
        ...

    @peer(
        "POST",
        "/removals",
        "Have the store's member here refuse removed nodes; what this node knows of removals",
        body=bodies.PeerRemovalsOrder,
        raises=(errors.StorageError,),
        answer_seconds=REMOVAL_SECONDS,
    )
    async def peer_removals(self, counts: Mapping[str, int]) -> RemovalsView:
        """Remember these removals, by node, and have the store's member on this node refuse those nodes.

        Returns what this node knows then. Without any it is only asked, and refuses nothing.

        Raises:
            StorageError, ProgramFailed: they cannot be remembered, or the member may still let such a node in.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/snapshots",
        "Make a snapshot of a volume that this node holds",
        status=201,
        body=bodies.PeerSnapshotOrder,
        raises=SNAPSHOT_ERRORS,
        answer_seconds=SNAPSHOT_SECONDS,
    )
    async def peer_snapshot(
        self,
        name: str,
        snapshot: str,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
    ) -> SnapshotView:
        """Make a snapshot of a volume that is held here, on behalf of a node that was asked.

        Raises:
            VolumeNotFound: there is no such volume.
            AlreadyExists: it has a snapshot of that name.
            Conflict: it is no image, has as many snapshots as it can have, or is on its way to another node; NotHolder where
                it is held elsewhere; Stale where it was changed meanwhile; a pre-snapshot hook failed, or a post-snapshot hook
                did, and the snapshot is there.
            EngineUnavailable: this node's engine does not say who uses it.
            StorageError: this node's pool is missing, full or damaged.
        """
        ...

    @peer(
        "POST",
        "/snapshots",
        "Make snapshots of several volumes that this node holds, at one moment with others; read on until it is done",
        body=bodies.PeerTogetherOrder,
        raises=SNAPSHOT_ERRORS,
    )
    def peer_together(self, order: bodies.PeerTogetherOrder) -> AsyncGenerator[TogetherView, None]:
        """Make snapshots of several volumes that are held here, which all stand still meanwhile.

        Unless the order is alone, each phase after the first waits for :meth:`peer_together_step`. Who stops reading before
        a phase gives everything up until then: the volumes go on, the post-snapshot hooks are run, and nothing has a name.

        Raises:
            As :meth:`peer_snapshot`; Unavailable: the next step did not come in time, or a volume did not stand still until all
            generations were made.
        """
        ...

    @peer(
        "POST",
        "/snapshots/step",
        "Go on to the next phase of such snapshots",
        body=bodies.PeerTogetherStep,
        raises=(errors.NotFound,),
    )
    async def peer_together_step(self, order: bodies.PeerTogetherStep) -> None:
        """Let a part go on to its next phase. Only the node that began it may say so.

        Raises:
            NotFound: there is no such part any more.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/conversion",
        "Convert a volume that this node holds, and report progress",
        body=bodies.PeerConversionOrder,
        raises=HELD_CONVERSION_ERRORS,
        cut_off="see what it is now: pannier volume show",
    )
    def peer_convert(
        self, name: str, options: Mapping[str, str], *, waits: bool, actor: str
    ) -> AsyncGenerator[ConversionProgress, None]:
        """Convert a volume that is held here, on behalf of a node that was asked; it ends when nobody reads the stream any more.

        Args:
            waits: for the end of those who use it.

        Raises:
            VolumeNotFound: there is no such volume.
            VolumeInUse: somebody uses it, without ``waits``.
            Conflict: nothing of it needs a copy; it is protected, on its way to another node or being converted, or was changed
                meanwhile; NotHolder where it is held elsewhere, or this node has no such driver.
            PoolFull: there is no room for it. StorageError: something cannot be read or written.
            OutcomeUnknown: also if the stream stops before its last value.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/rollback",
        "Take a volume that this node holds back to a snapshot",
        body=bodies.PeerRollbackOrder,
        raises=ROLLBACK_ERRORS,
        answer_seconds=ROLLBACK_SECONDS,
    )
    async def peer_roll_back(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        """Take a volume that is held here back to a snapshot, on behalf of a node that was asked.

        Raises:
            VolumeNotFound: there is no such volume.
            NotFound: it has no such snapshot.
            VolumeInUse: somebody uses it.
            Conflict: this node does not have the snapshot; it is no image, has as many snapshots as it can have, or is on its way
                to another node; NotHolder where it is held elsewhere; Stale where it was changed meanwhile.
            StorageError: this node's pool is missing, full or damaged.
            OutcomeUnknown: also if it was rolled back, and a copy does not have that yet.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/clones",
        "Make a clone of a volume that this node holds",
        status=201,
        body=bodies.PeerCloneOrder,
        raises=CLONE_ERRORS,
        answer_seconds=CLONE_SECONDS,
    )
    async def peer_clone(
        self,
        name: str,
        *,
        new: str,
        snapshot: str | None,
        options: Mapping[str, str],
        actor: str,
    ) -> VolumeView:
        """Make the volume ``new`` a clone of a volume that is held here, on behalf of a node that was asked.

        Raises:
            VolumeNotFound: there is no such volume. NotFound: it has no such snapshot.
            AlreadyExists: the name of the clone is taken, and not by a clone of the same.
            Conflict: the volume is no image, this node does not have the snapshot or may get no new volume, or no node can take one
                of the copies; NotHolder where it is held elsewhere; Stale where it was changed meanwhile.
            StorageError: this node's pool is missing, full (PoolFull) or damaged; nothing was made.
        """
        ...

    @peer(
        "GET",
        "/volumes/{volume}/snapshots",
        "The generations here that are snapshots of a volume; they stay as long as its record names them",
        raises=(errors.VolumeNotFound, errors.NotHolder, errors.StorageError),
    )
    async def peer_snapshots(self, name: str) -> list[str]:
        """The generations of this node that are snapshots of a volume. It has read the volume's record: what it says here, it
        keeps as long as that names it.

        Raises:
            VolumeNotFound: there is no such volume.
            NotHolder: this node has no driver for it.
            StorageError: its data here cannot be read.
        """
        ...

    @peer(
        "POST",
        "/backup-key",
        "A key of the cluster's",
        body=bodies.BackupKeyOrder,
        raises=(errors.NotFound, errors.StorageError),
    )
    async def peer_backup_key(self, id: str) -> BackupKeyView:
        """A key that the asking node lacks.

        Raises:
            NotFound: this node does not have it either. StorageError: its file cannot be read.
        """
        ...

    @peer(
        "POST",
        "/backup-key/take",
        "A key is about to be used: have it",
        body=bodies.BackupKeyOrder,
        raises=(errors.KeyMissing, errors.StorageError),
    )
    async def peer_take_key(self, id: str) -> None:
        """The asking node is about to name a key, and has it.

        Raises:
            KeyMissing: no node that answers has it. StorageError: it cannot be kept.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/backup",
        "Put a snapshot that this node has at a backup target, and report progress",
        body=bodies.PeerBackupOrder,
        raises=BACKUP_ERRORS,
        cut_off="see whether it is there: pannier backup ls",
    )
    def peer_put_backup(
        self, name: str, *, snapshot: str, target: str, plan: str | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        """Put a snapshot at a target, on behalf of a node that was asked.

        Raises:
            VolumeNotFound: there is no such volume.
            NotFound: it has no such snapshot, or this node does not have it; or there is no such target.
            Conflict: this node is just backing the volume up; or another repository is at the target.
            TargetUnavailable: it is not reached from here.
            StorageError: the snapshot cannot be shown here.
            Denied, Corrupt, BackupFailed: what else restic says.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/move",
        "Move a volume that this node holds, and report progress",
        body=bodies.PeerMoveOrder,
        raises=MOVE_ERRORS,
        cut_off="see where it is: pannier volume show",
    )
    def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """Move a volume that this node holds to ``node``, reporting progress.

        Raises:
            VolumeNotFound: there is no such volume.
            NodeNotFound: there is no such node.
            VolumeInUse: its users did not stop within ``wait_seconds``.
            Conflict: it is held elsewhere, or is on its way to a third node; or the target has no driver
                for it; Stale where it was changed meanwhile.
            Unavailable: this node's disk has failed.
            PeerUnavailable: also if the target cannot be reached.
            StorageError: this node's or the target's pool is missing, full or damaged.
            OutcomeUnknown: also if the stream stops before its last value.
        """
        ...

    @peer(
        "POST",
        "/services/{service}/hook",
        "Run a hook of the service's container here; after pre-move, read on while it is moved",
        body=bodies.PeerHookOrder,
        raises=(errors.NotFound, errors.Conflict, errors.EngineUnavailable),
    )
    def peer_hook(self, service: str, *, hook: Moment) -> AsyncGenerator[HookView, None]:
        """Run a hook of the service's container here, as that container's own labels give it.

        After a pre-move hook, the asking node reads on for as long as it moves the service.

        Raises:
            NotFound: no container of the service runs here.
            Conflict: the service is being moved already.
            InvalidInput: the container's labels ask for a hook that cannot be read.
            EngineUnavailable: the engine does not answer.
        """
        ...


PeerBy = Callable[[str], Peer]
"""This node as the node of that name may call it; the name is the one in its certificate."""
PEER_OPERATIONS: OperationTable[Peer] = OperationTable(Peer)  # type: ignore[type-abstract]


class Peers(Protocol):
    """How to reach the other nodes."""

    def to(self, node: Node) -> Peer:
        """The peer at a node's address; no connection is made yet.

        Raises:
            OSError: this node's certificate or key cannot be read.
        """
        ...


def holder_unreachable(volume: Volume, error: PannierError) -> PeerUnavailable:
    """The error for a use case that needs a volume's holder, which does not answer."""
    holder = volume.grant.node
    if volume.replicas:
        kept = f"copies are on {', '.join(volume.replicas)}"
        remedy = (
            f"start node {holder} or its network again; if it is lost: "
            f"pannier volume recover {volume.name}"
        )
    else:
        kept = "there is no other copy"
        remedy = f"start node {holder} or its network again; the data is there"
    return PeerUnavailable(
        f"volume {volume.name} is held by node {holder} (epoch {volume.grant.epoch}), which "
        f"does not answer ({error.message}); {kept}",
        remedy=remedy,
    )
