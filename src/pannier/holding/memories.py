"""What the nodes remember of volumes' records, exchanged between them.

A node that was off knows nothing of what happened meanwhile but what the store says. If the store was restored from an
older backup, only the other nodes know better. So a node asks each of the others after its start, when that one comes up, and
when the store seems older. It serves no volume after its start, and takes none over, before all were asked.
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
        """Nodes that were asked since this one began and they came up, whether or not they answered."""
        self._heard: set[str] = set()
        """Those of them that answered, with all that they knew then."""
        self._were_up: set[str] = set()
        self._doubted: frozenset[str] = frozenset()

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        while True:
            await self.look()
            await asyncio.sleep(self._pace.poll)

    async def look(self) -> None:
        """Ask the nodes that are up and were not asked yet."""
        others, up = self._others(), self._up()
        came, self._were_up = up - self._were_up, up
        doubted = frozenset(self._cluster.catalog.doubted())
        # When the store seems older, they may have learned more by now.
        anew = others if doubted - self._doubted else came
        self._asked -= anew
        self._heard -= anew
        self._doubted = doubted
        due = others - self._asked
        if doubted:
            due |= up - self._heard  # the records are put back only when all have answered
        await asyncio.gather(*(self._ask(name) for name in sorted(due)))

    async def asked(self) -> None:
        """Wait until each other node was asked, for as long as one may take to answer.

        Not only those that are up: right after the store was restored, it knows nobody's lease.
        """
        try:
            async with asyncio.timeout(2 * self._pace.take_ask):
                while not self._asked >= self._others():
                    await asyncio.sleep(self._pace.poll)
        except TimeoutError:
            log.info("memories.not-asked", nodes=sorted(self._others() - self._asked))

    def silent(self, volume: str) -> list[str]:
        """The nodes of the cluster that have not answered since they came up, and since the store seems older about a volume."""
        others = self._others()
        return sorted(others - self._heard if volume in self._doubted else others)

    def _others(self) -> set[str]:
        return {node.name for node in self._cluster.catalog.nodes()} - {self._cluster.node}

    def _up(self) -> set[str]:
        return {name for name in self._others() if self._cluster.catalog.is_up(name)}

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
