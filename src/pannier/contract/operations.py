"""What people and their tools may ask of a node: the table of these operations.

Each method may raise any :class:`~pannier.core.errors.PannierError`; the edges translate it, nothing else. The
node's own implementation, the client and the tests' stand-in have these methods; a row is all that the HTTP
server, the client and the OpenAPI document need to know of one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from pannier.contract import bodies
from pannier.contract.operation import OperationTable, cluster, joining
from pannier.contract.views import (
    CheckView,
    EventView,
    FindingView,
    JoinReply,
    MoveProgress,
    NodeView,
    ServiceMoveProgress,
    ServiceView,
    StatusView,
    TokenView,
    TrashView,
)
from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView, VolumeView
from pannier.core import errors

VERIFY_SECONDS = 24 * 3600.0
"""For how long a client waits for a verification. Terabytes are read at 100 MB/s at most: 8.6 TB a day."""
DOCTOR_SECONDS = 60.0
"""The doctor takes as long as the slowest part of the cluster that it asks."""

_VOLUME = (errors.VolumeNotFound,)
_NODE = (errors.NodeNotFound,)
_SWARM = (errors.Conflict, errors.EngineUnavailable)
CREATE_ERRORS = (
    errors.AlreadyExists,
    errors.NodeNotFound,
    errors.StorageError,
    errors.PoolFull,
)
MOVE_ERRORS = (
    errors.VolumeNotFound,
    errors.NodeNotFound,
    errors.Conflict,
    errors.StorageError,
)


class Operations(Protocol):
    """Who asks is bound to the object: see :data:`OperationsBy`."""

    @cluster("GET", "/status", "The cluster at a glance")
    async def status(self) -> StatusView: ...

    @cluster("GET", "/nodes", "All nodes")
    async def nodes(self) -> list[NodeView]: ...

    @cluster("GET", "/nodes/{node}", "One node", raises=_NODE)
    async def node(self, name: str) -> NodeView: ...

    @cluster(
        "PATCH",
        "/nodes/{node}",
        "Take a node out of placement, or put it back",
        body=bodies.NodeChange,
        raises=_NODE,
    )
    async def drain_node(self, name: str, *, drained: bool) -> NodeView: ...

    @cluster(
        "DELETE",
        "/nodes/{node}",
        "Forget a node that holds no volumes; with lost, one that is down for ever with them",
        flags=("lost",),
        raises=(errors.NodeNotFound, errors.Conflict),
    )
    async def remove_node(self, name: str, *, lost: bool) -> None: ...

    @cluster(
        "POST",
        "/tokens",
        "Make a token with which machines may join",
        status=201,
        body=bodies.TokenOrder,
    )
    async def create_token(self, *, ttl_seconds: float, uses: int) -> TokenView: ...

    @joining(
        "POST",
        "/join",
        "Become a node; the only route that needs no certificate",
        body=bodies.JoinOrder,
        raises=(errors.Conflict,),
    )
    async def join(self, order: bodies.JoinOrder) -> JoinReply: ...

    @cluster("GET", "/volumes", "All volumes")
    async def volumes(self) -> list[VolumeView]: ...

    @cluster(
        "POST",
        "/volumes",
        "Create a volume",
        status=201,
        body=bodies.VolumeOrder,
        raises=CREATE_ERRORS,
    )
    async def create_volume(self, name: str, options: Mapping[str, str]) -> VolumeView: ...

    @cluster(
        "GET",
        "/volumes/{volume}",
        "One volume, with what only its holder knows",
        raises=_VOLUME,
    )
    async def volume(self, name: str) -> LiveVolumeView | RememberedVolumeView: ...

    @cluster(
        "DELETE",
        "/volumes/{volume}",
        "Move a volume to the trash",
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.StorageError),
    )
    async def remove_volume(self, name: str) -> TrashView: ...

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
    ) -> AsyncGenerator[MoveProgress, None]: ...

    @cluster(
        "POST",
        "/volumes/{volume}/recover",
        "Give a lost holder's volume to the newest copy",
        body=bodies.RecoverOrder,
        raises=(*_VOLUME, errors.Conflict, errors.Unavailable),
    )
    async def recover_volume(self, name: str, *, accept_loss: bool) -> VolumeView: ...

    @cluster(
        "POST",
        "/volumes/{volume}/verify",
        "Read every copy of a volume to the last byte, and have damaged ones made anew",
        raises=_VOLUME,
        answer_seconds=VERIFY_SECONDS,
    )
    async def verify_volume(self, name: str) -> list[CheckView]: ...

    @cluster(
        "GET",
        "/volumes/{volume}/history",
        "What happened to a volume, oldest first",
        raises=_VOLUME,
    )
    async def history(self, name: str) -> list[EventView]: ...

    @cluster(
        "GET",
        "/volumes/{volume}/doctor",
        "Who holds a volume, what will happen next, and the one safe command",
        raises=_VOLUME,
    )
    async def explain_volume(self, name: str) -> list[FindingView]: ...

    @cluster(
        "GET",
        "/services",
        "The Swarm's services with volumes of Pannier; asked of a Swarm manager",
        raises=_SWARM,
    )
    async def services(self) -> list[ServiceView]: ...

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
    ) -> AsyncGenerator[ServiceMoveProgress, None]: ...

    @cluster("GET", "/trash", "Removed volumes")
    async def trash(self) -> list[TrashView]: ...

    @cluster(
        "POST",
        "/trash/{name_or_id}/restore",
        "Bring a volume back from the trash",
        raises=(errors.VolumeNotFound, errors.AlreadyExists, errors.StorageError),
    )
    async def restore_volume(self, name_or_id: str) -> VolumeView: ...

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
