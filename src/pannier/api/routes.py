"""The routes, as one table: the server, the OpenAPI document and the tests read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pannier.api.caller import Anonymous, Caller, LocalCaller, NodeCaller, UserCaller
from pannier.contract import bodies, views
from pannier.contract.operations import HandoverReply, JoinReply
from pannier.core import errors
from pannier.core.errors import PannierError


class Access(StrEnum):
    """Kinds of routes, by who may use them."""

    JOIN = "join"
    CLUSTER = "cluster"
    PEER = "peer"


ALLOWED: Mapping[Access, frozenset[type[Caller]]] = {
    Access.JOIN: frozenset({Anonymous, NodeCaller, UserCaller, LocalCaller}),
    Access.CLUSTER: frozenset({NodeCaller, UserCaller, LocalCaller}),
    Access.PEER: frozenset({NodeCaller}),
}
"""Who may do what: the whole of it. A caller that is not in a row's set is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route.

    Attributes:
        name: the operation's name: of the handler, in the OpenAPI document and in log lines.
        path: with ``{volume}``, ``{node}``, ``{service}`` or ``{name_or_id}`` as parameters.
        answer: type of the answer (of one line, for a stream), or None for an empty one.
        flags: names of boolean query parameters; absent means false.
        stream: the answer is one JSON value per line, with blank lines to show life.
        raises: the errors to expect besides those that every route may answer.
    """

    name: str
    method: str
    path: str
    access: Access
    summary: str
    answer: Any
    status: int = 200
    body: type[bodies.Body] | None = None
    flags: tuple[str, ...] = ()
    stream: bool = False
    raises: tuple[type[PannierError], ...] = ()


def _cluster(method: str, path: str, name: str, summary: str, answer: Any, **more: Any) -> Route:
    return Route(
        method=method,
        path="/v1" + path,
        name=name,
        summary=summary,
        answer=answer,
        access=Access.CLUSTER,
        **more,
    )


def _peer(method: str, path: str, name: str, summary: str, answer: Any, **more: Any) -> Route:
    return Route(
        method=method,
        path="/v1/peer" + path,
        name=name,
        summary=summary,
        answer=answer,
        access=Access.PEER,
        **more,
    )


_NODE = (errors.NodeNotFound,)
_VOLUME = (errors.VolumeNotFound,)
_STORAGE = (errors.StorageError, errors.PoolFull)
_CREATE = (errors.AlreadyExists, errors.NodeNotFound, *_STORAGE)
_MOVE = (errors.VolumeNotFound, errors.NodeNotFound, errors.Conflict, errors.StorageError)
_SWARM = (errors.Conflict, errors.EngineUnavailable)

ROUTES: tuple[Route, ...] = (
    _cluster("GET", "/status", "status", "The cluster at a glance", views.StatusView),
    _cluster("GET", "/nodes", "nodes", "All nodes", list[views.NodeView]),
    _cluster("GET", "/nodes/{node}", "node", "One node", views.NodeView, raises=_NODE),
    _cluster(
        "PATCH",
        "/nodes/{node}",
        "drain_node",
        "Take a node out of placement, or put it back",
        views.NodeView,
        body=bodies.NodeChange,
        raises=_NODE,
    ),
    _cluster(
        "DELETE",
        "/nodes/{node}",
        "remove_node",
        "Forget a node that holds no volumes; with lost, one that is down for ever with them",
        None,
        flags=("lost",),
        status=204,
        raises=(errors.NodeNotFound, errors.Conflict),
    ),
    _cluster(
        "POST",
        "/tokens",
        "create_token",
        "Make a token with which machines may join",
        views.TokenView,
        status=201,
        body=bodies.TokenOrder,
    ),
    Route(
        method="POST",
        path="/v1/join",
        name="join",
        summary="Become a node; the only route that needs no certificate",
        answer=JoinReply,
        access=Access.JOIN,
        body=bodies.JoinOrder,
        raises=(errors.Conflict,),
    ),
    _cluster("GET", "/volumes", "volumes", "All volumes", list[views.VolumeView]),
    _cluster(
        "POST",
        "/volumes",
        "create_volume",
        "Create a volume",
        views.VolumeView,
        status=201,
        body=bodies.VolumeOrder,
        raises=_CREATE,
    ),
    _cluster(
        "GET",
        "/volumes/{volume}",
        "volume",
        "One volume, with what only its holder knows",
        views.VolumeView,
        raises=_VOLUME,
    ),
    _cluster(
        "DELETE",
        "/volumes/{volume}",
        "remove_volume",
        "Move a volume to the trash",
        views.TrashView,
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.StorageError),
    ),
    _cluster(
        "POST",
        "/volumes/{volume}/move",
        "move_volume",
        "Move a volume to another node, and report progress",
        views.MoveProgress,
        body=bodies.MoveOrder,
        stream=True,
        raises=_MOVE,
    ),
    _cluster(
        "POST",
        "/volumes/{volume}/recover",
        "recover_volume",
        "Give a lost holder's volume to the newest copy",
        views.VolumeView,
        body=bodies.RecoverOrder,
        raises=(*_VOLUME, errors.Conflict, errors.Unavailable),
    ),
    _cluster(
        "POST",
        "/volumes/{volume}/verify",
        "verify_volume",
        "Read every copy of a volume to the last byte, and have damaged ones made anew",
        list[views.CheckView],
        raises=_VOLUME,
    ),
    _cluster(
        "GET",
        "/volumes/{volume}/history",
        "history",
        "What happened to a volume, oldest first",
        list[views.EventView],
        raises=_VOLUME,
    ),
    _cluster(
        "GET",
        "/volumes/{volume}/doctor",
        "explain_volume",
        "Who holds a volume, what will happen next, and the one safe command",
        list[views.FindingView],
        raises=_VOLUME,
    ),
    _cluster(
        "GET",
        "/services",
        "services",
        "The Swarm's services with volumes of Pannier; asked of a Swarm manager",
        list[views.ServiceView],
        raises=_SWARM,
    ),
    _cluster(
        "POST",
        "/services/{service}/move",
        "move_service",
        "Move a Swarm service with its volumes to another node, and report progress",
        views.ServiceMoveProgress,
        body=bodies.ServiceMoveOrder,
        stream=True,
        raises=(errors.NotFound, errors.PoolFull, errors.DeadlineExceeded, *_MOVE, *_SWARM),
    ),
    _cluster("GET", "/trash", "trash", "Removed volumes", list[views.TrashView]),
    _cluster(
        "POST",
        "/trash/{name_or_id}/restore",
        "restore_volume",
        "Bring a volume back from the trash",
        views.VolumeView,
        raises=(errors.VolumeNotFound, errors.AlreadyExists, errors.StorageError),
    ),
    _cluster("GET", "/doctor", "doctor", "Checks of everything", list[views.FindingView]),
    _cluster(
        "GET",
        "/events",
        "events",
        "What happened, and with follow=true what happens from now on",
        views.EventView,
        flags=("follow",),
        stream=True,
    ),
    _cluster("GET", "/openapi.json", "openapi", "This document", dict[str, Any]),
    _peer("GET", "/node", "peer_node", "Live facts of this node", views.NodeView),
    _peer(
        "POST",
        "/volumes",
        "peer_create",
        "Make a volume here",
        views.VolumeView,
        status=201,
        body=bodies.PeerVolumeOrder,
        raises=_CREATE,
    ),
    _peer(
        "GET",
        "/volumes/{volume}",
        "peer_volume",
        "Live facts that only the holder knows",
        views.VolumeView,
        raises=(errors.VolumeNotFound, errors.NotHolder),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/handover",
        "peer_handover",
        "The asking node wants to become the holder",
        HandoverReply,
        body=bodies.HandoverOrder,
        raises=(errors.VolumeNotFound, errors.Stale, errors.NotHolder, errors.StorageError),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/remove",
        "peer_remove",
        "Move a volume that this node holds to the trash",
        None,
        status=204,
        body=bodies.PeerRemoval,
        raises=(errors.VolumeNotFound, errors.VolumeInUse, errors.Stale, errors.StorageError),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/take",
        "peer_take",
        "Become the holder of a volume whose holder is lost",
        views.VolumeView,
        body=bodies.PeerTakeOrder,
        raises=(*_VOLUME, errors.Conflict, errors.StorageError),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/verify",
        "peer_verify",
        "Read this node's copy to the last byte",
        views.CheckView,
        raises=(*_VOLUME, errors.StorageError, errors.Unavailable),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/lost-copy",
        "peer_lost_copy",
        "The asking node has nothing of a volume that this node holds",
        None,
        status=204,
        body=bodies.HandoverOrder,
        raises=(*_VOLUME, errors.Stale, errors.NotHolder, errors.Unavailable),
    ),
    _peer(
        "POST",
        "/promises",
        "peer_promise",
        "Do not take volumes over for some time; the ids for which this is promised",
        list[str],
        body=bodies.PeerPromiseOrder,
        raises=(errors.Denied,),
    ),
    _peer(
        "POST",
        "/volumes/{volume}/move",
        "peer_move",
        "Move a volume that this node holds, and report progress",
        views.MoveProgress,
        body=bodies.PeerMoveOrder,
        stream=True,
        raises=_MOVE,
    ),
    _peer(
        "POST",
        "/services/{service}/hook",
        "peer_hook",
        "Run a hook of the service's container here; after pre-move, read on while it is moved",
        views.HookView,
        body=bodies.PeerHookOrder,
        stream=True,
        raises=(errors.NotFound, errors.Conflict, errors.EngineUnavailable),
    ),
)
