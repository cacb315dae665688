"""Ending the use of volumes that this node can no longer prove it holds.

When the lease may have run out, and not every node that could take a volume over has promised to
leave it alone, another node may begin with it at any moment. What runs here must not go on: its
containers are killed, the volume is unmounted, and its tree sealed, so that nothing is lost of it.
Where the volume turns out to be held here still, it is unsealed at its next Mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pannier.agent.custody import Custody
from pannier.core.errors import PannierError
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.2
CALM_SECONDS = 1.0
"""While the lease is good there is nothing to see but volumes that are new here."""


class Fencing:
    """Watches over every volume that is held here and that another node could take over.

    Args:
        rivals: the nodes that could.
    """

    def __init__(self, custody: Custody, rivals: Callable[[str], frozenset[str]]) -> None:
        self._custody = custody
        self._rivals = rivals
        self._fenced: set[tuple[str, int]] = set()
        self._first_seen: dict[tuple[str, int], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_before = custody.clock() + custody.lease.terms.ttl

    async def run(self) -> None:
        """For ever: run as a task."""
        try:
            while True:
                for volume in self._custody.catalog.volumes():
                    if volume.spec.copies > 1 and volume.grant.node == self._custody.node:
                        self._look(volume)
                left = self._custody.lease.until - self._custody.clock()
                await asyncio.sleep(max(WATCH_SECONDS, min(left, CALM_SECONDS)))
        finally:
            for task in self._tasks:
                task.cancel()

    def _look(self, volume: Volume) -> None:
        custody, key = self._custody, (volume.id, volume.grant.epoch)
        if custody.lease.covers(volume, self._rivals(volume.name)):
            self._fenced.discard(key)
        elif key not in self._fenced and custody.clock() >= self._time_to_prove(volume, key):
            self._fenced.add(key)
            # Not one after the other: one whose lock somebody has must not delay the next.
            task = asyncio.create_task(self._fence(volume, key), name=f"fence {volume.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fence(self, volume: Volume, key: tuple[str, int]) -> None:
        try:
            await self._custody.fence(volume)
        except PannierError as error:
            log.error("volume.not-fenced", volume=volume.name, error=str(error))
            self._fenced.discard(key)

    def _time_to_prove(self, volume: Volume, key: tuple[str, int]) -> float:
        """Until when it may stay unproven: the time of one lease, for what an earlier run held, and for
        what was just created here or given to this node. Of that nothing is served yet, and ending
        its use could meet the first Mount half way.
        """
        if self._custody.lease.ever_proven(volume):
            return self._not_before
        seen_at = self._first_seen.setdefault(key, self._custody.clock())
        return max(self._not_before, seen_at + self._custody.lease.terms.ttl)
