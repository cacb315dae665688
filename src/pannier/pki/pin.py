"""Knowing the cluster before joining it: the CA is recognised by the fingerprint in the token.

A machine that joins has no CA to verify with. It looks at the certificates that the member shows,
takes the one whose fingerprint the token names, checks that the member's own was issued by it, and
from then on trusts exactly that CA. Nothing is sent on this first connection: the token goes through a
second one, verified in the ordinary way.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from pannier.core.errors import Denied, PeerUnavailable
from pannier.pki.failures import explain_tls
from pannier.pki.identity import NodeIdentity, identity_of

_DER = 2  # _ssl.ENCODING_DER


@dataclass(frozen=True, slots=True)
class Pinned:
    """A cluster that was recognised.

    Attributes:
        ca_pem: its CA's certificate.
        member: the node that answered; connect with ``server_hostname=member.name``.
        context: trusts exactly that CA; has no certificate of our own.
    """

    ca_pem: str
    member: NodeIdentity
    context: ssl.SSLContext


async def pin(
    address: str, *, port: int, ca_fingerprint: str, timeout_seconds: float = 10.0
) -> Pinned:
    """Look at the member at ``address`` and recognise its cluster.

    Args:
        address: IP address or host name.
        port: its API's port.
        ca_fingerprint: SHA-256 of the CA's certificate, hexadecimal, from the token.
        timeout_seconds: for connecting and the handshake together.

    Raises:
        Denied: another cluster, or somebody in between; nothing was sent.
        PeerUnavailable: nobody answers there, or not with TLS.
    """
    chain = await shown_chain(address, port=port, timeout_seconds=timeout_seconds)
    where = f"{address}:{port}"
    ca = _find(chain, ca_fingerprint, where=where)
    member = _check_member(chain[0], ca, where=where)
    ca_pem = ca.public_bytes(serialization.Encoding.PEM).decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca_pem)
    return Pinned(ca_pem, member, context)


async def shown_chain(address: str, *, port: int, timeout_seconds: float) -> list[bytes]:
    """The certificates (DER) that a TLS server shows, its own first. None is verified, and nothing is sent.

    Raises:
        PeerUnavailable: nobody answers there, or not with TLS 1.3.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    # Not verified here but below, by the fingerprint: there is no CA to verify with yet.
    context.verify_mode = ssl.CERT_NONE
    where = f"{address}:{port}"
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(address, port, ssl=context)
    except ssl.SSLError as error:
        raise explain_tls(error, peer=where) from error
    except (OSError, TimeoutError) as error:
        raise PeerUnavailable(
            f"no node answers at {where}: {str(error) or 'no answer in time'}",
            remedy="check the address, that pannierd runs there, and the firewalls between",
        ) from error
    try:
        return _chain_of(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()


def _chain_of(connection: Any) -> list[bytes]:
    # Public since Python 3.13; before, only the underlying object has this method.
    if hasattr(connection, "get_unverified_chain"):
        return list(connection.get_unverified_chain() or ())
    certificates = connection._sslobj.get_unverified_chain() or ()
    return [certificate.public_bytes(_DER) for certificate in certificates]


def _find(chain: list[bytes], ca_fingerprint: str, *, where: str) -> x509.Certificate:
    for der in chain:
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            continue
        found = certificate.fingerprint(hashes.SHA256()).hex()
        if hmac.compare_digest(found, ca_fingerprint):
            return certificate
    raise Denied(
        f"{where} does not belong to the cluster that the token is for",
        remedy="check the address, and use a token that was made on a node of that cluster",
    )


def _check_member(der: bytes, ca: x509.Certificate, *, where: str) -> NodeIdentity:
    remedy = "somebody may be in between: check the network before you try again"
    leaf = x509.load_der_x509_certificate(der)
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Denied(
            f"{where} shows the cluster's CA, but its own certificate is not from it",
            remedy=remedy,
        ) from error
    identity = identity_of(der)
    if not isinstance(identity, NodeIdentity):
        raise Denied(f"{where} shows the certificate of {identity}", remedy=remedy)
    return identity
