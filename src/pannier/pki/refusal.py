"""The list of certificates that an etcd refuses, in the form in which it reads it: see :mod:`pannier.core.removals`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pannier.core.errors import Corrupt

_VALIDITY: Final = timedelta(days=3653)
"""etcd does not look at it; the list is written anew before each of its starts."""


def refusal_list(serials: Iterable[int], *, now: float) -> bytes:
    """A list of refused certificates (CRL, DER), as etcd reads it at each handshake.

    etcd does not look at its signature: the list is a file of its own machine. So a key is made for it here and
    thrown away.

    Args:
        now: Unix time.
    """
    at = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Pannier: removed nodes")])
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(at)
        .next_update(at + _VALIDITY)
    )
    for number in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(at).build()
        builder = builder.add_revoked_certificate(entry)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def refused_by(der: bytes) -> frozenset[int]:
    """The serial numbers in a list that :func:`refusal_list` has made.

    Raises:
        Corrupt: it is none.
    """
    try:
        found = x509.load_der_x509_crl(der)
    except ValueError as error:
        raise Corrupt(
            f"etcd's list of refused certificates cannot be read: {error}",
            remedy="restart etcd, which writes it anew",
        ) from error
    return frozenset(each.serial_number for each in found)
