"""Making what was written good on every copy that counts, and deciding which copies count.

What a sync call waits for: a generation with all that was written before it, confirmed by every node
that could take the volume over. A replica that does not confirm in time leaves that circle first, by
the store; where the store cannot be asked either, the call waits. A replica that has caught up joins
it again, between two groups of sync calls. A holder whose own disk fails lets nobody leave: it is
itself the one that does not count any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.cluster.cluster import Cluster
from pannier.copies.in_sync import InSync
from pannier.copies.replicated import Replicated
from pannier.copies.replication import Replicator
from pannier.core.errors import NotHolder, PannierError, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Acknowledging:
    """The generation path to durable sync calls, for the volumes that this node holds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        lease: Lease,
        replicator: Replicator,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._lease = lease
        self._replicator = replicator
        self._clock = clock
        self._pace = pace
        self._in_sync = InSync(cluster=cluster)

    async def make_durable(self, volume: str, calls: Sequence[object] = ()) -> None:
        """See :class:`pannier.barrier.calls.Strategy`: what is written reaches all that count.

        Raises:
            NotHolder: the volume is not held here, or just being given away.
            Unavailable: it cannot be said now; asked again later it may.
        """
        replicated = self._replicator.replicated(volume)
        async with replicated.group:
            generation = await self._replicator.make(replicated)
            await self._confirmed_by_all(replicated, generation)
            self._check(replicated)
            replicated.acknowledged = generation

    async def unchanged(self, volume: str) -> bool:
        """See :class:`pannier.barrier.calls.Strategy`."""
        replicated = self._replicator.replicated(volume)
        async with replicated.group:
            same = await self._replicator.make(replicated) == replicated.acknowledged
            self._check(replicated)
            return same

    async def lost(self, name: str, *, epoch: int, node: str) -> None:
        """A replica has nothing any more: it gets everything, and does not count until it has it.

        Raises:
            NotHolder, Stale: the volume is not held here, or not at ``epoch``.
            StoreUnavailable, OutcomeUnknown: it counts still; all is sent to it all the same.
        """
        replicated = self._replicator.replicated(name)
        if replicated.volume.grant.epoch != epoch:
            raise Stale(
                f"volume {name} is at epoch {replicated.volume.grant.epoch}", remedy="look again"
            )
        if node in replicated.progress:
            async with replicated.group:
                await replicated.note_lost(node)
                why = "its copy was damaged, or is gone"
                await self._in_sync.leave(replicated, frozenset({node}), why=why)

    def rivals(self, name: str) -> frozenset[str]:
        """Every node that could take the volume over; see :meth:`InSync.rivals`."""
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            return frozenset()
        return self._in_sync.rivals(volume, self._replicator.circle(volume))

    def _rivals(self, replicated: Replicated) -> frozenset[str]:
        return self._in_sync.rivals(replicated.volume, replicated.circle)

    def _check(self, replicated: Replicated) -> None:
        volume, rivals = replicated.volume, self._rivals(replicated)
        known = self._cluster.catalog.volume(volume.name)
        if known is None or (known.id, known.grant) != (volume.id, volume.grant):
            raise NotHolder(
                f"volume {volume.name} is not held by node {self._cluster.node} any more"
            )
        if not self._lease.holds(volume, rivals):
            raise Unavailable(
                f"node {self._cluster.node} cannot prove that it still holds volume {volume.name}",
                remedy="it needs the store, or every node of " + ", ".join(sorted(rivals)),
            )
        if 1 + len(rivals) < volume.spec.min_copies:
            raise Unavailable(
                f"volume {volume.name} has {1 + len(rivals)} copies in sync and min_copies="
                f"{volume.spec.min_copies}",
                remedy="start the nodes of its other copies: pannier volume show " + volume.name,
            )

    async def _confirmed_by_all(self, replicated: Replicated, generation: Generation) -> None:
        """Wait for everybody who counts; those who do not confirm leave."""
        failures = {node: p.failures for node, p in replicated.progress.items()}
        until = self._clock.now() + self._pace.patience
        while True:
            if replicated.ended:  # it is being given away, or sent to other nodes
                raise Unavailable(
                    f"volume {replicated.volume.name} is not replicated at the moment"
                )
            pending = {
                node
                for node in self._rivals(replicated)
                if node not in replicated.progress or not replicated.progress[node].has(generation)
            }
            if not pending:
                return
            silent = {
                node
                for node in pending
                if node not in replicated.progress
                or replicated.progress[node].failures > failures[node]
                or (
                    replicated.progress[node].error
                    and replicated.progress[node].sending != generation
                )
                or not self._cluster.catalog.is_up(node)
                or self._clock.now() > until
            }
            if silent:
                await self._let_leave(replicated, silent)
                continue
            await self._heard(
                replicated, min(self._pace.sync_look, until - self._clock.now() + 0.01)
            )

    async def _let_leave(self, replicated: Replicated, nodes: set[str]) -> None:
        """Go on without these, unless it is this node's own disk that failed: then they are all there
        is, and shall take over.
        """
        await self._drivers.of(replicated.volume).check_disk(by_writing=True)
        await self._in_sync.leave(replicated, frozenset(nodes), why=self._why(replicated, nodes))

    def _why(self, replicated: Replicated, nodes: set[str]) -> str:
        said = [replicated.progress[n].error for n in sorted(nodes) if n in replicated.progress]
        return "; ".join(filter(None, said)) or "no answer"

    async def _heard(self, replicated: Replicated, seconds: float) -> None:
        """Wait for a replica's next answer, for so long at most."""
        try:
            await asyncio.wait_for(replicated.answered.wait(), seconds)
        except TimeoutError:
            return

    # -- who counts -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Let replicas join and leave as they catch up and fall behind, for ever: run as a task."""
        while True:
            for replicated in self._replicator.all_replicated():
                try:
                    await self._look(replicated)
                except NotHolder:
                    continue  # it was given away meanwhile
                except PannierError as error:
                    log.info("copies.unchanged", volume=replicated.volume.name, error=str(error))
            await asyncio.sleep(self._pace.sync_look)

    async def _look(self, replicated: Replicated) -> None:
        now = self._clock.now()
        limit = max(self._pace.lag_intervals * replicated.volume.spec.interval, self._pace.lag)
        rivals = self._rivals(replicated)
        late = {n for n in rivals if replicated.lag_seconds(n, now) > limit}
        if late:
            # A store that hangs shall hold up nobody.
            await self._cluster.fresh(replicated.volume.name)
            async with replicated.group:
                await self._let_leave(replicated, late)
        known = self._cluster.catalog.volume(replicated.volume.name)
        joined = known.in_sync if known else ()  # a rival that is not may have failed to join
        for node in replicated.volume.replicas:
            progress = replicated.progress[node]
            caught_up = progress.generation is not None and not progress.error
            if node not in joined and caught_up and self._cluster.catalog.is_up(node):
                await self._join(replicated, node)

    async def _join(self, replicated: Replicated, node: str) -> None:
        if replicated.lag_seconds(node, self._clock.now()) > max(
            2 * replicated.volume.spec.interval, 2.0
        ):
            return  # it is far behind: sync calls shall not wait for that
        await self._cluster.fresh(replicated.volume.name)  # nor for a store that hangs
        async with replicated.group:
            generation = await self._replicator.make(replicated)
            until = self._clock.now() + self._pace.join_patience
            while not replicated.progress[node].has(generation):
                if replicated.ended or replicated.progress[node].error or self._clock.now() > until:
                    return
                await self._heard(replicated, 0.1)
            await self._in_sync.join(replicated, node)
