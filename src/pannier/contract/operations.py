"""What the edges (plugin, API) may ask of a node: the use cases, as protocols.

Each method may raise any :class:`~pannier.core.errors.PannierError`; edges translate it, nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pannier.contract.views import (
    CheckView,
    EventView,
    FindingView,
    HookView,
    MoveProgress,
    NodeView,
    ServiceMoveProgress,
    ServiceView,
    StatusView,
    TokenView,
    TrashView,
    VolumeView,
)
from pannier.core.hooks import Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerVolume:
    """A volume as Docker's Get and List answer it."""

    name: str
    mountpoint: str
    created_at: str
    status: dict[str, Any]


class DockerVolumes(Protocol):
    """The Docker volume plugin's use cases on this node."""

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """Make the volume, or do nothing where it exists and ``options`` ask for nothing else."""
        ...

    async def remove(self, name: str) -> None:
        """Move the volume to the trash; refused while it is in use anywhere."""
        ...

    async def mount(self, name: str, mount_id: str) -> Path:
        """Make this node the holder (waiting for a hand-over), mount, and return the path."""
        ...

    async def unmount(self, name: str, mount_id: str) -> None:
        """Forget a use. Repeated and unknown ids are no error."""
        ...

    async def abandon(self, name: str, mount_id: str) -> None:
        """The engine hung up before it got the answer to its Mount: do not count that use."""
        ...

    def get(self, name: str) -> DockerVolume:
        """From memory. Raises VolumeNotFound."""
        ...

    def list(self) -> list[DockerVolume]:
        """From memory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """A machine asks to become a node. ``csr`` is PEM."""

    token: str
    name: str
    address: str
    csr: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """What a new node needs: its certificate and the CA's (PEM), and the store's address."""

    cluster: str
    certificate: str
    ca: str
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverReply:
    """A holder's answer to a node that wants the volume.

    ``state`` is ``given`` (the store's record names the asking node now), ``copying`` (data is on
    its way) or ``in_use`` (``in_use_by`` says by whom; the bulk is being copied meanwhile).
    """

    state: str
    in_use_by: list[str]
    sent_bytes: int = 0


class Operations(Protocol):
    """The API's use cases. ``actor`` is who asks: a user's name, or ``local`` on the unix socket."""

    async def status(self) -> StatusView: ...
    async def nodes(self) -> list[NodeView]: ...
    async def node(self, name: str) -> NodeView: ...
    async def drain_node(self, name: str, *, drained: bool, actor: str) -> NodeView: ...
    async def remove_node(self, name: str, *, lost: bool, actor: str) -> None: ...
    async def create_token(self, *, ttl_seconds: float, uses: int, actor: str) -> TokenView: ...
    async def join(self, request: JoinRequest) -> JoinReply: ...

    async def volumes(self) -> list[VolumeView]: ...
    async def volume(self, name: str) -> VolumeView: ...
    async def create_volume(
        self, name: str, options: Mapping[str, str], *, actor: str
    ) -> VolumeView: ...
    async def remove_volume(self, name: str, *, actor: str) -> TrashView: ...
    async def recover_volume(self, name: str, *, accept_loss: bool, actor: str) -> VolumeView: ...
    async def verify_volume(self, name: str) -> list[CheckView]: ...
    def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncIterator[MoveProgress]: ...
    async def services(self) -> list[ServiceView]: ...
    def move_service(
        self,
        name: str,
        node: str,
        *,
        now: bool,
        stay: bool,
        timeout_seconds: float,
        actor: str,
    ) -> AsyncIterator[ServiceMoveProgress]: ...
    async def history(self, name: str) -> list[EventView]: ...
    async def trash(self) -> list[TrashView]: ...
    async def restore_volume(self, name_or_id: str, *, actor: str) -> VolumeView: ...
    async def doctor(self) -> list[FindingView]: ...
    async def explain_volume(self, name: str) -> list[FindingView]: ...
    def events(self, *, follow: bool) -> AsyncIterator[EventView]: ...


class PeerOperations(Protocol):
    """What other nodes may ask. ``peer`` is the name in the asking node's certificate."""

    async def peer_volume(self, name: str, *, peer: str) -> VolumeView:
        """Live facts that only the holder knows."""
        ...

    async def peer_node(self, *, peer: str) -> NodeView:
        """Live facts of this node, its pool included."""
        ...

    async def peer_handover(self, name: str, *, epoch: int, peer: str) -> HandoverReply:
        """``peer`` wants to become the holder after ``epoch``; answers within about 5 s."""
        ...

    async def peer_remove(self, name: str, *, volume_id: str, actor: str, peer: str) -> None:
        """Move a volume that this node holds to the trash."""
        ...

    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str, peer: str
    ) -> VolumeView:
        """Become the holder after ``epoch``, whose holder is lost.

        Begins with ``generation``, by a person's decision; with None as a copy that is in sync.
        """
        ...

    async def peer_verify(self, name: str, *, peer: str) -> CheckView:
        """Read this node's copy to the last byte; may take hours."""
        ...

    async def peer_lost_copy(self, name: str, *, epoch: int, peer: str) -> None:
        """``peer`` has nothing of a volume that is held here, at ``epoch``: send it all of it."""
        ...

    async def peer_promise(
        self, volumes: Mapping[str, int], *, seconds: float, peer: str
    ) -> list[str]:
        """``peer`` holds these volumes (ids with epochs) and has lost the store: promise not to take
        them over for so long. Returns the ids for which that is promised."""
        ...

    async def peer_create(
        self, name: str, options: Mapping[str, str], *, actor: str, peer: str
    ) -> VolumeView:
        """Make a volume here, on behalf of a node that was asked to place it here."""
        ...

    def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str, peer: str
    ) -> AsyncIterator[MoveProgress]:
        """Move a volume that this node holds to ``node``, reporting progress."""
        ...

    def peer_hook(self, service: str, *, moment: Moment, peer: str) -> AsyncIterator[HookView]:
        """Run a hook of the service's container here, as that container's own labels give it.

        After a pre-move hook, ``peer`` reads on for as long as it moves the service.
        """
        ...
