"""What requests carry. People's are read strictly, so that a misspelt field is an error and not a default."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pannier.contract.together import MadeGeneration
from pannier.contract.words import TogetherPhase
from pannier.core.backups import (
    MOST_SECRET_LETTERS,
    MOST_URL_LETTERS,
    TARGET_PATTERN,
    check_target_name,
)
from pannier.core.encryption import (
    MOST_PASSPHRASE_LETTERS,
    NEW_PASSPHRASE_PATTERN,
    check_passphrase,
)
from pannier.core.generation import GENERATION_PATTERN
from pannier.core.hooks import Moment
from pannier.core.importing import MOST_SOURCE_LETTERS
from pannier.core.node import check_node_name
from pannier.core.removals import MOST_REMOVALS
from pannier.core.snapshots import SNAPSHOT_PATTERN, check_snapshot_name
from pannier.core.swarm import check_service_name
from pannier.core.volume import check_name

ACTOR_PATTERN = "[!-~]([ -~]{0,126}[!-~])?"
"""Printable ASCII, up to 128 characters; the names in certificates are shorter and have fewer characters."""
DAY_SECONDS = 86_400
VOLUME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$"
SERVICE_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"
NODE_PATTERN = r"^(?!.*\.\.)[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$"
# For the document only: names are checked by the core, whose errors say what to do.
VolumeName = Annotated[str, Meta(extra_json_schema={"pattern": VOLUME_PATTERN})]
NodeName = Annotated[str, Meta(extra_json_schema={"pattern": NODE_PATTERN})]
ServiceName = Annotated[str, Meta(extra_json_schema={"pattern": SERVICE_PATTERN})]
Actor = Annotated[str, Meta(pattern=f"^{ACTOR_PATTERN}$")]
SnapshotName = Annotated[str, Meta(extra_json_schema={"pattern": SNAPSHOT_PATTERN})]
TargetName = Annotated[str, Meta(extra_json_schema={"pattern": TARGET_PATTERN})]
Secret = Annotated[str, Meta(max_length=MOST_SECRET_LETTERS)]
Passphrase = Annotated[str, Meta(max_length=MOST_PASSPHRASE_LETTERS)]
NewPassphrase = Annotated[
    str,
    Meta(max_length=MOST_PASSPHRASE_LETTERS, extra_json_schema={"pattern": NEW_PASSPHRASE_PATTERN}),
]
KeptBackups = Annotated[int, Meta(ge=0, le=10_000)]
KeepSeconds = Annotated[float, Meta(gt=0, le=100 * 366 * DAY_SECONDS)]
WaitSeconds = Annotated[float, Meta(ge=0, le=DAY_SECONDS)]


class Body(Struct, frozen=True, kw_only=True):
    """Base of all bodies."""

    def check(self) -> None:
        """What the types do not say.

        Raises:
            InvalidInput: a name is not valid.
        """


class PeopleBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What people and their tools send: a field that is not known is an error."""


class MachineBody(Body, frozen=True, kw_only=True):
    """What nodes send: a newer one may say more than this one knows, which is ignored."""


def may_be_left_out(body: type[Body]) -> bool:
    """Whether a node may send nothing: one of a version whose operation had no body yet."""
    fields = msgspec.structs.fields(body)
    return issubclass(body, MachineBody) and not any(field.required for field in fields)


class NodeChange(PeopleBody, frozen=True, kw_only=True):
    """``drained``: true takes the node out of placement, false puts it back."""

    drained: bool


class TokenOrder(PeopleBody, frozen=True, kw_only=True):
    """``ttl_seconds``: how long the token is good; ``uses``: for how many joins."""

    ttl_seconds: Annotated[float, Meta(gt=0, le=365 * DAY_SECONDS)] = 3600.0
    uses: Annotated[int, Meta(ge=1, le=1000)] = 1


class JoinOrder(MachineBody, frozen=True, kw_only=True):
    """A machine asks to become a node. ``csr`` is PEM."""

    token: Annotated[str, Meta(min_length=1, max_length=1024)]
    name: NodeName
    address: Annotated[str, Meta(min_length=1, max_length=255)]
    csr: Annotated[str, Meta(min_length=1, max_length=16_384)]
    version: Annotated[str, Meta(max_length=64)]

    def check(self) -> None:
        """See :class:`Body`."""
        check_node_name(self.name)


class RenewalOrder(MachineBody, frozen=True, kw_only=True):
    """``certificate``: the present one; ``csr``: a request for the same key, signed with it. Both are PEM."""

    certificate: Annotated[str, Meta(min_length=1, max_length=16_384)]
    csr: Annotated[str, Meta(min_length=1, max_length=16_384)]


