"""What people and their tools may ask of a node: the table of these operations.

The edges translate any :class:`~pannier.core.errors.PannierError`; others are internal errors. The node's own
implementation, the client and the tests' stand-in have these methods; a row is all that the HTTP server, the
client and the OpenAPI document need to know of one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from pannier.contract import bodies
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.operation import OperationTable, cluster, joining, local
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
from pannier.core import errors

VERIFY_SECONDS = 24 * 3600.0
"""How long a client waits for a verification: a day, in which 8.6 TB are read at 100 MB/s."""
REMOVE_SECONDS = 180.0
"""For how long a client waits until a node is out: each member of etcd, five at most, is started again."""
CHECK_SECONDS = 3600.0
"""How long a client waits for a check of file systems: each reads all that is not files' content."""
ROOM_USE_SECONDS = 600.0
"""How long a client waits for what volumes take: where each extent of an image lies is read, some 100,000 in a second."""
DOCTOR_SECONDS = 60.0
"""How long a client waits for the doctor, which takes as long as the slowest part that it asks."""

_VOLUME = (errors.VolumeNotFound,)
_NODE = (errors.NodeNotFound,)
_SNAPSHOT = (errors.VolumeNotFound, errors.NotFound)
SNAPSHOT_ERRORS = (
    errors.VolumeNotFound,
    errors.AlreadyExists,
    errors.Conflict,
    errors.EngineUnavailable,
    errors.StorageError,
)
ROLLBACK_ERRORS = (
    errors.VolumeNotFound,
    errors.NotFound,
    errors.Conflict,
    errors.VolumeInUse,
    errors.StorageError,
)
SNAPSHOT_SECONDS = 3600.0
"""How long a client waits for a new snapshot. Hooks run before and after it, each for ten minutes unless it asks for more, and the
holder waits up to a minute for the copies in sync."""
ROLLBACK_SECONDS = 1200.0
"""How long a client waits for a rollback. A service may have five minutes to stop, and the copies in sync get what differs."""
TARGET_ERRORS = (
    errors.Conflict,
    errors.Denied,
    errors.TargetUnavailable,
    errors.BackupFailed,
    errors.StorageError,
)
BACKUP_ERRORS = (errors.NotFound, *TARGET_ERRORS)
ROTATE_SECONDS = 300.0
"""How long a client waits for a rotation: some milliseconds for each volume, and a call to each node."""
TARGET_SECONDS = 300.0
"""How long a client waits for what is short at a backup target: some commands, each of up to a minute."""
_SWARM = (errors.Conflict, errors.EngineUnavailable)
CREATE_ERRORS = (
    errors.AlreadyExists,
    errors.NodeNotFound,
    errors.StorageError,
    errors.PoolFull,
)
CLONE_ERRORS = (
    errors.VolumeNotFound,
    errors.NotFound,
    *CREATE_ERRORS,
    errors.Conflict,
)
CLONE_SECONDS = 630.0
"""How long a client waits for a clone. It takes less than a second; one that is made larger waits for a check of its file system,
and for the making of a new one as many minutes are allowed."""
MOVE_ERRORS = (
    errors.VolumeNotFound,
    errors.NodeNotFound,
    errors.Conflict,
    errors.StorageError,
)
IMPORT_ERRORS = (
    *CREATE_ERRORS,
    errors.NotFound,
    errors.VolumeInUse,
    errors.Conflict,
    errors.DeadlineExceeded,
    errors.Unavailable,
    errors.EngineUnavailable,
)
HELD_CONVERSION_ERRORS = (
    errors.VolumeNotFound,
    errors.VolumeInUse,
    errors.Conflict,
    errors.StorageError,
    errors.PoolFull,
)
CONVERSION_ERRORS = (
    *HELD_CONVERSION_ERRORS,
    errors.DeadlineExceeded,
    errors.Unavailable,
    errors.EngineUnavailable,
)


