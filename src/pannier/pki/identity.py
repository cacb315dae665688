"""Who a certificate speaks for: a node or a user of one cluster, in a URI of its SAN.

``pannier://<cluster>/node/<name>`` or ``pannier://<cluster>/user/<name>``. The common name repeats
the name for people; no decision depends on it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pannier.core.errors import Denied, InvalidInput
from pannier.core.node import Fingerprints, check_node_name

_CLUSTER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_USER = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9._@-]{0,61}[a-zA-Z0-9])?", re.ASCII)
_URI = re.compile(r"pannier://([^/]+)/(node|user)/([^/]+)", re.ASCII)
_SCHEME = "pannier:"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node of a cluster."""

    cluster: str
    name: str

    def __str__(self) -> str:
        return f"node {self.name}"

    @property
    def uri(self) -> str:
        """As it stands in a certificate."""
        return f"pannier://{self.cluster}/node/{self.name}"


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """A person or program that uses a cluster's API."""

    cluster: str
    name: str

    def __str__(self) -> str:
        return f"user {self.name}"

    @property
    def uri(self) -> str:
        """As it stands in a certificate."""
        return f"pannier://{self.cluster}/user/{self.name}"


Identity: TypeAlias = NodeIdentity | UserIdentity
TlsObject: TypeAlias = ssl.SSLObject | ssl.SSLSocket


def check_cluster(cluster: str) -> str:
    """Return ``cluster`` if it can be a cluster's id.

    Raises:
        InvalidInput: it cannot.
    """
    if not _CLUSTER.fullmatch(cluster):
        raise InvalidInput(
            f"{cluster[:40]!r} cannot be a cluster's id",
            remedy="use lower-case letters, digits and '-', at most 63 characters",
        )
    return cluster


def check_user_name(name: str) -> str:
    """Return ``name`` if it can name a user.

    Raises:
        InvalidInput: it cannot.
    """
    if not _USER.fullmatch(name):
        raise InvalidInput(
            f"{name[:40]!r} cannot name a user",
            remedy="use letters, digits, '.', '_', '@' and '-', at most 63 characters",
        )
    return name


def parse_identity(uri: str) -> Identity:
    """Read an identity's URI.

    Raises:
        Denied: it has another form, or an invalid cluster or name.
    """
    match = _URI.fullmatch(uri)
    try:
        if match:
            cluster = check_cluster(match[1])
            if match[2] == "node":
                return NodeIdentity(cluster, check_node_name(match[3]))
            return UserIdentity(cluster, check_user_name(match[3]))
    except InvalidInput as error:
        raise _not_ours(f"its identity {uri[:80]!r} cannot be") from error
    raise _not_ours(f"its identity {uri[:80]!r} has another form")


def identity_of(certificate: TlsObject | bytes) -> Identity:
    """Who the peer of a TLS connection, or a certificate in DER, is.

    Whether the cluster's CA issued it is not checked here; TLS does that.

    Raises:
        Denied: no certificate, or one without exactly one well-formed identity.
    """
    der = certificate if isinstance(certificate, bytes) else certificate.getpeercert(True)
    if not der:
        raise Denied(
            "the other side showed no certificate",
            remedy="use the certificate of a node or a user of this cluster",
        )
    try:
        parsed = x509.load_der_x509_certificate(der)
        extensions = parsed.extensions
    except ValueError as error:
        raise _not_ours("it cannot be read") from error
    return _identity_in(extensions)


def _identity_in(extensions: x509.Extensions) -> Identity:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise _not_ours("it is a CA's own")
    except x509.ExtensionNotFound:
        pass
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise _not_ours("it names no node or user") from error
    uris = [
        uri
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.lower().startswith(_SCHEME)
    ]
    if not uris:
        raise _not_ours("it names no node or user")
    if len(uris) > 1:
        raise _not_ours(f"it names {len(uris)} nodes or users")
    return parse_identity(uris[0])


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` has signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def fingerprint(certificate: str | bytes) -> str:
    """SHA-256 of a certificate's DER, hexadecimal; of a PEM chain, its first certificate's.

    Raises:
        InvalidInput: ``certificate`` is not one.
    """
    data = certificate.encode() if isinstance(certificate, str) else certificate
    try:
        parsed = (
            x509.load_pem_x509_certificate(data)
            if b"-----BEGIN" in data
            else x509.load_der_x509_certificate(data)
        )
    except ValueError as error:
        raise InvalidInput(
            "this is not a certificate", remedy="give a certificate in PEM or DER"
        ) from error
    return parsed.fingerprint(hashes.SHA256()).hex()


def fingerprints(certificate: bytes) -> Fingerprints:
    """Of a certificate in DER, and of its public key.

    Raises:
        InvalidInput: ``certificate`` is not one.
    """
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise InvalidInput("this is not a certificate", remedy="give one in DER") from error
    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Fingerprints(fingerprint(certificate), sha256(public).hexdigest())


def require_node(
    peer: TlsObject,
    *,
    cluster: str,
    name: str | None = None,
    admits: Callable[[Fingerprints], bool] | None = None,
) -> NodeIdentity:
    """The peer's identity, if it is a node of ``cluster``, and the one that is meant.

    Args:
        peer: a TLS connection after its handshake, whose context verified against the CA.
        cluster: the cluster's id.
        name: the node's name, or None for any node.
        admits: whether this certificate may act for it; None lets any.

    Raises:
        Denied: it is a user, another node, of another cluster, or has another certificate.
    """
    identity = identity_of(peer)
    if identity.cluster != cluster:
        raise Denied(
            f"{identity} belongs to cluster {identity.cluster}, not to {cluster}",
            remedy="check the address, or let the machine join this cluster",
        )
    if not isinstance(identity, NodeIdentity):
        raise Denied(
            f"the certificate is that of {identity}, and only nodes may do this",
            remedy="use the commands of 'pannier', which ask a node to do it",
        )
    if name is not None and identity.name != name:
        raise Denied(
            f"{identity} answered where node {name} was expected",
            remedy=f"check the address of node {name} with 'pannier node ls'",
        )
    if admits is not None and not admits(fingerprints(peer.getpeercert(True) or b"")):
        raise Denied(
            f"{identity} showed another certificate than the one that the cluster has on record",
            remedy=f"if {identity.name} was set up anew, remove the old node and let it join again",
        )
    return identity


def _not_ours(why: str) -> Denied:
    return Denied(
        f"the certificate is not accepted: {why}",
        remedy="use the certificate of a node or a user of this cluster",
    )
