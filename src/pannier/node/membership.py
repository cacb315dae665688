"""Nodes: joining, draining, leaving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

import structlog

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned
from pannier.contract.bodies import JoinOrder
from pannier.contract.views import JoinReply, TokenView
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    NodeNotFound,
    OutcomeUnknown,
    PannierError,
    Stale,
)
from pannier.core.node import Fingerprints, Node, check_node_name
from pannier.core.removals import MOST_NAMES, MOST_REMOVALS
from pannier.core.volume import HistoryEntry
from pannier.host.clock import Clock, rfc3339
from pannier.node.removing import Removing
from pannier.node.tokens import Tokens
from pannier.pki.authority import Authority, Unsigned
from pannier.pki.facts import facts_of
from pannier.pki.token import Token, new_token, redeem

log = structlog.get_logger(__name__)


class ForStore(TypedDict):
    """The part of a :class:`JoinReply` with which a node uses the store; PEM, empty where it needs none."""

    store_certificate: str
    store_ca: str


@dataclass(frozen=True, slots=True)
class Known:
    """A join token that was right when it was looked at, and is not used yet: who showed it may be told why not."""

    token: Token


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A use of a join token that is on the disk as used: for this, one certificate may be signed."""

    token_id: str


class Membership:
    """Who belongs to the cluster.

    Args:
        authority: the cluster's CA, or an error that says where it is; only one node has it.
        tokens: those that were made on this node.
        store_authority: that of the cluster's etcd, on the same node; None where there is none.
        removing: ends a node's access to the store.
        store_address: what a joining node is told.
    """

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        catalog: Catalog,
        authority: Callable[[], Authority],
        tokens: Tokens,
        store_authority: Callable[[], Authority | None],
        removing: Removing,
        store_address: str,
        clock: Clock,
    ) -> None:
        self._node = node
        self._registry = registry
        self._catalog = catalog
        self._authority = authority
        self._tokens = tokens
        self._store_authority = store_authority
        self._removing = removing
        self._store_address = store_address
        self._clock = clock

    async def create_token(self, *, ttl_seconds: float, uses: int) -> TokenView:
        """A join token; this node keeps a hash of its secret.

        Raises:
            Conflict: the CA is on another node, or the store is for one node only.
        """
        self._refuse_where_alone()
        token, record = new_token(
            self._clock.unix(),
            ttl_seconds=ttl_seconds,
            uses=uses,
            ca_fingerprint=self._authority().fingerprint,
        )
        await self._tokens.add(record)
        return TokenView(token=token.text(), expires_at=rfc3339(record.expires_at), uses=uses)

    async def join(self, request: JoinOrder) -> JoinReply:
        """Admit a machine: look at its token, redeem it, sign its certificate, write its record; in this order.

        Who shows no right token learns nothing of this cluster. What can be refused is refused before the token
        is redeemed. A power cut after that costs the token, and nothing was signed for it.

        Raises:
            InvalidInput: the name, the token's form or the certificate request is not valid.
            Denied: the token is not accepted.
            StorageError: that the token is used cannot be written, so it is not.
            AlreadyExists: the name is taken.
            Conflict: the CA is on another node, the store is for one node only, or the name was removed too often.
            OutcomeUnknown, StoreUnavailable: the store did not answer; after OutcomeUnknown the token is used.
        """
        known = self._look_at(Token.parse(request.token))
        self._refuse_where_alone()
        authority = self._authority()
        name = check_node_name(request.name)
        if await self._registry.node(name):
            raise _name_taken(name)
        if self._removing.known.membership(name) > MOST_REMOVALS:
            raise Conflict(
                f"nodes of the name {name} were removed {MOST_REMOVALS} times, and another removal could not be told to etcd",
                remedy="choose another --name",
            )
        if name not in (removed := self._removing.known.counts) and len(removed) >= MOST_NAMES:
            raise Conflict(
                f"nodes of {len(removed)} names were removed, and a node of another name could not be removed any more",
                remedy="choose the --name of a node that was removed",
            )
        unsigned = authority.prepare_node(request.csr, node=name, addresses=[request.address])
        certificate = self._sign(authority, unsigned, by=await self._redeem(known))
        shown = facts_of(certificate).fingerprints
        node = Node(
            name=name,
            address=request.address,
            drivers=(),
            version=request.version,
            joined_at=self._clock.unix(),
            certificate=shown.certificate,
            key=shown.key,
        )
        try:
            await self._registry.put_node(node)
        except Stale as error:
            raise _name_taken(name) from error
        except PannierError as error:
            raise OutcomeUnknown(
                f"the record of node {name} may not have been written: {error.message}",
                remedy=error.remedy,
            ) from error
        log.info("node.joined", node=name, address=request.address)
        return JoinReply(
            cluster=authority.cluster,
            certificate=certificate,
            ca=authority.certificate_pem,
            store=self._store_address,
            **self._for_store(request.csr, name),
        )

    def _for_store(self, csr: str, name: str) -> ForStore:
        """What lets a node that was admitted into etcd."""
        authority = self._store_authority()
        if authority is None:
            return ForStore(store_certificate="", store_ca="")
        membership = self._removing.known.membership(name)
        return ForStore(
            store_certificate=authority.issue_store_client(csr, node=name, membership=membership),
            store_ca=authority.certificate_pem,
        )

    @staticmethod
    def _sign(authority: Authority, unsigned: Unsigned, *, by: Redeemed) -> str:
        """The one place where a machine that joins gets its certificate: ``by`` is what it has paid."""
        log.info("join.signed", node=unsigned.common_name, token=by.token_id)
        return authority.sign(unsigned)

    def _refuse_where_alone(self) -> None:
        """Refuse if the store is a file: a second node would open its own, and be a second cluster."""
        if self._store_address.startswith("sqlite:"):
            raise Conflict(
                f"the store of this cluster is a file on node {self._node}, which no other node "
                "can reach",
                remedy="a cluster of several nodes begins with: pannier init --store etcd://...",
            )

    def _look_at(self, token: Token) -> Known:
        """Look whether a token is right. Whoever asks is a stranger, and is told no more than that.

        Raises:
            Denied: it is not accepted.
        """
        redeem(self._tokens.find(token.id), secret=token.secret, now=self._clock.unix())
        return Known(token)

    async def _redeem(self, known: Known) -> Redeemed:
        """Use a token once.

        Raises:
            Denied: others have used it up meanwhile. StorageError: that it is used cannot be written.
        """
        await self._tokens.use(known.token, now=self._clock.unix())
        return Redeemed(known.token.id)

    async def forget_tokens(self, *, after: float) -> None:
        """Remove the records of tokens that expired more than ``after`` seconds ago.

        Those that an earlier version kept in the store go at once: nobody redeems them any more.

        Raises:
            StorageError: the file cannot be written.
        """
        await self._tokens.forget(expired_before=self._clock.unix() - after)
        await self._registry.remove_tokens()

    async def drain(self, name: str, *, drained: bool) -> Node:
        """Mark a node as drained, or take the mark away."""
        return await self._change(name, lambda node: replace(node, drained=drained))

    async def report_swarm(self, swarm: str | None) -> None:
        """Write this engine's Docker Swarm node id into this node's record, if it has changed."""
        me = self._catalog.node(self._node)
        if me is not None and me.swarm == swarm:
            return
        await self._change(self._node, lambda node: replace(node, swarm=swarm))

    async def report_free_space(self, tenths: int) -> None:
        """Write into this node's record how many tenths of its pool are free, if that has changed."""
        me = self._catalog.node(self._node)
        if me is None or me.room != tenths:
            await self._change(self._node, lambda node: replace(node, room=tenths))

    async def report_certificate(self, shown: Fingerprints) -> None:
        """Write the own renewed certificate into this node's record."""

        def decide(node: Node) -> Node:
            return replace(node, certificate=shown.certificate, key=shown.key)

        await self._change(self._node, decide)

    async def announce_stop(self) -> None:
        """Tell the others that this daemon stops on request; its next start takes that back."""
        await self._change(self._node, lambda node: replace(node, stopping=True))

    async def _change(self, name: str, change: Callable[[Node], Node]) -> Node:
        def decide(node: Node) -> Node | None:
            changed = change(node)
            return None if changed == node else changed

        found = await self._registry.change(lambda: self._node_record(name), decide)
        self._catalog.remember_node(found.record, revision=found.revision)
        return found.record

    async def remove(self, name: str, *, lost: bool = False, actor: str = "local") -> None:
        """Take a node out of the cluster: it gets no more into the store, and then not to any node.

        Args:
            lost: it is down and will not come back. Its volumes go to the trash and stay there: if
                the machine returns after all and joins under its name, they can be restored.

        Raises:
            Conflict: it holds volumes, or it is this node; or it is called lost, but it is up or one of
                its volumes has copies, or is protected.
            Unavailable, Stale, OutcomeUnknown, StorageError, Corrupt, ProgramFailed: as :meth:`Removing.remove`.
        """
        found = await self._node_record(name)
        if lost:
            await self._give_up_volumes(name, actor=actor)
        held = [
            volume.name if volume.removed_at is None else f"{volume.name} (in the trash)"
            for volume in await self._registry.every_volume()
            if volume.grant.node == name and (volume.removed_at is None or not lost)
        ]
        if held:
            raise Conflict(
                f"node {name} holds {', '.join(held)}, and nobody else has that data",
                remedy=f"move or remove it first: pannier node drain {name}; if the node is lost for "
                "ever: pannier node rm --lost",
            )
        if name == self._node:
            raise Conflict(f"node {name} cannot remove itself", remedy="run this on another node")
        if not lost and await self._removing.has_member(found.record):
            raise Conflict(
                f"a member of etcd runs on node {name}, with all of the cluster's records",
                remedy="move that member first; if the node is lost for ever: pannier node rm --lost",
            )
        # First, since a node that still gets in could write its record again.
        await self._removing.remove(name)
        self._catalog.forget_node(name)
        log.info("node.removed", node=name)

    async def _give_up_volumes(self, name: str, *, actor: str) -> None:
        if self._catalog.is_up(name):
            raise Conflict(
                f"node {name} is up, so it is not lost", remedy="leave --lost out, or switch it off"
            )
        for volume in await self._registry.volumes():
            if volume.grant.node != name:
                continue
            current = await self._registry.volume(volume.name)
            if current is None or current.record.grant.node != name:
                continue
            if current.record.replicas:
                raise Conflict(
                    f"volume {volume.name} of node {name} has copies on "
                    f"{', '.join(current.record.replicas)}",
                    remedy=f"recover it first: pannier volume recover {volume.name}",
                )
            entry = HistoryEntry(
                at=self._clock.unix(),
                what="lost",
                node=name,
                epoch=current.record.grant.epoch,
                detail=f"with its node, by {actor}",
            )
            removed = replace(current.record, removed_at=self._clock.unix()).with_entry(entry)
            await self._registry.trash_volume(removed, expect=current.revision, lost_with=name)

    async def _node_record(self, name: str) -> Versioned[Node]:
        found = await self._registry.node(name)
        if found is None:
            known = ", ".join(node.name for node in self._catalog.nodes())
            raise NodeNotFound(f"there is no node {name}", remedy=f"the nodes are {known}")
        return found

    async def introduce(self, mine: Node) -> None:
        """Bring this node's own record up to date after a start: address, drivers, version.

        Raises:
            Denied: this node was removed from the cluster.
        """

        def decide(node: Node) -> Node | None:
            started = node.started_as(mine)
            return None if started == node else started

        await self._registry.change(lambda: self._own_record(mine), decide)

    async def _own_record(self, mine: Node) -> Versioned[Node]:
        found = await self._registry.node(mine.name)
        if found is None or not found.record.is_shown_by(Fingerprints(mine.certificate, mine.key)):
            raise Denied(
                f"node {mine.name} was removed from the cluster",
                remedy="join it again with a new token after moving /etc/pannier away",
            )
        return found


def _name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"there is a node {name} in this cluster",
        remedy="choose another --name, or remove the old one: pannier node rm",
    )
