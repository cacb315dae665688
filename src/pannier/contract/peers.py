"""The other nodes, as the use cases call them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Protocol

from pannier.contract.operations import HandoverReply
from pannier.contract.views import CheckView, HookView, MoveProgress, NodeView, VolumeView
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.hooks import Moment
from pannier.core.node import Node
from pannier.core.volume import Volume


class Peer(Protocol):
    """Another node's PeerOperations; ours is the name it sees in our certificate.

    Each method may raise PeerUnavailable, and every error that the other node raised.
    """

    async def peer_volume(self, name: str) -> VolumeView: ...
    async def peer_node(self) -> NodeView: ...
    async def peer_handover(self, name: str, *, epoch: int) -> HandoverReply: ...
    async def peer_remove(self, name: str, *, volume_id: str, actor: str) -> None: ...
    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str
    ) -> VolumeView: ...
    async def peer_verify(self, name: str) -> CheckView: ...
    async def peer_lost_copy(self, name: str, *, epoch: int) -> None: ...
    async def peer_promise(self, volumes: Mapping[str, int], *, seconds: float) -> list[str]: ...
    async def peer_create(
        self, name: str, options: Mapping[str, str], *, actor: str
    ) -> VolumeView: ...
    def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncIterator[MoveProgress]: ...
    def peer_hook(self, service: str, *, moment: Moment) -> AsyncGenerator[HookView, None]: ...


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
