"""What the API answers and the CLI shows: plain values, encoded as JSON with these names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """Another node's copy, as the holder knows it.

    ``lag_seconds`` is the age of what it has: at most the interval, and the time of one transfer, while
    all goes well; also while nothing is written. None where this is not known yet. ``in_sync``: it may take
    over, and sync calls wait for it. ``error`` says why it is behind.
    """

    node: str
    generation: str | None = None
    lag_seconds: float | None = None
    in_sync: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """What a node found when it read its copy of a volume to the last byte.

    ``state`` is ``whole``; ``made anew``: damaged, and sent again by the holder; ``damaged``: what the
    holder itself has; ``nothing``; or ``unknown``, where the node did not answer.
    """

    node: str
    state: str
    generation: str | None = None
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume as users see it.

    Attributes:
        holder_state: ``up`` or ``down``: whether the holder's lease is alive.
        in_use_by: on the holder: containers (``name`` or a process) that use it; None when the
            holder was not asked (lists) or did not answer.
        copies_on: nodes that have a copy, the holder first; None as above.
        copies: the other copies that the holder keeps up to date; None as above.
        generations: all generations on the node that answered; None as above.
        generation: newest generation on the holder; None as above.
        used_bytes: None as above.
        in_sync: nodes whose copies have everything that was acknowledged.
        sync_calls: sync calls of containers that wait on the holder now.
        sync_waiting_seconds: for how long the first of them has waited.
        quarantine: why the node that answered cannot give its data to containers; empty where it can.
        created_at: RFC 3339, UTC.
    """

    name: str
    id: str
    holder: str
    holder_state: str
    epoch: int
    driver: str
    options: dict[str, str]
    created_at: str
    generation: str | None = None
    used_bytes: int | None = None
    in_use_by: list[str] | None = None
    copies_on: list[str] | None = None
    copies: list[CopyView] | None = None
    generations: list[str] | None = None
    mountpoint: str | None = None
    transfer: TransferView | None = None
    in_sync: list[str] = field(default_factory=list)
    sync_calls: int = 0
    sync_waiting_seconds: float = 0.0
    quarantine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferView:
    """A hand-over or move that is under way."""

    target: str
    phase: str
    round: int
    sent_bytes: int
    started_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """One line of the stream that a move answers with.

    ``phase`` is ``copying`` (in use; ``round`` and ``sent_bytes`` grow), ``waiting`` (all but the
    last bytes are there; ``in_use_by`` says whom it waits for), ``switching`` (last delta and change
    of holder), ``done`` (``pause_seconds`` is set) or ``failed`` (``error``, ``code``, ``remedy``).
    """

    phase: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HookView:
    """A hook in a container: that it has begun, or with ``ended`` what became of it.

    Attributes:
        hook: ``pre-move`` or ``post-move``.
        failure: why it failed; empty where it did not.
        output: the last lines that it printed.
        abort: whether the move fails with it.
    """

    hook: str
    container: str
    ended: bool = False
    failure: str = ""
    output: list[str] = field(default_factory=list)
    abort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """Something that a service's move has done, so many seconds after its begin."""

    seconds: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMoveProgress:
    """One line of the stream that a service's move answers with.

    ``phase`` is ``copying`` (while the service runs), ``pre-move`` (the hook), ``switching`` (Swarm
    has been told), ``starting`` (the old container has ended), ``post-move`` (the hook) or ``done``.

    Attributes:
        source: the node that the service ran on; None where it ran on none.
        volumes: how each volume's own move goes.
        steps: all that has happened up to now.
        pause_seconds: from the old container's end until Swarm calls the new one running, which it is
            when it is healthy, where it has a health check. None where there was no old one.
    """

    phase: str
    service: str
    source: str | None
    target: str
    volumes: list[MoveProgress] = field(default_factory=list)
    steps: list[StepView] = field(default_factory=list)
    pause_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """A Swarm service with volumes of ours.

    Attributes:
        nodes: where it runs.
        volumes: those of its volumes that there are.
        copies_on: nodes from which it could start with all of them, without a transfer.
        tied_to: the constraint that a move has added, and that nobody has taken back.
    """

    name: str
    nodes: list[str]
    volumes: list[str]
    copies_on: list[str]
    tied_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as users see it. ``state`` is ``up``, ``down`` or ``drained``.

    ``swarm`` is its engine's node id in Docker Swarm. ``sync_obstacle`` says why sync calls of its
    containers would not be held; empty where they are, None where the node or its engine was not asked.
    ``disk_error`` says why its disk keeps no volumes; empty where it does, None where it was not asked.
    """

    name: str
    address: str
    state: str
    drivers: list[str]
    version: str
    volumes: int
    joined_at: str
    pool_total_bytes: int | None = None
    pool_free_bytes: int | None = None
    swarm: str | None = None
    sync_obstacle: str | None = None
    disk_error: str | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something that happened. ``kind`` is such as ``volume.moved`` or ``node.down``."""

    at: str
    kind: str
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
    """One line of ``pannier doctor``. ``level`` is ``ok``, ``warning`` or ``problem``."""

    level: str
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
class ErrorView:
    """The body of every answer that is not a success."""

    code: str
    message: str
    remedy: str = ""
