"""Asking for a renewed certificate: the request proves by itself who asks.

It has the present certificate, and a request for the same key that is signed with it. So it does not matter over which
connection it comes: an authority signs for the key again, and nobody else can use the result. Replaying it gains nothing.
The key stays the same, so only one file changes, and the node's record goes on recognising the node.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pannier.core.errors import Denied, InvalidInput, PannierError
from pannier.pki import files
from pannier.pki.authority import REQUEST_LIMIT, requested_key
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.identity import Identity, identity_of, is_issued_by


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
class StoreIdentity:
    """Whom etcd lets in by a certificate of its own authority: a node, or a member of etcd.

    Attributes:
        name: the common name: the node's, or the member's.
        serial: of the membership: see :mod:`pannier.core.removals`.
    """

    name: str
    serial: int

    def __str__(self) -> str:
        return f"{self.name} for etcd"


@dataclass(frozen=True, slots=True)
class Proved:
    """A certificate of this cluster, whose key the asker has. Only :class:`Prover` makes it."""

    who: Identity | StoreIdentity
    facts: CertificateFacts
    certificate: x509.Certificate


class Prover:
    """Checks requests. One that was signed by neither authority, or not with the certificate's key, proves nothing.

    Args:
        ca: where the certificate of the cluster's authority is.
        store_ca: where that of etcd's authority is; None where it has none.
    """

    def __init__(self, *, ca: Path, store_ca: Path | None) -> None:
        self._ca = ca
        self._store_ca = store_ca

    def prove(self, request: RenewalRequest) -> Proved:
        """Check a request; whether the certificate has ended is not looked at.

        Raises:
            Denied: it does not prove that. The message is the same whatever is wrong: a stranger may ask.
            NotFound: an authority's certificate is not there.
        """
        ca = x509.load_pem_x509_certificate(files.read(self._ca).encode())
        store_ca = (
            x509.load_pem_x509_certificate(files.read(self._store_ca).encode())
            if self._store_ca is not None
            else None
        )
        try:
            if len(request.certificate) > REQUEST_LIMIT:
                raise InvalidInput("the certificate is too long")
            certificate = x509.load_pem_x509_certificate(request.certificate.encode())
            who = _who(certificate, ca=ca, store_ca=store_ca)
            if requested_key(request.csr) != certificate.public_key():
                raise InvalidInput("the request is for another key")
            return Proved(who, facts_of(certificate.public_bytes(Encoding.DER)), certificate)
        except (PannierError, ValueError) as error:
            raise Denied(
                "the request to renew a certificate is not accepted",
                remedy="it must be for a certificate of this cluster, and be signed with that certificate's key",
            ) from error


def _who(
    certificate: x509.Certificate, *, ca: x509.Certificate, store_ca: x509.Certificate | None
) -> Identity | StoreIdentity:
    if is_issued_by(certificate, ca):
        return identity_of(certificate.public_bytes(Encoding.DER))
    if store_ca is None or certificate == store_ca or not is_issued_by(certificate, store_ca):
        raise InvalidInput("the certificate is of another cluster")
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return StoreIdentity(str(name.value), certificate.serial_number)
