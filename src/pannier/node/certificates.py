"""What people are told of certificates, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
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
from pannier.node.certificate_ports import CertificatePorts
from pannier.pki.facts import CertificateFacts

_RENEWED = (CertificateKind.NODE, CertificateKind.USER)


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
            state=state_of(facts, self.kind, now=now),
        )


class Certificates:
    """Lists certificates, and judges them.

    Args:
        trouble: why this node's own was not renewed although it is due; empty where it is well.
        has_authority: whether the cluster's authority is on this node.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        ports: CertificatePorts,
        peers: Peers,
        trouble: Callable[[], str],
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
        answers = await asyncio.gather(self._store(), *map(self._of, others))
        return [*self.here(), *(view for answer in answers for view in answer)]

    def here(self) -> list[CertificateView]:
        """Those on this node."""
        now = self._clock.unix()
        try:
            return [listed.view(now) for listed in self._here()]
        except (PannierError, OSError) as error:
            node = self._cluster.node
            return [_unseen(node, CertificateKind.NODE, node, str(self._ports.own.path), error)]

    def own(self) -> CertificateView:
        """This node's own.

        Raises:
            NotFound, Denied, OSError: it cannot be read.
        """
        return self._own().view(self._clock.unix())

    def _own(self) -> _Found:
        own = self._ports.own
        return _Found(
            kind=CertificateKind.NODE,
            node=self._cluster.node,
            where=str(own.path),
            facts=own.facts(),
        )

    def _here(self) -> Iterator[_Found]:
        yield self._own()
        if not self._has_authority():
            return
        node, issued = self._cluster.node, self._ports.issued
        yield _Found(
            kind=CertificateKind.AUTHORITY,
            node=node,
            where=str(issued.directory.parent),
            facts=self._ports.own.authority(),
        )
        for facts in issued.all():
            where = str(issued.directory)
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
            if self._clock.now() - at < self._pace.certificate_members:
                return views
        return await self._store()

    async def findings(self) -> AsyncIterator[FindingView]:
        """What is wrong with those on this node and of the store's members.

        Raises:
            PannierError, OSError: some cannot be read.
        """
        now = self._clock.unix()
        for listed in self._here():
            trouble = self._trouble() if listed.kind is CertificateKind.NODE else ""
            if found := _finding(listed.view(now), trouble):
                yield found
        for view in await self._store_lately():
            if found := _finding(view, ""):
                yield found


def state_of(facts: CertificateFacts, kind: CertificateKind, *, now: float) -> CertificateState:
    """How a certificate stands at ``now`` (Unix time)."""
    left = facts.ends - now
    if left <= 0:
        return CertificateState.ENDED
    if now < facts.begins:
        return CertificateState.EARLY
    warned = AUTHORITY_WARN_SECONDS if kind is CertificateKind.AUTHORITY else WARN_SECONDS
    if left < warned:
        return CertificateState.ENDING
    if left < RENEW_SECONDS and kind in _RENEWED:
        return CertificateState.DUE
    return CertificateState.GOOD


def _finding(view: CertificateView, trouble: str) -> FindingView | None:
    """One line for what a person should know; None where all is well, or will be by itself."""
    subject = f"certificate of {view.kind} {view.name}"
    if view.kind is CertificateKind.AUTHORITY:
        subject = "certificate authority"
    why = f"; not renewed: {trouble}" if trouble else ""
    match view.state:
        case CertificateState.ENDED if view.kind is not CertificateKind.USER:
            what = f"it ended on {view.valid_until}{why}"
            return FindingView(
                level=Level.PROBLEM, subject=subject, what=what, remedy=_remedy(view.kind)
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
                level=Level.WARNING, subject=subject, what=what, remedy=_remedy(view.kind)
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


def _remedy(kind: CertificateKind) -> str:
    match kind:
        case CertificateKind.NODE:
            return (
                "see that the node with the authority runs (pannier cert ls); then, on this node: pannier cert renew, "
                "with --address ADDRESS of any other node if it finds none"
            )
        case CertificateKind.USER:
            return "it is renewed when the user uses it; else give a new one: pannier ca issue NAME --for user"
        case CertificateKind.AUTHORITY:
            return (
                "no certificate lasts longer than it: move the volumes to a new cluster before then"
            )
        case _:
            return "make a new one, and restart that member: docs/operations has the steps"


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