class Operations(Protocol):
    """What may be asked. Who asks is bound to the object: see :data:`OperationsBy`.

    Every method may raise the errors listed here; ``Raises:`` of a method adds what is particular to it.
    A method that must ask another node passes on what that node raises.

    Raises:
        InvalidInput: an argument is not valid.
        StoreUnavailable: the store does not answer; nothing was changed.
        OutcomeUnknown: a change was sent and no answer came; it may have been made.
        Corrupt, NewerFormat: a record in the store is damaged, or only a newer version can act on it.
        PeerUnavailable: the node that is asked, or another one that it needs, cannot be reached.
        Denied, DeadlineExceeded: from a client: a certificate is not accepted, or no answer in time.
    """

    @cluster("GET", "/status", "The cluster at a glance")
    async def status(self) -> StatusView: ...

    @cluster("GET", "/nodes", "All nodes")
    async def nodes(self) -> list[NodeView]: ...

    @cluster("GET", "/nodes/{node}", "One node", raises=_NODE)
    async def node(self, name: str) -> NodeView:
        """One node, with its pool's figures if it answers.

        Raises:
            NodeNotFound: there is none of that name.
            StorageError: it is the node that is asked, and its pool cannot be read.
        """
        ...

    @cluster(
        "PATCH",
        "/nodes/{node}",
        "Take a node out of placement, or put it back",
        body=bodies.NodeChange,
        raises=_NODE,
    )
    async def drain_node(self, name: str, *, drained: bool) -> NodeView:
        """Let a node give its volumes away as they become idle, and get no new ones; or undo that.

        Raises:
            NodeNotFound: there is none of that name.
            Stale: its record keeps changing; nothing was changed.
        """
        ...

    @cluster(
        "DELETE",
        "/nodes/{node}",
        "Forget a node that holds no volumes; with lost, one that is down for ever with them",
        flags=("lost",),
        raises=(errors.NodeNotFound, errors.Conflict, errors.StorageError, errors.Unavailable),
        answer_seconds=REMOVE_SECONDS,
    )
    async def remove_node(self, name: str, *, lost: bool) -> None:
        """Take a node out of the cluster.

        Raises:
            NodeNotFound: there is none of that name.
            Conflict: it holds volumes, or it is the node that is asked; or it is called lost, but it is
                up or one of its volumes has copies, or is protected; or it is a member of the store.
            Unavailable: a member of the store may still let it in; ask again.
            StorageError: the same of the member on the node that is asked.
            Stale: its record, or that of a volume, was changed meanwhile; ask again.
        """
        ...

    @cluster(
        "POST",
        "/tokens",
        "Make a token with which machines may join",
        status=201,
        body=bodies.TokenOrder,
    )
    async def create_token(self, *, ttl_seconds: float, uses: int) -> TokenView:
        """Make a join token.

        Raises:
            Conflict: the CA is on another node, or the store is for one node only.
        """
        ...

    @cluster("GET", "/certificates", "All certificates: of nodes, users, the authorities and etcd")
    async def certificates(self) -> list[CertificateView]:
        """All certificates, as the nodes that have them tell it. Those that do not answer are in it with an error."""
        ...

    @cluster(
        "POST",
        "/certificates/own",
        "Renew the certificates of the node that is asked now",
        body=bodies.OwnRenewalOrder,
        raises=(errors.Conflict, errors.StorageError),
    )
    async def renew_own_certificate(self, *, address: str | None) -> CertificateView:
        """Renew what is due of the certificates of the node that is asked, also what has ended. Returns its own.

        Raises:
            Conflict: none is due, one ends with its authority, or no node has the authority.
            Denied: the node was removed from the cluster.
            StorageError: one cannot be written.
        """
        ...

    @joining(
        "POST",
        "/certificates/renewal",
        "Renew a certificate; needs none on the connection, since the request proves who asks",
        body=bodies.RenewalOrder,
        raises=(errors.Conflict, errors.StorageError),
    )
    async def renew_certificate(self, order: bodies.RenewalOrder) -> RenewalReply:
        """Renew a certificate for the same key: a node's, a user's, or one for etcd.

        All but a user's may have ended. Who does not prove to have the key is told nothing but a refusal.

        Raises:
            Denied: the request does not prove it; or the node was removed, or the user's certificate has ended.
            Conflict: it is not due, ends with the authority, or no node has the authority.
        """
        ...

    @joining(
        "POST",
        "/join",
        "Become a node; needs no certificate, but a token",
        body=bodies.JoinOrder,
        raises=(errors.Conflict,),
    )
    async def join(self, order: bodies.JoinOrder) -> JoinReply:
        """Admit a machine that has a token. Without a right one, nothing but a refusal is told.

        Raises:
            Denied: the token is unknown, expired or used up. Unavailable: that cannot be found out now.
            AlreadyExists: there is a node of that name.
            Conflict: the CA is on another node, or the store is for one node only.
        """
        ...

    @cluster("GET", "/volumes", "All volumes")
    async def volumes(self) -> list[VolumeView]: ...

    @cluster(
        "GET",
        "/room-use",
        "What each volume takes of each pool",
        answer_seconds=ROOM_USE_SECONDS,
    )
    async def room_use(self) -> list[RoomUseView]:
        """What each volume takes of each pool, those in the trash among them. Nodes that do not answer are in it with an error."""
        ...

    @cluster(
        "GET",
        "/volumes/{volume}/usage",
        "What a volume took of the pools over time",
        raises=_VOLUME,
    )
    async def volume_usage(self, name: str) -> VolumeUsageView:
        """What a volume took of the pools in the last three months, hour by hour at first and day by day later.

        Raises:
            VolumeNotFound: there is none of that name.
        """
        ...

    @cluster(
        "POST",
        "/volumes",
        "Create a volume",
        status=201,
        body=bodies.VolumeOrder,
        raises=CLONE_ERRORS,
        answer_seconds=CLONE_SECONDS,
    )
    async def create_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        """Make a volume.

        Raises:
            AlreadyExists: it exists, and its options are others.
            VolumeNotFound, NotFound: there is no such volume, or snapshot, as it shall be a clone of.
            Conflict: no node can take the volume or one of its copies, or a node has data of a volume
                of this name that the store does not know; NotHolder where it has no such driver.
            StorageError: the node's pool is missing, full (PoolFull) or damaged.
        """
        ...

    @cluster(
        "PATCH",
        "/volumes/{volume}",
        "Change options of a volume",
        body=bodies.OptionsOrder,
        raises=(errors.VolumeNotFound, errors.NeedsCopy),
    )
    async def set_volume(self, name: str, options: Mapping[str, str]) -> VolumeView:
        """Change options of a volume that is there; what is not named stays.

        Raises:
            VolumeNotFound: there is none of that name.
            Conflict: an option stays as it was created, or cannot be changed now; NeedsCopy: :meth:`convert_volume` can change it.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/conversion",
        "Change options of a volume that need a copy of its files, and report progress",
        body=bodies.ConversionOrder,
        raises=CONVERSION_ERRORS,
        cut_off="see what it is now: pannier volume show",
    )
    def convert_volume(
        self, name: str, options: Mapping[str, str], *, stop_service: bool = False
    ) -> AsyncGenerator[ConversionProgress, None]:
        """Give a volume options for which its files have to be copied; progress as it goes.

        They are copied into a new volume, which then gets the name; what the volume was goes to the trash. Nothing is left of
        a conversion that does not come to its end, also if nobody reads the stream any more.

        With ``stop_service``, asked of a Swarm manager, the service that uses it is stopped for the last part and started after that,
        also where it fails.

        Raises:
            VolumeNotFound: there is none of that name.
            VolumeInUse: somebody uses it, or with ``stop_service`` somebody else than the service.
            Conflict: nothing of it needs a copy; the volume is protected, on its way to another node or being converted; or was
                changed meanwhile; NotHolder where its node has no such driver. With ``stop_service`` also: the node that is asked is
                no Swarm manager, or there is not one service that can be stopped.
            PoolFull: there is no room for it. StorageError: something cannot be read or written.
            DeadlineExceeded: the service did not end in time. Unavailable: it could not be started again.
            EngineUnavailable: Docker's Swarm does not answer.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster(
        "GET",
        "/volumes/{volume}",
        "One volume, with what only its holder knows",
        raises=_VOLUME,
    )
    async def volume(self, name: str) -> LiveVolumeView | RememberedVolumeView:
        """One volume, with what only its holder knows if that node answers.

        Raises:
            VolumeNotFound: there is none of that name.
            NotHolder: the node that is asked holds it, and has no driver for it.
            StorageError: its data on the node that is asked cannot be read.
        """
        ...

    @cluster(
        "DELETE",
        "/volumes/{volume}",
        "Move a volume to the trash",
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.StorageError),
    )
    async def remove_volume(self, name: str) -> TrashView:
        """Move a volume to the trash.

        Raises:
            VolumeNotFound: there is none of that name.
            VolumeInUse: a container or a process uses it.
            Stale: it was changed meanwhile.
            Conflict: it is protected, on its way to another node, or its holder has left the cluster.
            StorageError: the holder's pool is missing or damaged.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/move",
        "Move a volume to another node, and report progress",
        body=bodies.MoveOrder,
        raises=MOVE_ERRORS,
        cut_off="see where it is: pannier volume show",
    )
    def move_volume(
        self, name: str, node: str, *, wait_seconds: float
    ) -> AsyncGenerator[MoveProgress, None]:
        """Make ``node`` the holder, wherever the volume is now; progress as it goes.

        Raises:
            VolumeNotFound: there is no such volume.
            NodeNotFound: there is no such node.
            VolumeInUse: its users did not stop within ``wait_seconds``.
            Stale: it was changed meanwhile.
            Conflict: the target is down or has no driver for it, or it is on its way to another node.
            Unavailable: the holder's disk has failed.
            StorageError: the holder's or the target's pool is missing, full or damaged.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/import",
        "Make a volume of a local volume of Docker's or a directory, and report progress",
        body=bodies.ImportOrder,
        raises=IMPORT_ERRORS,
        cut_off="see whether it is there: pannier volume show",
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
        """Make a volume out of files on the node that is asked, which will hold it; progress as it goes.

        What is in use is copied first and again when nobody uses it any more. All files are compared. Nothing is left of an
        import that does not come to its end, also if nobody reads the stream any more; the source is never changed.

        Raises:
            AlreadyExists: the name is taken, also if it was taken meanwhile; or Docker has another volume of that name.
            NotFound: there is no such source, or no such service.
            VolumeInUse: who uses the source did not stop within ``wait_seconds``.
            Conflict: the source was changed while it was compared; the service does not mount it, or cannot be stopped;
                another node is to hold the volume; or the name is just being imported.
            PoolFull: the volume or the pool has no room for it.
            DeadlineExceeded: the service did not stop within ``wait_seconds``.
            Unavailable: the service did not come up, and has the source again.
            EngineUnavailable: Docker, or its Swarm, does not answer.
            StorageError: something cannot be read or written.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/snapshots",
        "Make a snapshot of a volume",
        status=201,
        body=bodies.SnapshotOrder,
        raises=SNAPSHOT_ERRORS,
        answer_seconds=SNAPSHOT_SECONDS,
    )
    async def create_snapshot(
        self, name: str, snapshot: str, *, keep_seconds: float | None, labels: Mapping[str, str]
    ) -> SnapshotView:
        """Make a snapshot of a volume, also of one that is in use. The hooks of the containers that use it run around it.

        Returns once each copy in sync has it, or after a minute; the answer says who has it.

        Raises:
            VolumeNotFound: there is none of that name.
            AlreadyExists: the volume has a snapshot of that name.
            Conflict: it is no image, has as many snapshots as it can have, or is on its way to another node; a pre-snapshot
                hook failed; or a post-snapshot hook did, and the snapshot is there.
            EngineUnavailable: the holder's engine does not say who uses it.
            Stale: it was changed meanwhile.
            StorageError: the holder's pool is missing, full or damaged.
        """
        ...

    @cluster(
        "GET",
        "/volumes/{volume}/snapshots",
        "All snapshots of a volume, oldest first",
        raises=_VOLUME,
    )
    async def snapshots(self, name: str) -> list[SnapshotView]:
        """All snapshots of a volume, in the order in which they were made.

        Raises:
            VolumeNotFound: there is none of that name.
        """
        ...

    @cluster(
        "GET",
        "/volumes/{volume}/snapshots/{snapshot}",
        "One snapshot, with the nodes that have it",
        raises=_SNAPSHOT,
    )
    async def snapshot(self, name: str, snapshot: str) -> SnapshotView:
        """One snapshot, with the nodes that have it.

        Raises:
            VolumeNotFound: there is no such volume.
            NotFound: the volume has no such snapshot.
        """
        ...

    @cluster(
        "DELETE",
        "/volumes/{volume}/snapshots/{snapshot}",
        "Remove a snapshot for ever",
        raises=_SNAPSHOT,
    )
    async def remove_snapshot(self, name: str, snapshot: str) -> SnapshotView:
        """Remove a snapshot for ever.

        Raises:
            VolumeNotFound: there is no such volume.
            NotFound: the volume has no such snapshot.
            Stale: the volume's record keeps changing.
        """
        ...

    @cluster("GET", "/schedules", "All policies: schedules of volumes that have some labels")
    async def policies(self) -> list[PolicyView]: ...

    @cluster(
        "PUT",
        "/schedules/{policy}",
        "Set a policy: the schedule of all volumes that have some labels",
        body=bodies.PolicyOrder,
    )
    async def set_policy(
        self, name: str, *, schedule: str, labels: Mapping[str, str]
    ) -> PolicyView:
        """Add a policy, or change it.

        A volume with a schedule of its own has only that. What several policies say of one volume counts together: the most of
        each kind.

        Raises:
            Stale: it was changed meanwhile.
        """
        ...

    @cluster("DELETE", "/schedules/{policy}", "Remove a policy", raises=(errors.NotFound,))
    async def remove_policy(self, name: str) -> PolicyView:
        """Remove a policy. Snapshots that were made by it stay.

        Raises:
            NotFound: there is none of that name.
            Stale: it was changed meanwhile.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/rollback",
        "Take a volume back to a snapshot; what it was before is kept as another one",
        body=bodies.RollbackOrder,
        raises=(
            *ROLLBACK_ERRORS,
            errors.EngineUnavailable,
            errors.Unavailable,
            errors.DeadlineExceeded,
        ),
        answer_seconds=ROLLBACK_SECONDS,
    )
    async def roll_back_volume(
        self, name: str, snapshot: str, *, stop_service: bool = False
    ) -> SnapshotView:
        """Take a volume that nobody uses back to a snapshot. Returns the snapshot that has what it was before.

        With ``stop_service``, asked of a Swarm manager, the service that uses it is stopped before and started after that, also
        where it fails.

        Raises:
            VolumeNotFound: there is no such volume.
            NotFound: it has no such snapshot.
            VolumeInUse: a container or a process uses it.
            Conflict: its holder does not have the snapshot; it is no image, has as many snapshots as it can have, or is on its way
                to another node. Stale: it was changed meanwhile.
                With ``stop_service`` also: the node that is asked is no Swarm manager, or there is not one service that can be
                stopped.
            DeadlineExceeded: the service has not stopped in time; it runs again.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader.
            Unavailable: the service could not be started again; the message says what became of the volume.
            StorageError: the holder's pool is missing, full or damaged.
            OutcomeUnknown: also if it was rolled back, and a copy does not have that yet.
        """
        ...

    @cluster("GET", "/key", "The key that encrypts volumes and the secrets of backup targets")
    async def cluster_key(self) -> ClusterKeyView: ...

    @cluster(
        "POST",
        "/key/rotate",
        "Put another key in the place of the cluster's",
        body=bodies.RotateOrder,
        raises=(errors.Conflict, errors.KeyMissing, errors.StorageError),
        answer_seconds=ROTATE_SECONDS,
    )
    async def rotate_key(self, order: bodies.RotateOrder) -> ClusterKeyView:
        """Make a new key, and seal with it the keys of all volumes and the secrets of all targets.

        Raises:
            InvalidInput: a passphrase cannot be, or the keys are locked and nothing is said of the new one.
            Conflict: a node that is up does not take the new key. Stale: another rotation was faster. KeyMissing: an earlier one is
                not on the node that was asked. StorageError: it cannot be kept there.
            OutcomeUnknown: it may be the cluster's key by now.
        """
        ...

    @cluster(
        "POST",
        "/key/unlock",
        "Have the keys that are locked with a passphrase, on the node that is asked",
        body=bodies.UnlockOrder,
        raises=(errors.Conflict, errors.Denied, errors.StorageError),
    )
    async def unlock_key(self, order: bodies.UnlockOrder) -> ClusterKeyView:
        """Have the keys in memory. The other nodes ask for them.

        Raises:
            Denied: it is another passphrase. Conflict: no key is locked. Corrupt: what the store has cannot be read.
        """
        ...

    @cluster("GET", "/backup/targets", "All backup targets")
    async def backup_targets(self) -> list[BackupTargetView]: ...

    @cluster(
        "POST",
        "/backup/targets",
        "Add a backup target, and make a repository where there is none",
        status=201,
        body=bodies.BackupTargetOrder,
        raises=(errors.AlreadyExists, *TARGET_ERRORS),
        answer_seconds=TARGET_SECONDS,
    )
    async def add_backup_target(self, order: bodies.BackupTargetOrder) -> BackupTargetView:
        """Add a backup target. It is tried on the node that is asked; the secrets are kept encrypted.

        Raises:
            InvalidInput: also if a secret is missing.
            AlreadyExists: there is one of that name.
            Conflict: another cluster's backups are there, and it is not only to be read.
            Denied: the repository there has another password, or the place lets nobody in.
            TargetUnavailable: it is not reached from here. BackupFailed, Corrupt: what else restic says.
            StorageError: what that needs on the node cannot be written.
        """
        ...

    @cluster(
        "DELETE",
        "/backup/targets/{target}",
        "Forget a backup target with its secrets; what is there stays",
        raises=(errors.NotFound,),
    )
    async def remove_backup_target(self, target: str) -> BackupTargetView:
        """Forget a backup target.

        Raises:
            NotFound: there is none of that name. Stale: it was changed meanwhile.
        """
        ...

    @cluster(
        "GET",
        "/backup/targets/{target}/backups",
        "All backups at a target, oldest first",
        raises=(errors.NotFound, *TARGET_ERRORS),
        answer_seconds=TARGET_SECONDS,
    )
    async def backups(self, target: str) -> list[BackupView]:
        """All backups at a target, also of volumes that are gone. The node that is asked looks.

        Raises:
            NotFound: there is no such target.
            Conflict: another repository is there by now.
            Denied, TargetUnavailable, Corrupt, BackupFailed: as :meth:`add_backup_target`.
        """
        ...

    @cluster(
        "POST",
        "/backup/targets/{target}/verify",
        "Read all that is at a target to the last byte, and report progress",
        raises=(errors.NotFound, *TARGET_ERRORS),
        cut_off="ask for it again",
    )
    def verify_backups(self, target: str) -> AsyncGenerator[BackupProgress, None]:
        """Read all that is at a target, on the node that is asked; progress as it goes.

        Raises:
            Corrupt: something there is damaged.
            NotFound, Conflict, Denied, TargetUnavailable, BackupFailed: as :meth:`backups`.
        """
        ...

    @cluster(
        "POST",
        "/backup/targets/{target}/prune",
        "Remove backups of this cluster that need not stay",
        body=bodies.PruneOrder,
        raises=(errors.NotFound, *TARGET_ERRORS),
        answer_seconds=VERIFY_SECONDS,
    )
    async def prune_backups(
        self, target: str, *, keep_last: int, keep_daily: int, keep_weekly: int, keep_monthly: int
    ) -> PrunedView:
        """Remove backups of this cluster that need not stay, of each volume for itself.

        Raises:
            InvalidInput: none would stay.
            NotFound, Conflict, Denied, TargetUnavailable, Corrupt, BackupFailed: as :meth:`backups`.
        """
        ...

    @cluster(
        "POST",
        "/backup/targets/{target}/restore",
        "Make a new volume of a backup, on the node that is asked, and report progress",
        body=bodies.RestoreOrder,
        raises=(errors.NotFound, *TARGET_ERRORS, *CREATE_ERRORS),
        cut_off="see whether it is there: pannier volume show",
    )
    def restore_backup(
        self, target: str, *, volume: str, backup: str | None, new: str, options: Mapping[str, str]
    ) -> AsyncGenerator[BackupProgress, None]:
        """Make a new volume of a backup; progress as it goes. It goes on if nobody reads the stream any more.

        Raises:
            NotFound: there is no such target, or no such backup there.
            AlreadyExists: there is a volume ``new``.
            BackupFailed: also if what is on the disk is not what is in the backup. Then there is no new volume.
            Conflict, Denied, TargetUnavailable, Corrupt: as :meth:`backups`; Conflict, StorageError: as :meth:`create_volume`.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster("GET", "/backup/drills", "The last restore drill of each volume at each target")
    async def backup_drills(self) -> list[DrillView]: ...

    @cluster(
        "POST",
        "/backup/targets/{target}/drill",
        "Bring a backup back as a scratch volume, look at it, remove it again, and report progress",
        body=bodies.DrillOrder,
        raises=(errors.NotFound, *TARGET_ERRORS, *CREATE_ERRORS),
        cut_off="see what became of it: pannier backup drills",
    )
    def drill_backup(
        self,
        target: str,
        *,
        volume: str,
        backup: str | None,
        check_command: str | None,
        image: str | None,
    ) -> AsyncGenerator[BackupProgress, None]:
        """Bring a backup back on the node that is asked, compare all bytes, run a check in a container, and remove all of it again.

        It goes on if nobody reads the stream any more.

        Raises:
            InvalidInput: a check needs a command and an image.
            NotFound: there is no such target, or no such backup there.
            BackupFailed: also if the check failed.
            Conflict, Denied, TargetUnavailable, Corrupt, StorageError: as :meth:`restore_backup`.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/backups",
        "Back a volume up, and report progress",
        body=bodies.BackupOrder,
        raises=BACKUP_ERRORS,
        cut_off="see whether it is there: pannier backup ls",
    )
    def back_up_volume(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        """Back a volume up, also one that is in use. A node that does not hold it reads it, where one has a copy.

        It goes on if nobody reads the stream any more.

        Raises:
            InvalidInput: no target was named, and there is not exactly one.
            VolumeNotFound: there is none of that name. NotFound: there is no such target.
            TargetUnavailable: no node with a copy reaches the target.
            Conflict, StorageError: as :meth:`create_snapshot`; Conflict also if another repository is at the target.
            Denied, Corrupt, BackupFailed: as :meth:`backups`.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/clones",
        "Make a new volume that begins as what a volume is, or was in a snapshot",
        status=201,
        body=bodies.CloneOrder,
        raises=CLONE_ERRORS,
        answer_seconds=CLONE_SECONDS,
    )
    async def clone_volume(
        self, name: str, *, new: str, snapshot: str | None, options: Mapping[str, str]
    ) -> VolumeView:
        """Make the volume ``new`` a clone of a volume, also of one that is in use. Both share what they do not change.

        Raises:
            VolumeNotFound: there is no such volume. NotFound: it has no such snapshot.
            AlreadyExists: the name of the clone is taken.
            Conflict: the volume is no image, its holder does not have the snapshot or may get no new volume, or no node can take one
                of the copies. Stale: it was changed meanwhile.
            StorageError: the holder's pool is missing, full (PoolFull) or damaged; nothing was made.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/recover",
        "Give a lost holder's volume to the newest copy",
        body=bodies.RecoverOrder,
        raises=(*_VOLUME, errors.Conflict, errors.Unavailable),
    )
    async def recover_volume(self, name: str, *, accept_loss: bool) -> VolumeView:
        """Give a lost holder's volume to the newest copy.

        Raises:
            VolumeNotFound: there is none of that name.
            Conflict: the holder is up and needs no word, or the newest copy lacks writes and ``accept_loss`` is false.
            Stale: it was changed meanwhile, or the holder is back.
            Unavailable: no node that answers has a copy, or one has promised the holder to wait.
            StorageError: the copy's pool is missing or damaged.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/verify",
        "Read every copy of a volume to the last byte, and have damaged ones mended or made anew",
        flags=("trust_holder",),
        raises=_VOLUME,
        answer_seconds=VERIFY_SECONDS,
    )
    async def verify_volume(self, name: str, *, trust_holder: bool = False) -> list[CheckView]:
        """Have every copy of a volume read to the last byte. What other nodes raise is in the answer.

        With ``trust_holder``, a copy that is not what the holder has is made anew although nobody can prove theirs.

        Raises:
            VolumeNotFound: there is none of that name.
            StorageError: the copy on the node that is asked cannot be read.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/check",
        "Check the file system in every copy of a volume; nothing is mended",
        raises=(*_VOLUME, errors.Conflict),
        answer_seconds=CHECK_SECONDS,
    )
    async def check_volume(self, name: str) -> list[FileSystemView]:
        """Check the file system in every copy of a volume, and say what e2fsck would mend.

        Raises:
            VolumeNotFound: there is none of that name.
            Conflict: it has no file system of its own: it is a tree of files in the pool.
            StorageError: the copy on the node that is asked cannot be read.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/show",
        "Mount a former state of a volume, read-only, on the node that is asked",
        body=bodies.ShowOrder,
        raises=(*_VOLUME, errors.NotFound, errors.Conflict),
    )
    async def show_tree(self, name: str, *, tree: str, at: str) -> None:
        """Mount what the node that is asked has of a volume, read-only; it goes with its unmount.

        Args:
            tree: an epoch, as the doctor names strays by, a generation, or a snapshot's name.
            at: the path of an empty directory on that node.

        Raises:
            VolumeNotFound: there is none of that name.
            NotFound: there is no such epoch, generation or snapshot, or not on that node.
            Conflict: the volume is a tree of files, or the directory is not empty.
            StorageError: it cannot be mounted.
        """
        ...

    @local(
        "POST",
        "/volumes/{volume}/take-out",
        "Copy files out of a volume to a new place on the node that is asked, and report progress",
        body=bodies.TakeOutOrder,
        raises=(
            *_VOLUME,
            errors.NotFound,
            errors.NotHolder,
            errors.Conflict,
            errors.AlreadyExists,
            errors.StorageError,
        ),
        cut_off="see whether it is there: it has its name only once all of it is",
    )
    def take_out(
        self, name: str, *, tree: str | None, path: str, to: str
    ) -> AsyncGenerator[TakeOutProgress, None]:
        """Copy a file or a directory out of a volume into a directory of the node that is asked.

        Owners, permissions, times, extended attributes, holes and links between files are kept. No symbolic link is followed,
        and nothing is overwritten. Only whoever is root there may ask, since files of any owner are made.

        Args:
            tree: as in :meth:`show_tree`; None is what the volume is now.
            path: in the volume, from its root.
            to: the absolute path of a directory.

        Raises:
            VolumeNotFound: there is none of that name.
            NotFound: there is no such state, or not on that node; or nothing is at the path.
            NotHolder: what the volume is now is asked of a node that does not hold it.
            AlreadyExists: something is at the new place.
            Conflict: the volume is a tree of files.
            StorageError: something cannot be read, or not written.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster(
        "POST",
        "/volumes/{volume}/clean",
        "Remove files of a volume that stands still for want of room, on the node that is asked",
        body=bodies.CleanOrder,
        raises=(*_VOLUME, errors.NotFound, errors.Conflict),
    )
    async def clean_volume(self, name: str, *, paths: list[str]) -> None:
        """Remove files or directories of a volume whose containers stand still, since its pool is full.

        Args:
            paths: in the volume, from its root. The first that cannot be removed ends it.

        Raises:
            VolumeNotFound: there is none of that name.
            NotHolder: the node that is asked does not hold it.
            NotFound: nothing is there; what came before it is removed.
            Conflict: it does not stand still, or its file system is frozen as well.
            StorageError: something cannot be removed.
        """
        ...

    @cluster(
        "GET",
        "/volumes/{volume}/history",
        "What happened to a volume, oldest first",
        raises=_VOLUME,
    )
    async def history(self, name: str) -> list[EventView]:
        """What happened to a volume, or to a removed one if no present one has that name.

        Raises:
            VolumeNotFound: there is none of that name, in the trash either.
        """
        ...

    @cluster(
        "GET",
        "/volumes/{volume}/doctor",
        "Who holds a volume, what will happen next, and the one safe command",
        raises=_VOLUME,
    )
    async def explain_volume(self, name: str) -> list[FindingView]:
        """Who holds a volume, what will happen next, and the one safe command.

        Raises:
            VolumeNotFound: there is none of that name.
            NotHolder: the node that is asked holds it, and has no driver for it.
            StorageError: its data on the node that is asked cannot be read.
        """
        ...

    @cluster(
        "GET",
        "/services",
        "The Swarm's services with volumes of Pannier; asked of a Swarm manager",
        raises=_SWARM,
    )
    async def services(self) -> list[ServiceView]:
        """The Swarm's services with volumes of ours.

        Raises:
            Conflict: the node that is asked is no Swarm manager.
            EngineUnavailable: its engine does not answer, or the Swarm has no leader.
        """
        ...

    @cluster(
        "POST",
        "/services/{service}/move",
        "Move a Swarm service with its volumes to another node, and report progress",
        body=bodies.ServiceMoveOrder,
        raises=(errors.NotFound, errors.PoolFull, errors.DeadlineExceeded, *MOVE_ERRORS, *_SWARM),
        cut_off="the same command, given again, brings it to its end",
    )
    def move_service(
        self, name: str, node: str, *, now: bool, stay: bool, timeout_seconds: float
    ) -> AsyncGenerator[ServiceMoveProgress, None]:
        """Move a Swarm service with its volumes; progress as it goes.

        Raises:
            NotFound: the Swarm has no such service, or no container of it runs for its hook.
            NodeNotFound: there is no such node.
            VolumeInUse: another container uses one of its volumes.
            PoolFull: the target has no room for its volumes.
            Conflict: the node that is asked is no Swarm manager; the service is on its way elsewhere,
                or something else is in the way; its hook failed; or the move was given up.
            DeadlineExceeded: its volumes were not copied within ``timeout_seconds``; nothing was changed.
            Unavailable: it was moved and does not run; or the old container's node lost sight of the
                move, and nothing was changed.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader.
            Stale: somebody keeps changing the service; nothing was changed.
            PannierError: what ended the move of one of its volumes; see :meth:`move_volume`.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster(
        "POST",
        "/services/{service}/snapshots",
        "Make snapshots of all volumes of a Swarm service, at one moment; asked of a Swarm manager",
        status=201,
        body=bodies.ServiceSnapshotOrder,
        raises=(errors.NotFound, errors.Unavailable, *SNAPSHOT_ERRORS),
        answer_seconds=SNAPSHOT_SECONDS,
    )
    async def create_service_snapshot(
        self,
        name: str,
        *,
        snapshot: str | None,
        keep_seconds: float | None,
        labels: Mapping[str, str],
    ) -> list[SnapshotView]:
        """Make snapshots of all volumes of a service, of one name and as of one moment: they stand still meanwhile, and the hooks
        of the containers that use them run around it. All snapshots are made, or none.

        Args:
            snapshot: None for a name made of the service's and the time.

        Raises:
            NotFound: the Swarm has no such service.
            Conflict: the node that is asked is no Swarm manager; the service has no volumes of ours; or one of them cannot have
                the snapshot, as with :meth:`create_snapshot`.
            Unavailable: a volume went on before all had their generations. PeerUnavailable: a holder does not answer.
            EngineUnavailable: an engine does not answer, or the Swarm has no leader.
            StorageError: a holder's pool is missing, full or damaged.
        """
        ...

    @cluster(
        "POST",
        "/services/{service}/clones",
        "Make clones of all volumes of a Swarm service, as of one moment; asked of a Swarm manager",
        status=201,
        body=bodies.ServiceCloneOrder,
        raises=(errors.EngineUnavailable, errors.Unavailable, *CLONE_ERRORS),
        answer_seconds=SNAPSHOT_SECONDS,
    )
    async def clone_service(
        self, name: str, *, name_as: str, options: Mapping[str, str]
    ) -> list[VolumeView]:
        """Make a clone of each volume of a service, of snapshots of one moment. The service itself is not cloned.

        Raises:
            InvalidInput: ``name_as`` makes no name. AlreadyExists: a name is taken; nothing was done.
            Others as :meth:`create_service_snapshot` and :meth:`clone_volume`; the clones that were made are removed then.
        """
        ...

    @cluster(
        "POST",
        "/services/{service}/backups",
        "Back all volumes of a Swarm service up, as of one moment, and report progress; asked of a Swarm manager",
        body=bodies.BackupOrder,
        raises=(errors.EngineUnavailable, errors.Unavailable, *BACKUP_ERRORS),
        cut_off="see whether they are there: pannier backup ls",
    )
    def back_up_service(
        self, name: str, *, target: str | None
    ) -> AsyncGenerator[BackupProgress, None]:
        """Back each volume of a service up, from snapshots of one moment. It goes on if nobody reads the stream any more.

        Raises:
            BackupFailed: some were not backed up; the others are there.
            Others as :meth:`create_service_snapshot` and :meth:`back_up_volume`.
            OutcomeUnknown: also if a client's stream stops before its last value.
        """
        ...

    @cluster("GET", "/trash", "Removed volumes")
    async def trash(self) -> list[TrashView]: ...

    @cluster(
        "POST",
        "/trash/{name_or_id}/restore",
        "Bring a volume back from the trash",
        raises=(errors.VolumeNotFound, errors.AlreadyExists, errors.StorageError),
    )
    async def restore_volume(self, name_or_id: str) -> VolumeView:
        """Bring a volume back from the trash.

        Raises:
            VolumeNotFound: nothing of that name or id is in the trash.
            Stale: another volume has its name now, or it was restored or purged meanwhile.
        """
        ...

    @cluster(
        "DELETE",
        "/trash/{name_or_id}",
        "Give up a removed volume for ever",
        raises=(errors.VolumeNotFound, errors.Conflict),
    )
    async def purge_volume(self, name_or_id: str) -> TrashView:
        """Give up a removed volume for ever: every node deletes what it has of it.

        Raises:
            VolumeNotFound: nothing of that name or id is in the trash.
            Conflict: there are several of that name, or it is protected.
            Stale: it was restored or purged meanwhile.
        """
        ...

    @cluster("DELETE", "/trash", "Give up all removed volumes for ever")
    async def empty_trash(self) -> list[TrashView]:
        """Give up everything in the trash for ever; returns what was.

        Raises:
            Stale: something was restored or purged meanwhile; what was given up before stays so.
        """
        ...

    @cluster("GET", "/doctor", "Checks of everything", answer_seconds=DOCTOR_SECONDS)
    async def doctor(self) -> list[FindingView]: ...

    @cluster(
        "GET",
        "/events",
        "What happened, and with follow=true what happens from now on",
        flags=("follow",),
    )
    def events(self, *, follow: bool) -> AsyncGenerator[EventView, None]: ...


LOCAL = "local"
"""The actor of requests on the unix socket, which only root may open."""
OperationsBy = Callable[[str], Operations]
"""The operations for an actor: a user's name, or LOCAL. It is recorded as having asked."""
OPERATIONS: OperationTable[Operations] = OperationTable(Operations)  # type: ignore[type-abstract]
