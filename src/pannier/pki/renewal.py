"""Asking for a renewed certificate: the request proves by itself who asks.

It has the present certificate, and a request for the same key that is signed with it. So it does not matter over which
connection it comes: an authority signs for the key again, and nobody else can use the result. Replaying it gains nothing.
The key stays the same, so only one file changes, and the node's record goes on recognising the node.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from pannier.core.errors import Denied, InvalidInput, PannierError
from pannier.pki.authority import REQUEST_LIMIT, requested_key
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.identity import Identity, identity_of


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """What is asked with; both PEM.

    Attributes:
        certificate: the present one; what follows it in a chain is ignored.
        csr: a request for its key, signed with it.
    """

    certificate: str
    csr: str


@dataclass(frozen=True, slots=True)
class Proved:
    """A certificate of this cluster, whose key the asker has. Only :func:`prove` makes it."""

    identity: Identity
    facts: CertificateFacts
    certificate: x509.Certificate


def prove(request: RenewalRequest, *, ca: str) -> Proved:
    """Check a request; whether the certificate has ended is not looked at.

    Args:
        ca: the cluster's CA certificate, PEM.

    Raises:
        Denied: it does not prove that. The message is the same whatever is wrong: a stranger may ask.
    """
    try:
        if len(request.certificate) > REQUEST_LIMIT:
            raise InvalidInput("the certificate is too long")
        certificate = x509.load_pem_x509_certificate(request.certificate.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
        der = certificate.public_bytes(Encoding.DER)
        proved = Proved(identity_of(der), facts_of(der), certificate)
        if requested_key(request.csr) != certificate.public_key():
            raise InvalidInput("the request is for another key")
    except (PannierError, ValueError, TypeError, InvalidSignature) as error:
        raise Denied(
            "the request to renew a certificate is not accepted",
            remedy="it must be for a certificate of this cluster, and be signed with that certificate's key",
        ) from error
    return proved
