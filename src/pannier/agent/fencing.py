"""Ending the use of volumes that this node can no longer prove it holds.

When the lease may have run out, and not every node that could take a volume over has promised to
leave it alone, another node may take it over at any moment. So the volume's containers here are
frozen. Usually no other node takes over, and the lease is renewed moments later, as when the store
elects a new leader. Then the containers are thawed and go on.

The containers are killed if another node took over, or if this is still unknown after
:attr:`AgentPace.doubt`, or at once if the lease is not to be renewed (:mod:`pannier.agent.disks`). The
volume is then unmounted and its tree sealed, so that nothing of it is lost. If this node turns out to
hold the volume still, the tree is unsealed at the next Mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pannier.agent.custody import Custody
from pannier.agent.lease import Lease
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.pace import AgentPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Fencing:
    """Watches over every volume that is held here and that another node could take over.

    Where another machine has this node's name, that one could serve every volume: also those with one copy.

    Args:
        rivals: the nodes that could take a volume over, by its name.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        use: Use,
        lease: Lease,
        rivals: Callable[[str], frozenset[str]],
        clock: Clock,
        pace: AgentPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._use = use
        self._lease = lease
        self._rivals = rivals
        self._clock = clock
        self._pace = pace
        self._fenced: set[tuple[str, int]] = set()
        self._first_seen: dict[tuple[str, int], float] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._not_before = self._clock.now() + self._lease.terms.ttl

    async def run(self) -> None:
        """For ever: run as a task."""
        try:
            while True:
                for volume in self._cluster.catalog.volumes():
                    if volume.grant.node == self._cluster.node and self._is_watched(volume):
                        self._look(volume)
                left = self._lease.until - self._clock.now()
                await asyncio.sleep(max(self._pace.fence_look, min(left, self._pace.fence_calm)))
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _is_watched(self, volume: Volume) -> bool:
        """Whether another machine could serve the volume; or could have, and its users here may still be frozen.

        A run that had no lease yet does not know whether another machine has this node's name, so it lets nobody go on.
        """
        if volume.spec.copies > 1 or self._lease.name_taken:
            return True
        return self._lease.term > 0 and self._use.suspended(volume)

    def _look(self, volume: Volume) -> None:
        key = (volume.id, volume.grant.epoch)
        if self._covered(volume):
            self._fenced.discard(key)
            if not self._use.suspended(volume):
                return
        elif key in self._fenced or self._clock.now() < self._time_to_prove(volume, key):
            return
        if key not in self._tasks:
            # Each in a task of its own: a volume whose lock is taken must not delay the next one.
            task = asyncio.create_task(self._settle(volume, key), name=f"fence {volume.name}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key))

    def _covered(self, volume: Volume) -> bool:
        return self._lease.covers(volume, self._rivals(volume.name))

    async def _settle(self, volume: Volume, key: tuple[str, int]) -> None:
        """Freeze the users until it is known whether they may go on; fence the volume if they may not."""
        doubted_until = self._clock.now() + self._pace.doubt
        pause, due_at = self._pace.fence_look, self._clock.now()
        try:
            while self._clock.now() < doubted_until and not self._lease.withheld:
                known = self._cluster.catalog.volume(volume.name)
                if known is None or (known.id, known.grant.node) != (volume.id, self._cluster.node):
                    break
                if known.grant != volume.grant:
                    return  # it was given away and back: its former users were ended before it is served
                if self._covered(known):
                    await self._use.resume(known)
                    return
                if self._clock.now() >= due_at or self._use.starting(known):
                    await self._use.suspend(known)
                    # Looking for users takes time, and hundreds of volumes may be in doubt at once.
                    pause = min(2 * pause, self._pace.doubt_pause_limit)
                    due_at = self._clock.now() + pause
                else:
                    await self._use.keep_suspended(known)
                await asyncio.sleep(self._pace.fence_look)
            self._fenced.add(key)
            await self._custody.fence(volume)
        except (PannierError, OSError) as error:
            log.error("volume.not-fenced", volume=volume.name, error=str(error))
            self._fenced.discard(key)

    def _time_to_prove(self, volume: Volume, key: tuple[str, int]) -> float:
        """Until when a volume may stay unproven before it is fenced.

        For what an earlier run of the daemon held, this is the time of one lease after the start. A
        volume that was just created here or given to this node has as long from when it was first
        seen: nothing of it is served yet, and fencing could interrupt its first Mount. Where another machine has
        this node's name, there is nothing to wait for.
        """
        if self._lease.name_taken:
            return self._clock.now()
        if self._lease.ever_proven(volume):
            return self._not_before
        seen_at = self._first_seen.setdefault(key, self._clock.now())
        return max(self._not_before, seen_at + self._lease.terms.ttl)
