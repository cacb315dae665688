"""What people are told of a certificate, and what its renewal is decided on."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pannier.core.errors import InvalidInput
from pannier.core.node import Fingerprints
from pannier.pki.identity import fingerprints


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """A certificate.

    Attributes:
        name: the subject's common name.
        subject: as RFC 4514 writes it.
        serial: hexadecimal.
        begins, ends: Unix times between which it counts.
        fingerprints: its own, and its key's.
    """

    name: str
    subject: str
    serial: str
    begins: float
    ends: float
    fingerprints: Fingerprints


def facts_of(certificate: bytes | str) -> CertificateFacts:
    """Read a certificate in DER, or the first of a PEM chain.

    Raises:
        InvalidInput: it is not one.
    """
    data = certificate.encode() if isinstance(certificate, str) else certificate
    try:
        is_pem = b"-----BEGIN" in data
        read = x509.load_pem_x509_certificate if is_pem else x509.load_der_x509_certificate
        parsed = read(data)
        names = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return CertificateFacts(
            name=str(names[0].value) if names else "",
            subject=parsed.subject.rfc4514_string(),
            serial=f"{parsed.serial_number:x}",
            begins=parsed.not_valid_before_utc.timestamp(),
            ends=parsed.not_valid_after_utc.timestamp(),
            fingerprints=fingerprints(parsed.public_bytes(Encoding.DER)),
        )
    except ValueError as error:
        raise InvalidInput(
            "this is not a certificate", remedy="give a certificate in PEM or DER"
        ) from error