class OwnRenewalOrder(PeopleBody, frozen=True, kw_only=True):
    """``address``: of the node to ask; null for the one with the authority."""

    address: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class VolumeOrder(PeopleBody, frozen=True, kw_only=True):
    """``options`` are those of ``docker volume create -o``, as text."""

    name: VolumeName
    options: dict[str, str] = {}

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.name)


class OptionsOrder(PeopleBody, frozen=True, kw_only=True):
    """``options``: those that are to be others, as text."""

    options: dict[str, str]


class SnapshotOrder(PeopleBody, frozen=True, kw_only=True):
    """``keep_seconds``: for how long it is kept; null for ever."""

    snapshot: SnapshotName
    keep_seconds: KeepSeconds | None = None
    labels: dict[str, str] = {}

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)


class ServiceSnapshotOrder(PeopleBody, frozen=True, kw_only=True):
    """As :class:`SnapshotOrder`. ``snapshot``: null for a name made of the service's and the time."""

    snapshot: SnapshotName | None = None
    keep_seconds: KeepSeconds | None = None
    labels: dict[str, str] = {}

    def check(self) -> None:
        """See :class:`Body`."""
        if self.snapshot is not None:
            check_snapshot_name(self.snapshot)


class ServiceCloneOrder(PeopleBody, frozen=True, kw_only=True):
    """``name_as``: what the clones are called; the volume's name stands for ``{}`` in it. ``options``: those that are to be others
    than the volumes', as text."""

    name_as: Annotated[str, Meta(min_length=2, max_length=128)]
    options: dict[str, str] = {}


class ImportOrder(PeopleBody, frozen=True, kw_only=True):
    """``source``: ``local:VOLUME`` or ``dir:/PATH`` on the node that is asked. ``options``: of the new volume, as text.

    ``switch_service``: the Swarm service that is stopped, and started with the new volume; null for none.
    ``wait_seconds``: how long to wait for those who use the source.
    """

    source: Annotated[
        str,
        Meta(
            max_length=MOST_SOURCE_LETTERS,
            extra_json_schema={"pattern": r"^(local:[^/]+|dir:/[^\u0000]*)$"},
        ),
    ]
    options: dict[str, str] = {}
    switch_service: ServiceName | None = None
    wait_seconds: WaitSeconds = 100.0

    def check(self) -> None:
        """See :class:`Body`."""
        if self.switch_service is not None:
            check_service_name(self.switch_service)


class ConversionOrder(PeopleBody, frozen=True, kw_only=True):
    """``options``: what is to change, as text. ``stop_service``: stop the Swarm service that uses the volume meanwhile."""

    options: dict[str, str]
    stop_service: bool = False


class RollbackOrder(PeopleBody, frozen=True, kw_only=True):
    """``snapshot``: what the volume is to become again. ``stop_service``: stop the Swarm service that uses it meanwhile."""

    snapshot: SnapshotName
    stop_service: bool = False

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)


class CloneOrder(PeopleBody, frozen=True, kw_only=True):
    """``new``: the clone's name. ``snapshot``: what it is made of; null for what the volume is now. ``options``: those that are
    to be others than the volume's, as text."""

    new: VolumeName
    snapshot: SnapshotName | None = None
    options: dict[str, str] = {}

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.new)
        if self.snapshot is not None:
            check_snapshot_name(self.snapshot)


class BackupTargetOrder(PeopleBody, frozen=True, kw_only=True):
    """Where backups go, and what opens it. ``read_only``: only to restore from it.

    ``s3_key_id`` and ``s3_key`` are for S3; ``ssh_key`` and ``known_hosts`` are files' contents, for SFTP.
    """

    name: TargetName
    url: Annotated[str, Meta(min_length=1, max_length=MOST_URL_LETTERS)]
    password: Secret
    s3_key_id: Secret = ""
    s3_key: Secret = ""
    ssh_key: Secret = ""
    known_hosts: Secret = ""
    read_only: bool = False

    def check(self) -> None:
        """See :class:`Body`."""
        check_target_name(self.name)

    def __repr__(self) -> str:
        return f"BackupTargetOrder(name={self.name!r}, url={self.url!r})"


class RotateOrder(PeopleBody, frozen=True, kw_only=True):
    """``passphrase``: locks the keys; empty: each node keeps them in a file; null: so, and refused where they are locked."""

    passphrase: NewPassphrase | None = None

    def check(self) -> None:
        """See :class:`Body`."""
        if self.passphrase:
            check_passphrase(self.passphrase)

    def __repr__(self) -> str:
        return "RotateOrder()"


class UnlockOrder(PeopleBody, frozen=True, kw_only=True):
    """``passphrase``: of the last rotation."""

    passphrase: Passphrase

    def __repr__(self) -> str:
        return "UnlockOrder()"


class BackupOrder(PeopleBody, frozen=True, kw_only=True):
    """``target``: where to; null for the only target."""

    target: TargetName | None = None


