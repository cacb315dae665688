"""Renewing certificates: the side of the node that has the authority, and of those that pass a request on to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import structlog

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned
from pannier.contract.bodies import RenewalOrder
from pannier.contract.peers import Peers
from pannier.core.certificates import RENEW_SECONDS, is_due
from pannier.core.errors import Conflict, Denied, StorageError
from pannier.core.node import Node
from pannier.host.clock import Clock, rfc3339
from pannier.node.certificate_ports import KeepsCertificate, KeepsIssued
from pannier.pki.authority import Authority
from pannier.pki.identity import NodeIdentity, UserIdentity
from pannier.pki.renewal import Proved, RenewalRequest

log = structlog.get_logger(__name__)


class Signing:
    """Signs renewed certificates, or has the node with the authority do it.

    Args:
        authority: the cluster's CA. Raises Conflict where it is not on this node.
        issued: what that CA remembers of users' certificates.
    """

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        catalog: Catalog,
        peers: Peers,
        own: KeepsCertificate,
        authority: Callable[[], Authority],
        issued: KeepsIssued,
        clock: Clock,
    ) -> None:
        self._node = node
        self._registry = registry
        self._catalog = catalog
        self._peers = peers
        self._own = own
        self._authority = authority
        self._issued = issued
        self._clock = clock

    @property
    def is_here(self) -> bool:
        """Whether this node has the authority."""
        try:
            self._authority()
        except Conflict:
            return False
        return True

    async def renew(self, request: RenewalRequest) -> str:
        """The renewed certificate, a PEM chain; asked for by this node, or by whomever the request proves.

        Raises:
            Denied: the request proves nothing; or the node was removed, or the user's certificate has ended.
            Conflict: it is not due yet, cannot last longer, or no node says that it has the authority.
            StoreUnavailable, OutcomeUnknown, PeerUnavailable: try again; nothing came of it that counts.
            StorageError: the disk with the authority refused.
        """
        proved = self._own.prove(request)
        if self.is_here:
            return await self._sign(proved)
        for node in self._catalog.nodes():
            if node.authority and node.name != self._node:
                order = RenewalOrder(certificate=request.certificate, csr=request.csr)
                return (await self._peers.to(node).peer_renew(order)).certificate
        raise Conflict(
            "no node says that it has the key of the cluster's certificate authority",
            remedy="start pannierd, of this version or a later one, on the node on which 'pannier init' was run",
        )

    async def renew_here(self, request: RenewalRequest) -> str:
        """As :meth:`renew`, but nobody else is asked: another node has passed the request on.

        Raises:
            Conflict: also where the authority is not here.
        """
        self._authority()
        return await self._sign(self._own.prove(request))

    async def _sign(self, proved: Proved) -> str:
        authority, now = self._authority(), self._clock.unix()
        match proved.identity:
            case NodeIdentity(name=name):
                # Whoever has the authority could sign anything. So this node's own does not need the store, which may
                # not let it in any more without a renewed certificate.
                if name != self._node:
                    await self._pin(name, proved)
            case UserIdentity(name=name):
                self._check_user(name, proved, now=now)
            case _:
                assert_never(proved.identity)
        if not is_due(proved.facts.ends, now=now, authority_ends=authority.ends):
            raise _not_due(proved, authority_ends=authority.ends)
        chain = authority.renew(proved.certificate)
        if isinstance(proved.identity, UserIdentity):
            try:
                await asyncio.to_thread(self._issued.note, name, chain)
            except OSError as error:
                raise StorageError(
                    f"the certificate of user {name} cannot be noted: {error}",
                    remedy="see the disk of the node with the authority",
                ) from error
        log.info("certificate.signed-anew", who=str(proved.identity), serial=proved.facts.serial)
        return chain

    def _check_user(self, name: str, proved: Proved, *, now: float) -> None:
        """No record recognises a user, so an end is an end; and only the newest key that a user was given counts."""
        newest = self._issued.newest(name)
        if proved.facts.ends <= now:
            what = "has ended"
        elif newest and newest.fingerprints.key != proved.facts.fingerprints.key:
            what = "is not renewed: a new one was issued since"
        else:
            return
        raise Denied(
            f"the certificate of user {name} {what}",
            remedy=f"on the node with the authority: pannier ca issue {name} --for user --out DIRECTORY",
        )

    async def _pin(self, name: str, proved: Proved) -> None:
        """See that the certificate is the one on record, and that its key is: the renewed one is known by that."""
        shown = proved.facts.fingerprints

        async def read() -> Versioned[Node]:
            found = await self._registry.node(name)
            if found is None or not found.record.is_shown_by(shown):
                raise Denied(
                    f"node {name} was removed from the cluster, or set up anew since it got this certificate",
                    remedy="join it again with a new token after moving /etc/pannier away",
                )
            return found

        def decide(node: Node) -> Node | None:
            return None if node.key else replace(node, key=shown.key)

        await self._registry.change(read, decide)


def _not_due(proved: Proved, *, authority_ends: float) -> Conflict:
    ends = proved.facts.ends
    if ends >= authority_ends:
        return Conflict(
            f"the certificate of {proved.identity} ends on {rfc3339(ends)} with the cluster's authority itself, and cannot "
            "last longer",
            remedy="move the volumes to a new cluster before then",
        )
    return Conflict(
        f"the certificate of {proved.identity} is good until {rfc3339(ends)}, and is renewed from "
        f"{rfc3339(ends - RENEW_SECONDS)} on, by the clock of the node with the authority",
        remedy="nothing is to be done; if that date seems wrong, check the clocks",
    )
