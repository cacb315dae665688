"""Who asks: read from the socket and the certificate, never from what the request says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from pannier.contract.bodies import ACTOR_PATTERN
from pannier.core.errors import Denied, InvalidInput, PannierError

if TYPE_CHECKING:
    # The command line loads this module, and needs nothing of a server.
    from aiohttp import web

ACTOR_HEADER = "X-Pannier-Actor"


@dataclass(frozen=True, slots=True)
class NodeCaller:
    """Another node's daemon; ``name`` is the one in its certificate."""

    name: str


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A person or tool with a user certificate."""

    name: str


@dataclass(frozen=True, slots=True)
class LocalCaller:
    """Whoever may open the local socket: root on this machine."""


@dataclass(frozen=True, slots=True)
class Anonymous:
    """No certificate: a machine that wants to join."""


Caller = NodeCaller | UserCaller | LocalCaller | Anonymous
Identify = Callable[["web.Request"], Caller]
Admit = Callable[[NodeCaller | UserCaller, bytes], bool]


def identify_local(request: web.Request) -> Caller:
    """For the local socket, whose permissions (root, 0600) are the whole check."""
    return LocalCaller()


def identify_tls(cluster: str, *, admit: Admit | None = None) -> Identify:
    """Read callers from their certificates, which the TLS layer has already verified.

    Args:
        cluster: certificates that name another cluster are refused.
        admit: asked with the caller and the certificate (DER); False refuses it. This is where a
            removed node's certificate, still signed by the CA, stops being accepted.

    Returns:
        A function that raises Denied for a certificate that is not accepted.
    """

    def identify(request: web.Request) -> Caller:
        certificate = peer_certificate(request)
        if certificate is None:
            return Anonymous()
        caller = caller_of_certificate(certificate, cluster=cluster)
        if admit is not None and not admit(caller, certificate):
            raise Denied(
                f"the certificate of {describe_caller(caller)} is not accepted any more",
                remedy="ask for a new one, or join the node again",
            )
        return caller

    return identify


def peer_certificate(request: web.Request) -> bytes | None:
    """The client's certificate (DER), or None where it showed none."""
    transport = request.transport
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    if tls is None:
        return None
    certificate: bytes | None = tls.getpeercert(binary_form=True)
    return certificate


def caller_of_certificate(certificate: bytes, *, cluster: str) -> NodeCaller | UserCaller:
    """The node or user that ``certificate`` (DER) names.

    Raises:
        Denied: it names neither, or belongs to another cluster.
    """
    # Imported where used: the certificate library is large, and the command line loads this
    # package without ever looking at a certificate.
    from pannier.pki.identity import NodeIdentity, identity_of

    try:
        identity = identity_of(certificate)
    except PannierError as error:
        raise Denied(
            f"the certificate names no node or user of this cluster: {error.message}",
            remedy="use the certificate that 'pannier join' or the cluster's administrator gave",
        ) from error
    if identity.cluster != cluster:
        raise Denied(
            f"the certificate belongs to the cluster {identity.cluster}, this node to {cluster}",
            remedy="use this cluster's certificate",
        )
    if isinstance(identity, NodeIdentity):
        return NodeCaller(identity.name)
    return UserCaller(identity.name)


def describe_caller(caller: Caller) -> str:
    """``node/n2``, ``user/anna``, ``local`` or ``anonymous``: for log lines and messages."""
    match caller:
        case NodeCaller(name):
            return f"node/{name}"
        case UserCaller(name):
            return f"user/{name}"
        case LocalCaller():
            return "local"
        case Anonymous():
            return "anonymous"
    assert_never(caller)


def actor_of(caller: Caller, claimed: str | None) -> str:
    """Who is to be recorded as having asked.

    Args:
        claimed: the request's actor header. It counts only from a node, which passes on the request
            of a user whom it has identified itself; from anybody else it is ignored.

    Raises:
        InvalidInput: a node's header cannot be a name.
    """
    match caller:
        case NodeCaller(name):
            return f"node/{name}" if claimed is None else _check_actor(claimed)
        case UserCaller(name):
            return name
        case LocalCaller():
            return "local"
        case Anonymous():
            return "anonymous"
    assert_never(caller)


def _check_actor(claimed: str) -> str:
    if re.fullmatch(ACTOR_PATTERN, claimed):
        return claimed
    raise InvalidInput(
        f"the header {ACTOR_HEADER} cannot be a name",
        remedy="use 1 to 128 printable ASCII characters",
    )