class PruneOrder(PeopleBody, frozen=True, kw_only=True):
    """Which backups of each volume stay: the newest ones, and the last of so many days, weeks and months."""

    keep_last: KeptBackups = 0
    keep_daily: KeptBackups = 0
    keep_weekly: KeptBackups = 0
    keep_monthly: KeptBackups = 0


class RestoreOrder(PeopleBody, frozen=True, kw_only=True):
    """``backup``: the beginning of its id; null for the newest. ``new``: the volume to make of it. ``options``: those that
    shall be other than they were.
    """

    volume: VolumeName
    backup: Annotated[str, Meta(pattern="^[0-9a-f]{4,64}$")] | None = None
    new: VolumeName
    options: dict[str, str] = {}

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.volume)
        check_name(self.new)


class DrillOrder(PeopleBody, frozen=True, kw_only=True):
    """``backup``: the beginning of its id; null for the newest. ``check_command``: for a shell, which has what came back at
    /data; ``image``: in which it runs. Both, or neither.
    """

    volume: VolumeName
    backup: Annotated[str, Meta(pattern="^[0-9a-f]{4,64}$")] | None = None
    check_command: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    image: Annotated[str, Meta(pattern="^[a-zA-Z0-9][!-~]{0,255}$")] | None = None

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.volume)


class RecoverOrder(PeopleBody, frozen=True, kw_only=True):
    """``accept_loss``: accept that the volume loses what the lost holder wrote last."""

    accept_loss: bool = False


class PolicyOrder(PeopleBody, frozen=True, kw_only=True):
    """``schedule``: as in hourly:24,daily:7; ``labels``: those that a volume has to have, all of them."""

    schedule: str
    labels: Annotated[dict[str, str], Meta(min_length=1, max_length=20)]


class TakeOutOrder(PeopleBody, frozen=True, kw_only=True):
    """``tree``: an epoch, a generation or a snapshot; null for what the volume is now. ``path``: in the volume. ``to``: a directory
    of the node that is asked."""

    tree: str | None = None
    path: str
    to: str


class ShowOrder(PeopleBody, frozen=True, kw_only=True):
    """``tree``: an epoch, a generation or a snapshot; ``at``: a directory of the node that is asked."""

    tree: str
    at: str


class CleanOrder(PeopleBody, frozen=True, kw_only=True):
    """``paths``: files or directories of the volume, from its root."""

    paths: Annotated[list[str], Meta(min_length=1, max_length=1000)]


class MoveOrder(PeopleBody, frozen=True, kw_only=True):
    """``wait_seconds``: how long to wait for the containers that use the volume to stop."""

    node: NodeName
    wait_seconds: WaitSeconds = 100.0

    def check(self) -> None:
        """See :class:`Body`."""
        check_node_name(self.node)


class ServiceMoveOrder(PeopleBody, frozen=True, kw_only=True):
    """``now``: without the pre-move hook. ``stay``: tie the service to the node for good.

    ``timeout_seconds``: how long the copying may take, and then the new container's start.
    """

    node: NodeName
    now: bool = False
    stay: bool = False
    timeout_seconds: Annotated[float, Meta(gt=0, le=DAY_SECONDS)] = 3600.0

    def check(self) -> None:
        """See :class:`Body`."""
        check_node_name(self.node)


class PeerHookOrder(MachineBody, frozen=True, kw_only=True):
    """Which hook of the service's container; the command is in that container's labels."""

    hook: Moment


class VerifyOrder(MachineBody, frozen=True, kw_only=True):
    """``generation``: the one that other nodes read, too; None for the newest."""

    generation: str | None = None


class PiecesOrder(MachineBody, frozen=True, kw_only=True):
    """``start``, ``end``: of the range, in bytes; None is the end of the image. All are multiples of a block."""

    generation: str
    start: Annotated[int, Meta(ge=0, le=2**62)]
    end: Annotated[int, Meta(ge=0, le=2**62)] | None
    piece_bytes: Annotated[int, Meta(ge=1, le=2**40)]


class BlockSum(Struct, frozen=True):
    """A block that begins at ``start``, and the checksum that it shall have."""

    start: Annotated[int, Meta(ge=0, le=2**62)]
    sum: Annotated[int, Meta(ge=1, lt=2**32)]


MOST_BLOCKS = 256
"""In one request; an answer has 1.4 MB then."""


class BlocksOrder(MachineBody, frozen=True, kw_only=True):
    """``generation``: the one that the asking node has; the blocks may come from any."""

    generation: str
    blocks: Annotated[list[BlockSum], Meta(max_length=MOST_BLOCKS)]


class HandoverOrder(MachineBody, frozen=True, kw_only=True):
    """``epoch``: the one that the asking node has seen; a newer one makes the request stale."""

    epoch: Annotated[int, Meta(ge=0, le=2**62)]


