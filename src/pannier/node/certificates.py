"""What people are told of certificates, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.views import CertificateView, FindingView
from pannier.contract.words import CertificateKind, CertificateState, Level
from pannier.core.certificates import AUTHORITY_WARN_SECONDS, RENEW_SECONDS, WARN_SECONDS
from pannier.core.errors import PannierError
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.host.clock import Clock, rfc3339
from pannier.node.certificate_ports import CertificatePorts, KeptCertificate
from pannier.pki.authority import STORE_DIRECTORY
from pannier.pki.facts import CertificateFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A certificate, whose it is, and where: see :class:`~pannier.contract.views.CertificateView`."""

    kind: CertificateKind
    node: str | None
    where: str
    facts: CertificateFacts

    def view(self, now: float) -> CertificateView:
        facts = self.facts
        return CertificateView(
            name=facts.name,
            kind=self.kind,
            node=self.node,
            where=self.where,
            subject=facts.subject,
            serial=facts.serial,
            valid_from=rfc3339(facts.begins),
            valid_until=rfc3339(facts.ends),
            state=self._state(now),
        )

    def _state(self, now: float) -> CertificateState:
        left = self.facts.ends - now
        is_authority = self.kind is CertificateKind.AUTHORITY
        if left <= 0:
            return CertificateState.ENDED
        if now < self.facts.begins:
            return CertificateState.EARLY
        if left < (AUTHORITY_WARN_SECONDS if is_authority else WARN_SECONDS):
            return CertificateState.ENDING
        # What is on no node is a member's of etcd elsewhere, which nobody renews but a person.
        if left < RENEW_SECONDS and self.node is not None and not is_authority:
            return CertificateState.DUE
        return CertificateState.GOOD


class Certificates:
    """Lists certificates, and judges them.

    Args:
        trouble: why the certificate at a path here was not renewed although it is due; empty where it is well.
        has_authority: whether the cluster's authority is on this node.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        ports: CertificatePorts,
        peers: Peers,
        trouble: Callable[[str], str],
        has_authority: Callable[[], bool],
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._ports = ports
        self._peers = peers
        self._trouble = trouble
        self._has_authority = has_authority
        self._clock = clock
        self._pace = pace
        self._members: tuple[float, list[CertificateView]] | None = None
        """When the store's members were looked at last (seconds since the boot), and what they showed."""

    async def everywhere(self) -> list[CertificateView]:
        """All of the cluster, as each node tells it, and of its store's members."""
        node = self._cluster.node
        others = [each for each in self._cluster.catalog.nodes() if each.name != node]
        shown, *answers = await asyncio.gather(self._store(), *map(self._of, others))
        kept = [*self.here(), *(view for answer in answers for view in answer)]
        return [*kept, *_not_among(kept, shown)]

    def here(self) -> list[CertificateView]:
        """Those on this node."""
        now, node, views = self._clock.unix(), self._cluster.node, list[CertificateView]()
        for kept in self._ports.kept():
            try:
                views.append(self._found(kept).view(now))
            except (PannierError, OSError) as error:
                where = str(kept.certificate.path)
                views.append(_unseen(node, kept.kind, node, where, error))
        try:
            return [*views, *(found.view(now) for found in self._of_authority())]
        except (PannierError, OSError) as error:
            where = str(self._ports.issued.directory.parent)
            return [*views, _unseen(node, CertificateKind.AUTHORITY, node, where, error)]

    def own(self) -> CertificateView:
        """This node's own.

        Raises:
            NotFound, Denied, OSError: it cannot be read.
        """
        own = KeptCertificate(CertificateKind.NODE, self._ports.own)
        return self._found(own).view(self._clock.unix())

    def _found(self, kept: KeptCertificate) -> _Found:
        certificate = kept.certificate
        return _Found(
            kind=kept.kind,
            node=self._cluster.node,
            where=str(certificate.path),
            facts=certificate.facts(),
        )

    def _of_authority(self) -> Iterator[_Found]:
        """The authorities, if they are here, and what they remember."""
        if not self._has_authority():
            return
        ports, node = self._ports, self._cluster.node
        folder = str(ports.issued.directory.parent)
        kind = CertificateKind.AUTHORITY
        yield _Found(kind=kind, node=node, where=folder, facts=ports.own.authority())
        if ports.store_client is not None:
            yield _Found(
                kind=kind,
                node=node,
                where=f"{folder}/{STORE_DIRECTORY}",
                facts=ports.store_client.authority(),
            )
        for facts in ports.issued.all():
            where = str(ports.issued.directory)
            yield _Found(kind=CertificateKind.USER, node=node, where=where, facts=facts)

    async def _of(self, node: Node) -> list[CertificateView]:
        try:
            async with asyncio.timeout(self._pace.listing):
                return await self._peers.to(node).peer_certificates()
        except (PannierError, TimeoutError) as error:
            return [_unseen(node.name, CertificateKind.NODE, node.name, "", error)]

    async def _store(self) -> list[CertificateView]:
        now, views = self._clock.unix(), list[CertificateView]()
        for member, found in (await self._ports.store()).items():
            if isinstance(found, PannierError):
                views.append(_unseen(member, CertificateKind.ETCD, None, member, found))
            else:
                kind = CertificateKind.ETCD
                views.append(_Found(kind=kind, node=None, where=member, facts=found).view(now))
        self._members = (self._clock.now(), views)
        return views

    async def _store_lately(self) -> list[CertificateView]:
        if self._members is not None:
            at, views = self._members
            is_well = all(view.state is CertificateState.GOOD for view in views)
            if is_well and self._clock.now() - at < self._pace.certificate_members:
                return views
        return await self._store()

    async def findings(self) -> AsyncIterator[FindingView]:
        """What is wrong with those on this node and of the store's members."""
        here = self.here()
        for view in (*here, *_not_among(here, await self._store_lately())):
            if found := _finding(view, self._trouble(view.where)):
                yield found


