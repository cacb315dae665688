"""What nodes may ask of each other: the table of these operations, and how to reach the other nodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from pannier.contract import bodies
from pannier.contract.operation import OperationTable, peer
from pannier.contract.operations import CREATE_ERRORS, MOVE_ERRORS, VERIFY_SECONDS
from pannier.contract.views import CheckView, HandoverReply, HookView, MoveProgress, NodeView
from pannier.contract.volumes import LiveVolumeView, VolumeCopyView, VolumeView
from pannier.core import errors
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.hooks import Moment
from pannier.core.node import Node
from pannier.core.volume import Volume

HANDOVER_SECONDS = 15.0
"""For how long a client waits for a hand-over's answer; the holder answers within about 5 s."""
PROMISE_ANSWER_SECONDS = 2.0
"""And for a promise: the holder that asks for it asks all copies at once, and again after that."""

_VOLUME = (errors.VolumeNotFound,)


class Peer(Protocol):
    """A node, as another one calls it; who asks is bound to the object: see :data:`PeerBy`.

    Each method may raise PeerUnavailable, and every error that the called node raised.
    """

    @peer("GET", "/node", "Live facts of this node")
    async def peer_node(self) -> NodeView:
        """Live facts of this node, its pool included."""
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
        """Make a volume here, on behalf of a node that was asked to place it here."""
        ...

    @peer(
        "GET",
        "/volumes/{volume}",
        "What this node knows of a volume: as its holder, or as one that may have a copy",
        raises=(errors.VolumeNotFound, errors.NotHolder),
    )
    async def peer_volume(self, name: str) -> LiveVolumeView | VolumeCopyView:
        """Live facts of the holder; on any other node, whether it has a copy."""
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
        """The asking node wants to become the holder after ``epoch``; answers within about 5 s."""
        ...

    @peer(
        "POST",
        "/volumes/{volume}/remove",
        "Move a volume that this node holds to the trash",
        body=bodies.PeerRemoval,
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.Stale, errors.StorageError),
    )
    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None:
        """Move a volume that this node holds to the trash."""
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

        Begins with ``generation``, by a person's decision; with None as a copy that is in sync.
        """
        ...

    @peer(
        "POST",
        "/volumes/{volume}/verify",
        "Read this node's copy to the last byte",
        raises=(*_VOLUME, errors.StorageError, errors.Unavailable),
        answer_seconds=VERIFY_SECONDS,
    )
    async def peer_verify(self, name: str) -> CheckView:
        """Read this node's copy to the last byte; may take hours."""
        ...

    @peer(
        "POST",
        "/volumes/{volume}/lost-copy",
        "The asking node has nothing of a volume that this node holds",
        body=bodies.HandoverOrder,
        raises=(*_VOLUME, errors.Stale, errors.NotHolder, errors.Unavailable),
    )
    async def peer_lost_copy(self, name: str, *, epoch: int) -> None:
        """The asking node has nothing of a volume that is held here, at ``epoch``: send it all."""
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
        """The asking node holds these volumes (ids with epochs) and has lost the store: promise not
        to take them over for so long. Returns the ids for which that is promised."""
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
        """Move a volume that this node holds to ``node``, reporting progress."""
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
        """
        ...


PeerBy = Callable[[str], Peer]
"""This node as the node of that name may call it; the name is the one in its certificate."""
PEER_OPERATIONS: OperationTable[Peer] = OperationTable(Peer)  # type: ignore[type-abstract]


class Peers(Protocol):
    """How to reach them."""

    def to(self, node: Node) -> Peer:
        """The peer at a node's address; no connection is made yet."""
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
