"""Taking a removed node's access to the store away, on every node, and for good.

What a node knows of removals is on its disk before anything else happens, only grows, and is passed on: by the removal
itself, and by each node's asking the others again and again. So a node that was down learns it later, and a crash in
between only delays it. An etcd member on the node refuses what the node knows; that it was started again with its list
is what cuts the connections that were open.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Protocol

import structlog

from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core.errors import OutcomeUnknown, PannierError, Stale, StorageError, Unavailable
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.core.removals import Removals
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)

_FROM_OTHERS = "move it away and restart pannierd: the other nodes know it, too"


class StoreMember(Protocol):
    """The member of the store on this machine, if there is one."""

    def lets_in(self, serials: frozenset[int]) -> bool:
        """Whether it may let one of these certificates in, or has a connection open that began with one.

        False where no member runs here that has a list of what it refuses.

        Raises:
            StorageError, Corrupt: that cannot be read.
        """
        ...

    async def start_again(self, serials: frozenset[int]) -> None:
        """End all of its connections; it refuses these certificates then, and serves again on return.

        Raises:
            StorageError: it may still let them in. ProgramFailed: it does not start.
        """
        ...


class Removing:
    """What this node knows of removed nodes, and how it passes that on."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        address: str,
        peers: Peers,
        member: StoreMember,
        file: StateFile,
        pace: NodePace,
    ) -> None:
        """Read what is known.

        Args:
            address: this node's.
            file: keeps it, also after a power cut.

        Raises:
            StorageError: it cannot be read.
        """
        self._cluster = cluster
        self._address = address
        self._peers = peers
        self._member = member
        self._file = file
        self._pace = pace
        self._known = read_file(file, Removals, remedy=_FROM_OTHERS) or Removals()
        self._saving = asyncio.Lock()
        self._refusing = asyncio.Lock()

    @property
    def known(self) -> Removals:
        """What this node knows."""
        return self._known

    async def take_in(self, counts: Mapping[str, int]) -> None:
        """Remember what another node knows, and have the member here refuse it.

        Raises:
            StorageError: it cannot be written, or the member may still let a removed node in.
            Corrupt, ProgramFailed: as the methods of :class:`StoreMember`.
        """
        await self._remember(counts)
        await self._refuse()

    async def _remember(self, counts: Mapping[str, int]) -> None:
        async with self._saving:
            merged = self._known.merged(counts)
            if merged is self._known:
                return
            try:
                await asyncio.to_thread(self._file.write, encode(merged))
            except OSError as error:
                raise StorageError(
                    f"{self._file.path} cannot be written: {error}", remedy="see the disk"
                ) from error
            self._known = merged

    async def _refuse(self, *, late: bool = False) -> None:
        """Have the member here refuse what is known.

        Args:
            late: nobody has asked for it. Whoever removes a node goes from member to member, so this waits for its turn.
        """
        if late and self._member.lets_in(self._known.refused()):
            await asyncio.sleep(self._pace.removals_turn * (await self._place() + 1))
        async with self._refusing:
            refused = self._known.refused()
            if self._member.lets_in(refused):
                await self._until_others_serve()
                await self._member.start_again(refused)

    async def _until_others_serve(self) -> None:
        """Wait a little for members that are being started again by others: two at once would stop the store."""
        try:
            async with asyncio.timeout(self._pace.removals_answer):
                while not await self._others_serve():
                    await asyncio.sleep(self._pace.removals_look)
        except TimeoutError:
            log.warning("removal.others-down", why="a member of the store does not answer")

    async def _others_serve(self) -> bool:
        members = await self._cluster.registry.store.health()
        return not any(
            found.problem for member, found in members.items() if _host(member) != self._address
        )

    async def _place(self) -> int:
        """This node's place among the members."""
        hosts = [_host(member) for member in await self._cluster.registry.store.health()]
        return hosts.index(self._address) if self._address in hosts else len(hosts)

    async def remove(self, name: str) -> None:
        """End all access of a node to the store, also through connections that are open, and then delete its record.
        May be repeated.

        The members are started again one after the other, so that the others go on.

        Raises:
            Unavailable: a member of the store that can be reached may still let the node in, or the store does not answer.
            Stale, OutcomeUnknown: the record may still be there.
            StorageError, Corrupt, ProgramFailed: as :meth:`take_in`, here.
        """
        others = [node for node in self._others() if node.name != name]
        await asyncio.gather(*(self._ask(node) for node in others))
        removals = self._known.with_removed(name)
        await self.take_in(removals.counts)
        untold = [node for node in others if not await self._tell(node, removals)]
        serving = await self._serving()
        still = [node.name for node in untold if node.address in serving]
        if still:
            raise Unavailable(
                f"the store's members on {', '.join(still)} answer, and may still let node {name} in: their nodes "
                "did not confirm",
                remedy="see that pannierd of this version runs there, then do the same again",
            )
        await self._delete_record(name)

    async def _delete_record(self, name: str) -> None:
        """Read anew, since the node may have written it while it still could. Members that were just started again elect a
        leader first, and where others are down meanwhile there is none for some seconds.
        """
        registry = self._cluster.registry
        failure: PannierError = Unavailable("the store does not answer", remedy="try again")
        try:
            async with asyncio.timeout(self._pace.removals_store):
                while True:
                    try:
                        found = await registry.node(name)
                        if found is not None:
                            await registry.remove_node(name, expect=found.revision)
                        return
                    except (Stale, Unavailable, OutcomeUnknown) as error:
                        failure = error
                    await asyncio.sleep(self._pace.removals_look)
        except TimeoutError:
            raise failure from None

    async def has_member(self, node: Node) -> bool:
        """Whether a member of the store is at the node's address."""
        return node.address in map(_host, await self._cluster.registry.store.health())

    async def run(self) -> None:
        """Ask the others what they know, for ever: run as a task. All of them at first, then one after the other."""
        for turn in itertools.count():
            others = self._others()
            asked = others[turn % len(others) :][:1] if turn and others else others
            await asyncio.gather(*(self._ask(node) for node in asked))
            try:
                await self._refuse(late=True)
            except PannierError as error:
                log.warning("removal.not-refused", error=str(error))
            await asyncio.sleep(self._pace.removals)

    def _others(self) -> list[Node]:
        nodes = self._cluster.catalog.nodes()
        return [node for node in nodes if node.name != self._cluster.node]

    async def _ask(self, node: Node) -> None:
        """Take in what another node knows, if it answers."""
        try:
            async with asyncio.timeout(self._pace.removals_answer):
                found = await self._peers.to(node).peer_removals({})
            await self._remember(found.counts)
        except (PannierError, OSError, TimeoutError) as error:
            log.debug("removal.not-heard", node=node.name, error=str(error) or "no answer in time")

    async def _tell(self, node: Node, removals: Removals) -> bool:
        """Whether another node has taken it in, and its member refuses it."""
        try:
            await self._peers.to(node).peer_removals(removals.counts)
        except (PannierError, OSError) as error:
            log.warning("removal.not-told", node=node.name, error=str(error))
            return False
        return True

    async def _serving(self) -> frozenset[str]:
        """Hosts of the store's members that answer."""
        health = await self._cluster.registry.store.health()
        return frozenset(_host(member) for member, found in health.items() if not found.problem)


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")