MOST_ID_LETTERS = 160
"""Of a volume's id: its name, of 128 letters at most, and what makes it unique."""


class PeerRemoval(MachineBody, frozen=True, kw_only=True):
    """``volume_id`` guards against removing a newer volume of the same name."""

    volume_id: Annotated[str, Meta(min_length=1, max_length=MOST_ID_LETTERS)]
    actor: Actor


class PeerVolumeOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`VolumeOrder`, on behalf of ``actor``."""

    name: VolumeName
    options: dict[str, str] = {}
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.name)


class PeerSnapshotOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`SnapshotOrder`, on behalf of ``actor``."""

    snapshot: SnapshotName
    keep_seconds: KeepSeconds | None
    labels: dict[str, str]
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)


class PeerConversionOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`ConversionOrder`, on behalf of ``actor``; ``waits``: for the end of those who use the volume."""

    options: dict[str, str]
    waits: bool
    actor: Actor


class PeerRollbackOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`RollbackOrder`, on behalf of ``actor``."""

    snapshot: SnapshotName
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)


class PeerCloneOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`CloneOrder`, on behalf of ``actor``."""

    new: VolumeName
    snapshot: SnapshotName | None
    options: dict[str, str]
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_name(self.new)
        if self.snapshot is not None:
            check_snapshot_name(self.snapshot)


MOST_TOGETHER = 100
"""Of volumes in one snapshot of a service. The store changes all their records at once, and etcd takes 128 changes."""
Session = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class PeerTogetherOrder(MachineBody, frozen=True, kw_only=True):
    """Snapshots of several volumes at one moment, on behalf of ``actor``: the part of the node that holds ``volumes``.

    ``session`` names the whole in the steps that follow. ``alone``: these are all volumes, and no steps follow.
    """

    session: Session
    volumes: Annotated[list[VolumeName], Meta(min_length=1, max_length=MOST_TOGETHER)]
    snapshot: SnapshotName
    keep_seconds: KeepSeconds | None
    labels: dict[str, str]
    actor: Actor
    alone: bool

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)
        for name in self.volumes:
            check_name(name)


class PeerTogetherStep(MachineBody, frozen=True, kw_only=True):
    """The step that may be taken now: the phase that is to come. To be ``named`` by the called node are ``made``; where that is
    empty, another node has named all. Where it is ``given up``, some node may still be naming ``made``."""

    session: Session
    phase: TogetherPhase
    made: Annotated[list[MadeGeneration], Meta(max_length=MOST_TOGETHER)] = []


class PeerBackupOrder(MachineBody, frozen=True, kw_only=True):
    """Put a snapshot at a target, on behalf of ``actor``. ``plan``: the volume's option, by which older backups go; null: none
    does.
    """

    snapshot: SnapshotName
    target: TargetName
    plan: Annotated[str, Meta(max_length=64)] | None
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_snapshot_name(self.snapshot)
        check_target_name(self.target)


class BackupKeyOrder(MachineBody, frozen=True, kw_only=True):
    """``id``: of the key that the asking node lacks."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]


class PeerTakeOrder(MachineBody, frozen=True, kw_only=True):
    """Become the holder after ``epoch``, beginning with ``generation``; without it, from a copy in sync."""

    epoch: Annotated[int, Meta(ge=0, le=2**62)]
    generation: Annotated[str, Meta(pattern=f"^{GENERATION_PATTERN}$")] | None = None
    actor: Actor


MOST_PROMISES = 256
"""In one request of this version: with the longest names its body has 41 KB, of 64 KiB that a server takes in. Who holds
more asks several times."""


class PeerPromiseOrder(MachineBody, frozen=True, kw_only=True):
    """Do not take these volumes (ids with their epochs) over for ``seconds``.

    Older nodes ask for all of their volumes at once, so only the size of the body limits their number here.
    """

    volumes: dict[str, int]
    seconds: Annotated[float, Meta(gt=0, le=60)]


class PeerMemoryOrder(MachineBody, frozen=True, kw_only=True):
    """Tell what is remembered of volumes whose names come after this one."""

    after: Annotated[str, Meta(max_length=128)]


class PeerRemovalsOrder(MachineBody, frozen=True, kw_only=True):
    """Take in how often nodes were removed, by name. Nothing, to ask only."""

    counts: dict[NodeName, Annotated[int, Meta(ge=1, le=MOST_REMOVALS)]]

    def check(self) -> None:
        """See :class:`Body`."""
        for name in self.counts:
            check_node_name(name)


class PeerMoveOrder(MachineBody, frozen=True, kw_only=True):
    """As :class:`MoveOrder`, on behalf of ``actor``."""

    node: NodeName
    wait_seconds: WaitSeconds
    actor: Actor

    def check(self) -> None:
        """See :class:`Body`."""
        check_node_name(self.node)
