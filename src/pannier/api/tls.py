"""Whom we talk to: the server's certificate must name a node, before anything is sent to it."""

from __future__ import annotations

import ssl

from pannier.core.errors import PannierError

ANY_NODE = "any-node.pannier.invalid"
"""As the server's name: any node of the cluster is accepted."""


class WrongServer(ssl.SSLCertVerificationError):
    """The server's certificate is not that of the wanted node, or of any node.

    A subclass of an ssl error, because asyncio ends a failed handshake cleanly for no other kind.
    """


class _NodeCheckingTls(ssl.SSLObject):
    """TLS that ends its handshake by comparing the certificate's identity with the wanted name.

    Nodes are reached at addresses that change, so certificates name the node and not the address,
    and the wanted node's name travels where a host name would (``server_hostname``).
    """

    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.getpeercert(binary_form=True), self.server_hostname)


def check_nodes(context: ssl.SSLContext) -> None:
    """Make connections with ``context`` fail unless the server's certificate names the wanted node.

    May be repeated, and the context may be shared by connections to different nodes.
    """
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.sslobject_class = _NodeCheckingTls


def _check(certificate: bytes | None, wanted: str | None) -> None:
    from pannier.pki.identity import NodeIdentity, identity_of

    if certificate is None:
        raise WrongServer("the server showed no certificate")
    try:
        identity = identity_of(certificate)
    except PannierError as error:
        raise WrongServer(f"the server is no node: {error.message}") from error
    if not isinstance(identity, NodeIdentity):
        raise WrongServer("the server shows a user's certificate, not a node's")
    if wanted not in (ANY_NODE, identity.name):
        raise WrongServer(f"the server is {identity.name}, not {wanted}")
