"""The certificates of a machine and of what is around it, as the rest of the node knows them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pannier.contract.bodies import RenewalOrder
from pannier.contract.views import RenewalReply
from pannier.contract.words import CertificateKind
from pannier.core.errors import PannierError
from pannier.pki.facts import CertificateFacts
from pannier.pki.renewal import Proved, RenewalRequest


class KeepsCertificate(Protocol):
    """A certificate of this machine: :class:`~pannier.pki.own.OwnCertificate`.

    All methods may raise NotFound, Denied or OSError where its files are missing, do not fit or cannot be read.
    """

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    def facts(self) -> CertificateFacts:
        """The certificate."""
        ...

    def authority(self) -> CertificateFacts:
        """The certificate of its authority."""
        ...

    def request(self) -> RenewalRequest:
        """Asks for a longer time for the same key."""
        ...

    def keep(self, chain: str) -> None:
        """Replace the certificate on the disk by a renewed one; Denied where it does not fit. Waits for the disk, and may be
        called in a thread.
        """
        ...

    def refresh(self) -> bool:
        """Take up the certificate on the disk if it was replaced. Returns whether it was."""
        ...


class KeepsIssued(Protocol):
    """What the authority remembers of users' certificates; empty on the other nodes.

    All methods may raise OSError.
    """

    @property
    def directory(self) -> Path:
        """Where they are."""
        ...

    def note(self, user: str, chain: str) -> None:
        """Remember a certificate."""
        ...

    def newest(self, user: str) -> CertificateFacts | None:
        """That of one user; None where nothing is remembered. Denied or InvalidInput where it is damaged."""
        ...

    def all(self) -> Sequence[CertificateFacts]:
        """The newest of each user."""
        ...


AskAsStranger = Callable[[str, int, str | None, RenewalOrder], Awaitable[RenewalReply]]
"""Asks the daemon at an address and port, which must be the node of that name or any node of this cluster, for a renewal,
without showing a certificate. Raises PannierError."""
StoreCertificates = Callable[[], Awaitable[Mapping[str, CertificateFacts | PannierError]]]
"""What each member of the store shows, by its address; empty for a store that is a file. Raises nothing."""


Prove = Callable[[RenewalRequest], Proved]
"""Checks somebody's request by this cluster's authorities: :meth:`pannier.pki.renewal.Prover.prove`."""
MemberCertificate = Callable[[], KeepsCertificate | None]
"""That of the etcd member on this machine; None where there is none that etcd's authority of this cluster issued. Raises
nothing."""


@dataclass(frozen=True, slots=True)
class KeptCertificate:
    """A certificate that this node renews, and of what kind it is."""

    kind: CertificateKind
    certificate: KeepsCertificate


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePorts:
    """How a node comes by certificates.

    Attributes:
        own: with which it speaks to other nodes and users.
        store_client: with which it uses etcd; None where that has no authority of its own.
    """

    own: KeepsCertificate
    store_client: KeepsCertificate | None
    store_member: MemberCertificate
    prove: Prove
    issued: KeepsIssued
    stranger: AskAsStranger
    store: StoreCertificates

    def kept(self) -> list[KeptCertificate]:
        """All that this node renews, its own first: with that it asks for the others."""
        found = (
            (CertificateKind.NODE, self.own),
            (CertificateKind.STORE, self.store_client),
            (CertificateKind.ETCD, self.store_member()),
        )
        return [KeptCertificate(kind, each) for kind, each in found if each is not None]
