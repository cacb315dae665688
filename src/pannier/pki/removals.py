"""Nodes that were removed, and how etcd is told to refuse them: by a list of serial numbers.

A serial number stands for a membership: for one node, from a join to the removal that follows. All certificates of a
membership have it, also renewed ones. So whoever knows a node's name can refuse everything that was ever issued
for it, without the authority and without a list of what it issued. A node that joins again begins its next membership,
and gets another number.

Each node keeps the counts of removals and passes them on. They only grow, so they can be put together in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pannier.core.errors import Corrupt
from pannier.core.record import Record

MOST_REMOVALS: Final = 1000
"""How often one name can be removed. It bounds the list that etcd reads at each handshake, whatever a node says."""
MEMBER_PREFIX: Final = "etcd-"
"""The etcd member on node NAME is called ``etcd-NAME`` in its certificate; other members are on no node of ours."""

_SERIAL_BYTES: Final = 19
"""X.509 allows 20, and the first bit must not be set."""
_VALIDITY: Final = timedelta(days=3653)
"""etcd does not look at it; it is read from a file that this machine writes before each start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals(Record):
    """How often each node was removed, by name; never-removed ones are left out."""

    counts: Mapping[str, int] = field(default_factory=dict)

    def membership(self, node: str) -> int:
        """The number of the node's present or next membership; the first is 1."""
        return self.counts.get(node, 0) + 1

    def with_removed(self, node: str) -> Removals:
        """After one more removal; at :data:`MOST_REMOVALS` it stays as it is, and the name cannot be used any more."""
        return self.merged({node: min(self.membership(node), MOST_REMOVALS)})

    def merged(self, counts: Mapping[str, int]) -> Removals:
        """With what another node knows."""
        names = sorted(self.counts.keys() | counts.keys())
        most = {name: max(self.counts.get(name, 0), counts.get(name, 0)) for name in names}
        return self if most == self.counts else Removals(counts=most)

    def refused(self) -> frozenset[int]:
        """Serial numbers of all memberships that have ended, of nodes and of the etcd members on them."""
        return frozenset(
            serial(name, membership)
            for node, count in self.counts.items()
            for membership in range(1, count + 1)
            for name in (node, f"{MEMBER_PREFIX}{node}")
        )


def serial(name: str, membership: int) -> int:
    """The serial number of all certificates of one membership.

    Args:
        name: the common name: a node's, or an etcd member's.
        membership: see :meth:`Removals.membership`.
    """
    digest = hashlib.sha256(f"pannier-membership:{membership}:{name}".encode()).digest()
    return int.from_bytes(digest[:_SERIAL_BYTES]) | 1  # zero is no serial number


def node_of(member: str) -> str:
    """The node that an etcd member is on, by the member's name."""
    return member.removeprefix(MEMBER_PREFIX)


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
