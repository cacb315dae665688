"""Going on without the store: every node that could take a volume over promises not to.

This is the idea of Patroni's failsafe mode, applied to each volume by itself: only the nodes in its
``in_sync`` can take it over, so their promises are enough.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

import structlog

from pannier.agent.lease import Lease
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.contract.bodies import MOST_PROMISES
from pannier.contract.peers import Peers
from pannier.core.errors import PannierError
from pannier.core.lease import promised_until
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Promising:
    """Asks for promises when the lease is in danger, and gives them.

    Args:
        rivals: the nodes that could take a volume over.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        lease: Lease,
        peers: Peers,
        promises: Promises,
        rivals: Callable[[str], frozenset[str]],
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._lease = lease
        self._peers = peers
        self._promises = promises
        self._rivals = rivals
        self._clock = clock
        self._pace = pace

    def promise(self, volumes: Mapping[str, int], *, seconds: float, peer: str) -> list[str]:
        """Promise ``peer`` not to take these volumes (ids with their epochs) over for ``seconds``.

        Returns the ids of those that were promised: by this node's own record, too, ``peer`` holds
        them at that epoch. None where another machine has this node's name: that one could take them over.
        """
        if self._lease.name_taken:
            return []
        known = {volume.id: volume for volume in self._cluster.catalog.volumes()}
        return [
            volume_id
            for volume_id, epoch in volumes.items()
            if (volume := known.get(volume_id)) is not None
            and (volume.grant.node, volume.grant.epoch) == (peer, epoch)
            and self._promises.promise(volume_id, epoch=epoch, seconds=seconds)
        ]

    async def run(self) -> None:
        """Ask while the lease is in danger, for ever: run as a task."""
        while True:
            if self._lease.in_danger:
                await self.ask()
                await asyncio.sleep(self._pace.promise_ask)
            else:
                await asyncio.sleep(self._pace.promise_look)

    async def ask(self) -> None:
        """Ask all peers that matter, at once."""
        wanted: dict[str, list[Volume]] = defaultdict(list)
        for volume in self._cluster.catalog.volumes():
            if volume.grant.node == self._cluster.node and volume.spec.copies > 1:
                for name in sorted(self._rivals(volume.name)):  # the same order each time
                    wanted[name].append(volume)
        # Each request by itself: one that fails or is late costs the promises of its own volumes only.
        await asyncio.gather(
            *(
                self._ask_one(name, asked[first : first + MOST_PROMISES])
                for name, asked in wanted.items()
                for first in range(0, len(asked), MOST_PROMISES)
            )
        )

    async def _ask_one(self, name: str, volumes: list[Volume]) -> None:
        node = self._cluster.catalog.node(name)
        if node is None:
            return
        asked_at = self._clock.now()
        try:
            async with asyncio.timeout(self._pace.promise_answer):
                given = await self._peers.to(node).peer_promise(
                    {volume.id: volume.grant.epoch for volume in volumes},
                    seconds=self._pace.promise,
                )
        except (PannierError, TimeoutError) as error:
            log.info("promise.not-given", node=name, error=str(error) or "no answer in time")
            return
        for volume in volumes:
            if volume.id in given:
                self._lease.promised(volume, {name: promised_until(asked_at, self._pace.promise)})
