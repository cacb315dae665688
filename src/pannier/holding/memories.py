"""What the nodes remember of volumes' records, exchanged between them.

A node that was off knows nothing of what happened meanwhile but what the store says. If the store was restored from an
older backup, only the other nodes know better. So a node asks each of the others once when it has come up, and again
when the store seems older. It serves no volume after a start, and takes none over, before those that are up were asked.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.core.errors import PannierError
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.host.records import decode

_REMEDY = "run the same version of Pannier on all nodes"

log = structlog.get_logger(__name__)


class Memories:
    """Learns what other nodes remember."""

    def __init__(self, *, cluster: Cluster, peers: Peers, pace: HoldingPace) -> None:
        """Prepare; :meth:`run` works."""
        self._cluster = cluster
        self._peers = peers
        self._pace = pace
        self._asked: set[str] = set()
        """Nodes that were asked since they came up, whether or not they answered."""
        self._heard: set[str] = set()
        """Those of them that answered, with all that they knew then."""
        self._doubted: frozenset[str] = frozenset()

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        while True:
            await self.look()
            await asyncio.sleep(self._pace.poll)

    async def look(self) -> None:
        """Ask the nodes that are up and were not asked yet."""
        up = self._up()
        self._asked &= up
        self._heard &= up
        doubted = frozenset(self._cluster.catalog.doubted())
        if doubted - self._doubted:
            self._asked.clear()  # they may have learned more by now
            self._heard.clear()
        self._doubted = doubted
        await asyncio.gather(*(self._ask(name) for name in sorted(up - self._asked)))

    async def asked(self) -> None:
        """Wait until each node that is up was asked, for as long as one may take to answer."""
        try:
            async with asyncio.timeout(2 * self._pace.take_ask):
                while not self._asked >= self._up():
                    await asyncio.sleep(self._pace.poll)
        except TimeoutError:
            log.info("memories.not-asked", nodes=sorted(self._up() - self._asked))

    def silent(self, volume: str) -> list[str]:
        """The nodes of the cluster that have not answered since they came up, and since the store seems older about a volume."""
        names = {node.name for node in self._cluster.catalog.nodes()} - {self._cluster.node}
        return sorted(names - self._heard if volume in self._doubted else names)

    def _up(self) -> set[str]:
        catalog, me = self._cluster.catalog, self._cluster.node
        return {
            each.name for each in catalog.nodes() if each.name != me and catalog.is_up(each.name)
        }

    async def _ask(self, name: str) -> None:
        node = self._cluster.catalog.node(name)
        if node is None:
            return
        try:
            async with asyncio.timeout(self._pace.take_ask):
                answer = await self._peers.to(node).peer_memory()
            for text in answer.records:
                record = decode(
                    text.encode(),
                    Volume,
                    what=f"a record on node {name}",
                    remedy=_REMEDY,
                    shown=True,
                )
                self._learn(record, of=name)
            self._heard.add(name)
        except (PannierError, TimeoutError, OSError) as error:  # one of an earlier version, too
            log.info("memories.no-answer", node=name, error=str(error))
        self._asked.add(name)

    def _learn(self, record: Volume, *, of: str) -> None:
        if self._cluster.catalog.learn(record):
            log.warning(
                "volume.learned",
                volume=record.name,
                epoch=record.grant.epoch,
                changes=record.changes,
                node=of,
            )