def _not_among(
    kept: Sequence[CertificateView], shown: Sequence[CertificateView]
) -> Iterator[CertificateView]:
    """Of what the store's members show, that which no node keeps: of a member elsewhere, or of one that is not renewed."""
    known = {(view.serial, view.valid_until) for view in kept if view.serial is not None}
    return (view for view in shown if (view.serial, view.valid_until) not in known)


def _finding(view: CertificateView, trouble: str) -> FindingView | None:
    """One line for what a person should know; None where all is well, or will be by itself."""
    subject = f"certificate of {view.kind} {view.name}"
    if view.kind is CertificateKind.AUTHORITY:
        subject = f"certificate authority {view.name}"
    why = f"; not renewed: {trouble}" if trouble else ""
    match view.state:
        case CertificateState.UNSEEN if view.node is not None:
            return FindingView(
                level=Level.PROBLEM,
                subject=subject,
                what=f"{view.where} cannot be read: {view.error}",
                remedy="restore it from a backup; until then it is not renewed",
            )
        case CertificateState.ENDED if view.kind is not CertificateKind.USER:
            what = f"it ended on {view.valid_until}{why}"
            return FindingView(
                level=Level.PROBLEM, subject=subject, what=what, remedy=_remedy(view)
            )
        case CertificateState.EARLY:
            return FindingView(
                level=Level.PROBLEM,
                subject=subject,
                what=f"it counts from {view.valid_from} on only",
                remedy="check this machine's clock",
            )
        case CertificateState.ENDING:
            what = f"it ends on {view.valid_until}{why}"
            return FindingView(
                level=Level.WARNING, subject=subject, what=what, remedy=_remedy(view)
            )
        case _ if trouble:
            what = f"it ends on {view.valid_until}, and could not be renewed yet: {trouble}"
            return FindingView(
                level=Level.WARNING,
                subject=subject,
                what=what,
                remedy="it is tried again each hour; pannier cert renew tries at once",
            )
    return None


def _remedy(view: CertificateView) -> str:
    match view.kind:
        case CertificateKind.USER:
            return "it is renewed when the user uses it; else give a new one: pannier ca issue NAME --for user"
        case CertificateKind.AUTHORITY:
            return (
                "no certificate lasts longer than it: move the volumes to a new cluster before then"
            )
        case CertificateKind.ETCD if view.node is None:
            return (
                "if it is in /etc/etcd/pki on a node, pannier doctor there says why it is not renewed; else make a new one: "
                "docs/operations has the steps"
            )
        case _:
            return (
                "see that the node with the authority runs (pannier cert ls); then, on this node: pannier cert renew, "
                "with --address ADDRESS of any other node if it finds none"
            )


def _unseen(
    name: str, kind: CertificateKind, node: str | None, where: str, error: BaseException
) -> CertificateView:
    said = error.message if isinstance(error, PannierError) else str(error)
    return CertificateView(
        name=name,
        kind=kind,
        node=node,
        where=where,
        state=CertificateState.UNSEEN,
        error=said or "no answer in time",
    )
