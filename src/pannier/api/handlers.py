"""Which use case each route calls, and with what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from pannier.api.caller import Caller, NodeCaller
from pannier.contract import bodies
from pannier.contract.operations import JoinRequest, Operations, PeerOperations
from pannier.core.errors import Denied
from pannier.core.hooks import Moment

BodyType = TypeVar("BodyType", bound=bodies.Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was read and found allowed.

    Attributes:
        actor: who is to be recorded as having asked.
        path: values of the path's parameters.
        flags: values of the query's boolean parameters.
        body: None where the route has none.
    """

    caller: Caller
    actor: str
    path: Mapping[str, str]
    flags: Mapping[str, bool]
    body: bodies.Body | None

    @property
    def volume(self) -> str:
        """The path's volume."""
        return self.path["volume"]

    @property
    def node(self) -> str:
        """The path's node."""
        return self.path["node"]

    @property
    def service(self) -> str:
        """The path's Swarm service."""
        return self.path["service"]

    @property
    def peer(self) -> str:
        """The asking node: always the name in its certificate."""
        if isinstance(self.caller, NodeCaller):
            return self.caller.name
        raise Denied("this route is for nodes only")

    def read(self, kind: type[BodyType]) -> BodyType:
        """The body, as the type that the route declares."""
        if not isinstance(self.body, kind):
            raise TypeError(f"the route declares another body than {kind.__name__}")
        return self.body


Handler = Callable[[Call], Awaitable[Any] | AsyncIterator[Any]]


def handlers_for(operations: Operations, *, peers: PeerOperations) -> dict[str, Handler]:
    """The handler of each route, by the route's name."""
    return {**_cluster_handlers(operations), **_peer_handlers(peers)}


def _cluster_handlers(operations: Operations) -> dict[str, Handler]:
    def join(call: Call) -> Awaitable[Any]:
        return operations.join(JoinRequest(**msgspec.structs.asdict(call.read(bodies.JoinOrder))))

    def create_volume(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.VolumeOrder)
        return operations.create_volume(order.name, order.options, actor=call.actor)

    def create_token(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.TokenOrder)
        return operations.create_token(
            ttl_seconds=order.ttl_seconds, uses=order.uses, actor=call.actor
        )

    def move_volume(call: Call) -> AsyncIterator[Any]:
        order = call.read(bodies.MoveOrder)
        return operations.move_volume(
            call.volume, order.node, wait_seconds=order.wait_seconds, actor=call.actor
        )

    def move_service(call: Call) -> AsyncIterator[Any]:
        order = call.read(bodies.ServiceMoveOrder)
        return operations.move_service(
            call.service,
            order.node,
            now=order.now,
            stay=order.stay,
            timeout_seconds=order.timeout_seconds,
            actor=call.actor,
        )

    def drain_node(call: Call) -> Awaitable[Any]:
        drained = call.read(bodies.NodeChange).drained
        return operations.drain_node(call.node, drained=drained, actor=call.actor)

    return {
        "status": lambda call: operations.status(),
        "nodes": lambda call: operations.nodes(),
        "node": lambda call: operations.node(call.node),
        "drain_node": drain_node,
        "remove_node": lambda call: operations.remove_node(
            call.node, lost=call.flags["lost"], actor=call.actor
        ),
        "create_token": create_token,
        "join": join,
        "volumes": lambda call: operations.volumes(),
        "create_volume": create_volume,
        "volume": lambda call: operations.volume(call.volume),
        "remove_volume": lambda call: operations.remove_volume(call.volume, actor=call.actor),
        "move_volume": move_volume,
        "recover_volume": lambda call: operations.recover_volume(
            call.volume, accept_loss=call.read(bodies.RecoverOrder).accept_loss, actor=call.actor
        ),
        "verify_volume": lambda call: operations.verify_volume(call.volume),
        "services": lambda call: operations.services(),
        "move_service": move_service,
        "history": lambda call: operations.history(call.volume),
        "trash": lambda call: operations.trash(),
        "restore_volume": lambda call: operations.restore_volume(
            call.path["name_or_id"], actor=call.actor
        ),
        "doctor": lambda call: operations.doctor(),
        "explain_volume": lambda call: operations.explain_volume(call.volume),
        "events": lambda call: operations.events(follow=call.flags["follow"]),
        "openapi": lambda call: _openapi(),
    }


async def _openapi() -> dict[str, Any]:
    from pannier.api.openapi import document

    return document()


def _peer_handlers(peers: PeerOperations) -> dict[str, Handler]:
    def create(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.PeerVolumeOrder)
        return peers.peer_create(order.name, order.options, actor=order.actor, peer=call.peer)

    def handover(call: Call) -> Awaitable[Any]:
        epoch = call.read(bodies.HandoverOrder).epoch
        return peers.peer_handover(call.volume, epoch=epoch, peer=call.peer)

    def remove(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.PeerRemoval)
        return peers.peer_remove(
            call.volume, volume_id=order.volume_id, actor=order.actor, peer=call.peer
        )

    def take(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.PeerTakeOrder)
        return peers.peer_take(
            call.volume,
            epoch=order.epoch,
            generation=order.generation,
            actor=order.actor,
            peer=call.peer,
        )

    def lost_copy(call: Call) -> Awaitable[Any]:
        epoch = call.read(bodies.HandoverOrder).epoch
        return peers.peer_lost_copy(call.volume, epoch=epoch, peer=call.peer)

    def promise(call: Call) -> Awaitable[Any]:
        order = call.read(bodies.PeerPromiseOrder)
        return peers.peer_promise(order.volumes, seconds=order.seconds, peer=call.peer)

    def move(call: Call) -> AsyncIterator[Any]:
        order = call.read(bodies.PeerMoveOrder)
        return peers.peer_move(
            call.volume,
            order.node,
            wait_seconds=order.wait_seconds,
            actor=order.actor,
            peer=call.peer,
        )

    def hook(call: Call) -> AsyncIterator[Any]:
        moment = Moment(call.read(bodies.PeerHookOrder).hook)
        return peers.peer_hook(call.service, moment=moment, peer=call.peer)

    return {
        "peer_node": lambda call: peers.peer_node(peer=call.peer),
        "peer_create": create,
        "peer_volume": lambda call: peers.peer_volume(call.volume, peer=call.peer),
        "peer_handover": handover,
        "peer_remove": remove,
        "peer_take": take,
        "peer_verify": lambda call: peers.peer_verify(call.volume, peer=call.peer),
        "peer_lost_copy": lost_copy,
        "peer_promise": promise,
        "peer_move": move,
        "peer_hook": hook,
    }
