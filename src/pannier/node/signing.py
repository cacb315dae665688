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
from pannier.core.removals import Removals
from pannier.host.clock import Clock, rfc3339
from pannier.node.certificate_ports import KeepsIssued, Prove
from pannier.pki.authority import Authority
from pannier.pki.identity import NodeIdentity, UserIdentity
from pannier.pki.renewal import Proved, RenewalRequest, StoreIdentity

log = structlog.get_logger(__name__)


class Signing:
    """Signs renewed certificates, or has the node with the authority do it.

    Args:
        prove: checks who asks.
        authority: the cluster's CA. Raises Conflict where it is not on this node.
        store_authority: that of the cluster's etcd, on the same node; None where it has none.
        removals: which nodes were removed, as this node knows.
        issued: what the cluster's CA remembers of users' certificates.
    """

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        catalog: Catalog,
        peers: Peers,
        prove: Prove,
        authority: Callable[[], Authority],
        store_authority: Callable[[], Authority | None],
        removals: Callable[[], Removals],
        issued: KeepsIssued,
        clock: Clock,
    ) -> None:
        self._node = node
        self._registry = registry
        self._catalog = catalog
        self._peers = peers
        self._prove = prove
        self._authority = authority
        self._store_authority = store_authority
        self._removals = removals
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
        proved = self._prove(request)
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
        return await self._sign(self._prove(request))

    async def _sign(self, proved: Proved) -> str:
        now, number = self._clock.unix(), None
        authority = self._authority()
        match proved.who:
            case NodeIdentity(name=name):
                # Whoever has the authority could sign anything. So this node's own does not need the store, which may
                # not let it in any more without a renewed certificate.
                if name != self._node:
                    await self._pin(name, proved)
            case UserIdentity(name=name):
                self._check_user(name, proved, now=now)
            case StoreIdentity() as who:
                # Without the store, which may not serve before its members' certificates are renewed.
                authority, number = self._admitted(who), who.serial
            case _:
                assert_never(proved.who)
        if not is_due(proved.facts.ends, now=now, authority_ends=authority.ends):
            raise _not_due(proved, authority_ends=authority.ends)
        chain = authority.renew(proved.certificate, number=number)
        if isinstance(proved.who, UserIdentity):
            try:
                await asyncio.to_thread(self._issued.note, proved.who.name, chain)
            except OSError as error:
                raise StorageError(
                    f"the certificate of {proved.who} cannot be noted: {error}",
                    remedy="see the disk of the node with the authority",
                ) from error
        log.info("certificate.signed-anew", who=str(proved.who), serial=proved.facts.serial)
        return chain

    def _admitted(self, who: StoreIdentity) -> Authority:
        """The authority of etcd, if the membership that a certificate is of goes on.

        A removal that this node has not heard of does no harm: the renewed one has the number that etcd refuses.
        """
        authority = self._store_authority()
        if authority is None:
            raise Conflict(
                "the key of etcd's certificate authority is not on this node",
                remedy="restore /etc/pannier/ca/store from a backup",
            )
        if who.serial in self._removals().refused():
            raise Denied(
                f"the certificate of {who} is of a node that was removed from the cluster",
                remedy="a node joins again with a new token; a member of etcd gets a new one: see 'pannier ca issue --help'",
            )
        return authority

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
            f"the certificate of {proved.who} ends on {rfc3339(ends)} with its authority itself, and cannot "
            "last longer",
            remedy="move the volumes to a new cluster before then",
        )
    return Conflict(
        f"the certificate of {proved.who} is good until {rfc3339(ends)}, and is renewed from "
        f"{rfc3339(ends - RENEW_SECONDS)} on, by the clock of the node with the authority",
        remedy="nothing is to be done; if that date seems wrong, check the clocks",
    )
