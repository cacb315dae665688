"""Ending the use of volumes that this node can no longer prove it holds.

When the lease may have run out, and not every node that could take a volume over has promised to
leave it alone, another node may begin with it at any moment. What runs here must not go on: its
containers stand still from then on. Mostly nobody has begun, and the lease is renewed moments later, as
when the store elects a new leader: then they go on as if nothing had been.

Where another node took over, or this is still not known after :data:`DOUBT_SECONDS`, or at once where
the lease is not to be renewed (:mod:`pannier.agent.disks`), they are killed, the volume is unmounted,
and its tree sealed, so that nothing is lost of it. Where the volume turns out to be held here still, it
is unsealed at its next Mount.
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
DOUBT_SECONDS = 20.0
"""For so long containers stand still: longer than an election of the store's leader on a busy machine,
and than a cable that was pulled by mistake. Who talks to them waits meanwhile, and better hears in
the end that they are gone."""
LONGEST_PAUSE_SECONDS = 3.0
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
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
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
            for task in self._tasks.values():
                task.cancel()

    def _look(self, volume: Volume) -> None:
        custody, key = self._custody, (volume.id, volume.grant.epoch)
        if self._covered(volume):
            self._fenced.discard(key)
            if not custody.suspended(volume):
                return
        elif key in self._fenced or custody.clock() < self._time_to_prove(volume, key):
            return
        if key not in self._tasks:
            # Not one after the other: one whose lock somebody has must not delay the next.
            task = asyncio.create_task(self._settle(volume, key), name=f"fence {volume.name}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key))

    def _covered(self, volume: Volume) -> bool:
        return self._custody.lease.covers(volume, self._rivals(volume.name))

    async def _settle(self, volume: Volume, key: tuple[str, int]) -> None:
        """Have its users stand still until it is known whether they may go on, or for long enough."""
        custody = self._custody
        doubted_until = custody.clock() + DOUBT_SECONDS
        pause, due_at = WATCH_SECONDS, custody.clock()
        try:
            while custody.clock() < doubted_until and not custody.lease.withheld:
                known = custody.catalog.volume(volume.name)
                if known is None or (known.id, known.grant.node) != (volume.id, custody.node):
                    break
                if known.grant != volume.grant:
                    return  # it was given back: who serves it anew has ended what used it before
                if self._covered(known):
                    await custody.resume(known)
                    return
                if custody.clock() >= due_at or custody.starting(known):
                    await custody.suspend(known)
                    # Looking for users costs time, and hundreds of volumes may be in doubt at once.
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    due_at = custody.clock() + pause
                else:
                    await custody.keep_suspended(known)
                await asyncio.sleep(WATCH_SECONDS)
            self._fenced.add(key)
            await custody.fence(volume)
        except (PannierError, OSError) as error:
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
