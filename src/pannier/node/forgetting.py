"""Removes what this node keeps of things that are gone, and that nobody needs any more.

Three kinds: the marks of purged volumes in the store, expired join tokens of this node, and what this node
prepared for Mounts of volumes that are no more. Everything here may be repeated, and may be cut off at any point.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.mounts import Mounts
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Purged, Versioned
from pannier.core.errors import PannierError, Stale
from pannier.core.pace import NodePace
from pannier.host.clock import Clock
from pannier.node.barrier_admission import Marks
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


class KnownMarks(Marks, Protocol):
    """Marks that can be listed."""

    def held(self) -> frozenset[str]:
        """Names of the volumes that have a mark.

        Raises:
            OSError: they cannot be read.
        """
        ...


class Forgetting:
    """A slow loop. A step that fails is tried again at the next look."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        promises: Promises,
        mounts: Mounts,
        marks: KnownMarks,
        membership: Membership,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` works."""
        self._cluster = cluster
        self._drivers = drivers
        self._promises = promises
        self._mounts = mounts
        self._marks = marks
        self._membership = membership
        self._clock = clock
        self._pace = pace

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.forget)
            for step in (self._tokens, self.forget_places, self.forget_purged):
                await self._attempt(step)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except (PannierError, OSError) as error:
            log.warning("forgetting.failed", step=step.__name__.strip("_"), error=str(error))

    async def _tokens(self) -> None:
        await self._membership.forget_tokens(after=self._pace.token_history)

    # -- marks of purged volumes ----------------------------------------------------------------

    async def forget_purged(self) -> None:
        """Confirm that this node has nothing of volumes that were purged long ago; the last node removes the mark.

        Until then the mark is what lets a node delete. So it stays while a node is down that may have something, or one
        that cannot look: a pool is missing, or its version does not confirm yet. What an older disk brings back
        after that is kept, as everything is of which the store says nothing; `pannier doctor` shows it.

        Raises:
            PannierError: the store does not answer, or a node's record is damaged; some may be done.
        """
        registry, node = self._cluster.registry, self._cluster.node
        due = {key: mark for key, mark in (await registry.purges()).items() if self._is_due(mark)}
        if not due or not self._drivers.complete:
            return
        nodes = {each.name for each in await registry.nodes()}
        if node not in nodes:
            return  # it was removed from the cluster
        here = await self._here()
        changes = {
            key: after
            for key, mark in due.items()
            if key not in here
            and (after := cleared(mark.record, node=node, nodes=nodes)) != mark.record
        }
        await self._promises.forget(changes)
        for key, after in list(changes.items())[: self._pace.forget_at_once]:
            with suppress(Stale):  # another node confirmed: the next look goes on from there
                await registry.replace_purge(key, after, expect=due[key].revision)
                if after is None:
                    log.info("purge.forgotten", id=key)

    def _is_due(self, mark: Versioned[Purged]) -> bool:
        entry = mark.record.entry
        old = entry is None or entry.at + self._pace.history <= self._clock.unix()
        return old and not mark.record.is_newer

    async def _here(self) -> set[str]:
        """Ids of all volumes of which anything may be on this node's disks."""
        here: set[str] = set()
        for driver in self._drivers:
            here.update(await driver.volumes(), await driver.quarantined())
        return here

    # -- what Mounts left -----------------------------------------------------------------------

    async def forget_places(self) -> None:
        """Remove the paths and the barrier's marks of volumes that are gone. A Mount makes both anew.

        Raises:
            OSError: they cannot be listed.
        """
        if not self._cluster.catalog.synced.is_set():
            return
        places = await asyncio.to_thread(self._mounts.prepared) | self._marks.held()
        for name in sorted(filter(self._is_gone, places)):
            try:
                # A volume of this name may have been created since, and mounted: then this does nothing.
                if await asyncio.to_thread(self._mounts.forget, name) and self._is_gone(name):
                    self._marks.release(name)
            except PannierError as error:
                log.warning("place.not-forgotten", volume=name, error=str(error))

    def _is_gone(self, name: str) -> bool:
        return not self._cluster.catalog.has_volume(name)


def cleared(mark: Purged, *, node: str, nodes: Collection[str]) -> Purged | None:
    """The mark once ``node`` has nothing of the volume any more; None when no node of the cluster has.

    Args:
        nodes: names of all that are in the cluster now. One that left counts no more.
    """
    done = {*mark.cleared, node}
    if done.issuperset(nodes):
        return None
    return mark if node in mark.cleared else replace(mark, cleared=tuple(sorted(done)))
