"""Making writes durable on every copy that counts, and deciding which copies count.

A sync call waits first for the local disk (:mod:`pannier.copies.local`), whose error is its answer, and then for a
record or a generation with all that was written before the call, until every node that could take the volume
over has confirmed it. A replica that does not confirm in time is first removed
from the record's copies in sync; while the store cannot be reached, the call waits. A replica that has
caught up joins again, between two groups of sync calls. A holder whose own disk has failed lets no
replica leave: then its own copy is the one that does not count any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import assert_never

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.barrier.calls import Answer, SyncCall
from pannier.barrier.local_sync import Steps
from pannier.cluster.cluster import Cluster
from pannier.copies.cutting import ThreadCuts
from pannier.copies.in_sync import InSync
from pannier.copies.local import LocalSync, SaidLocally, failed
from pannier.copies.replicated import ReplicaProgress, Replicated
from pannier.copies.replication import Replicator
from pannier.core.acknowledging import (
    Acknowledge,
    Claim,
    Confirmations,
    Leave,
    Reason,
    Refuse,
    Replica,
    SyncLimits,
    WaitFor,
    decide,
    left_behind,
    may_join,
    refusal,
    rivals,
)
from pannier.core.errors import NotHolder, PannierError, Stale, StorageError, Unavailable
from pannier.core.pace import CopiesPace
from pannier.core.sync_times import SyncTimes
from pannier.core.volume import Volume
from pannier.host.clock import Clock, Stopwatch

log = structlog.get_logger(__name__)


class Acknowledging:
    """Makes sync calls durable by records and generations, for the volumes that this node holds."""

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
        self._limits = SyncLimits(
            patience=pace.patience, lag_intervals=pace.lag_intervals, lag_seconds=pace.lag
        )
        self._in_sync = InSync(cluster=cluster)
        self._local = LocalSync(drivers)

    async def make_durable(self, volume: str, calls: Sequence[SyncCall] = ()) -> Sequence[Answer]:
        """See :class:`pannier.barrier.calls.Strategy`: what was written reaches all copies that count.

        Raises:
            NotHolder: the volume is not held here, or just being given away.
            Unavailable: it cannot be confirmed now; a later try may succeed.
        """
        replicated, watch = self._replicator.replicated(volume), Stopwatch(self._clock)
        syncing = None
        if calls and not replicated.group.locked():
            async with replicated.group:  # before a thread can cut
                cuts = self._replicator.thread_cuts(replicated)
                if cuts is not None:
                    ahead = replicated.sends_ahead.due()
                    steps = Steps(given=cuts.take if ahead else None, durable=cuts.take_last)
                    syncing = asyncio.ensure_future(
                        self._local.sync(replicated.volume, calls, steps=steps)
                    )
                    if await self._is_synced(replicated, syncing, cuts):
                        if ahead:
                            replicated.sends_ahead.tried(useful=cuts.nothing_new)
                        on_disk = watch.lap() - cuts.seconds
                        return await self._sent(replicated, syncing.result(), cuts, on_disk=on_disk)
        local = await (syncing or self._local.sync(replicated.volume, calls))
        on_disk = watch.lap()
        async with replicated.group:
            return await self._sent(replicated, local, None, on_disk=on_disk, turn=watch.lap())

    async def _is_synced(
        self, replicated: Replicated, syncing: asyncio.Future[SaidLocally], cuts: ThreadCuts
    ) -> bool:
        """Wait until a group is synced on this disk. False where that takes so long that others must not wait for the group
        lock any more: then no cut is made.
        """
        line = replicated.line
        try:
            while not syncing.done():
                await asyncio.wait((syncing,), timeout=self._pace.hold)
                if not syncing.done() and cuts.stop():
                    await asyncio.sleep(0)  # what it has cut is heard
                    return False
        except BaseException:
            syncing.cancel()
            cuts.stop()
            if replicated.line is line:
                replicated.line = None  # what is just being cut will not be heard
            raise
        return True

    async def _sent(
        self,
        replicated: Replicated,
        local: SaidLocally,
        cuts: ThreadCuts | None,
        *,
        on_disk: float,
        turn: float = 0.0,
    ) -> Sequence[Answer]:
        """The answers, once all copies have what was synced here. The caller has the group lock.

        Args:
            cuts: of the thread that synced it.
            on_disk, turn: how long that took, and to get the lock; in seconds.
        """
        if local.lost:
            return local.answers
        watch, before = Stopwatch(self._clock), replicated.detour
        cut = 0.0 if cuts is None else cuts.seconds
        replicated.note_synced()
        try:
            if local.whole:
                await self._local.write_out(replicated.volume)
                on_disk += watch.lap()
            position = replicated.position
            if local.whole or cuts is None or not cuts.is_whole or replicated.line is None:
                position = await self._replicator.advance(replicated)
        except StorageError:
            if local.answers and await self._local.has_lost(replicated.volume):
                return failed(local.answers)
            raise
        cut += watch.lap()
        if refused := await self._confirmed_by_all(replicated, position):
            raise self._refused(replicated.volume, refused)
        replicated.note_acknowledged()
        self._replicator.note_asked()
        replicated.groups.note(
            SyncTimes(
                local=on_disk,
                turn=turn,
                cut=cut,
                copies=watch.lap(),
                generation="" if replicated.detour is before else replicated.detour.reason,
            )
        )
        return local.answers

    async def unchanged(self, volume: str) -> bool:
        """See :class:`pannier.barrier.calls.Strategy`."""
        replicated = self._replicator.replicated(volume)
        async with replicated.group:
            await self._local.write_out(replicated.volume)
            same = await self._replicator.advance(replicated) == replicated.acknowledged
            if refused := refusal(self._claim(replicated)):
                raise self._refused(replicated.volume, refused)
            return same

    async def lost(self, name: str, *, epoch: int, node: str) -> None:
        """A replica has lost its copy: send it everything, and do not count it until it has that.

        Raises:
            NotHolder, Stale: the volume is not held here, or not at ``epoch``.
            StoreUnavailable, OutcomeUnknown: it still counts; everything is sent to it anyway.
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
        """Every node that could take the volume over; see :func:`pannier.core.acknowledging.rivals`."""
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            return frozenset()
        return rivals(volume, volume, self._replicator.circle(volume).required)

    def _claim(self, replicated: Replicated) -> Claim:
        volume = replicated.volume
        return Claim(
            volume=volume,
            known=self._cluster.catalog.volume(volume.name),
            required=replicated.circle.required,
            standing=self._lease.standing(volume),
        )

    def _replica(self, replicated: Replicated, node: str, *, failures: int) -> Replica:
        """How far a replica is. Its first ``failures`` failed tries are not counted as failed."""
        progress = replicated.progress[node]
        return Replica(
            up=self._cluster.catalog.is_up(node),
            confirmed=progress.position,
            sending=self._sending(replicated, progress),
            error=bool(progress.error),
            failed=progress.failures > failures,
        )

    def _sending(self, replicated: Replicated, progress: ReplicaProgress) -> int | None:
        if progress.follows(replicated.line):
            return replicated.position
        return progress.sending_position if progress.sending is not None else None

    async def _reachable(self, replicated: Replicated, position: int) -> int:
        """The position to wait for: a generation's, if one that is awaited does not get the records."""
        if position <= replicated.newest_position:
            return position
        for node in sorted(self._claim(replicated).rivals & replicated.progress.keys()):
            progress = replicated.progress[node]
            if not progress.has(position) and not progress.follows(replicated.line):
                why = replicated.why_no_records(node)
                await self._replicator.make(replicated, written_out=True)
                replicated.note_detour(why)
                return replicated.position
        return position

    async def begin(self, volume: Volume) -> None:
        """Wait until each copy that counts has what this node begins with, or does not count any more.

        After a power cut this node may have what was not confirmed, and lack what a copy has. What a container
        reads then must not be gone when a copy takes over.

        Raises:
            NotHolder: the volume is not held here, or just being given away.
            Unavailable: a copy that does not answer could not leave those in sync.
            StorageError: no generation can be made.
        """
        copy = await self._drivers.of(volume).inspect(volume.id)
        if not any(tree.epoch == volume.grant.epoch and not tree.sealed for tree in copy.live):
            return  # it begins with the generation that the record names
        replicated = self._replicator.replicated(volume.name)
        async with replicated.group:
            position = await self._replicator.renew(replicated)
            refused = await self._confirmed_by_all(replicated, position)
            if refused and refused.reason in (Reason.PAUSED, Reason.NOT_HELD):
                raise self._refused(volume, refused)

    async def _confirmed_by_all(self, replicated: Replicated, position: int) -> Refuse | None:
        """Wait until each copy that counts has a position; those that do not confirm leave.

        Returns why sync calls must not be acknowledged all the same.
        """
        before = {node: progress.failures for node, progress in replicated.progress.items()}
        began = self._clock.now()
        while True:
            position = await self._reachable(replicated, position)
            call = Confirmations(
                position=position,
                replicas={
                    node: self._replica(replicated, node, failures=before.get(node, 0))
                    for node in replicated.progress
                },
                waited=self._clock.now() - began,
                paused=replicated.ended,  # it is being given away, or sent to other nodes
            )
            match decide(self._claim(replicated), call, self._limits):
                case Acknowledge():
                    return None
                case WaitFor(seconds=left):
                    await self._heard(replicated, min(self._pace.sync_look, left + 0.01))
                case Leave(nodes):
                    await self._let_leave(replicated, nodes)
                case Refuse() as refused:
                    return refused
                case decision:
                    assert_never(decision)

    def _refused(self, volume: Volume, refused: Refuse) -> PannierError:
        node, could_take = self._cluster.node, sorted(refused.rivals)
        match refused.reason:
            case Reason.PAUSED:
                return Unavailable(f"volume {volume.name} is not replicated at the moment")
            case Reason.NOT_HELD:
                return NotHolder(f"volume {volume.name} is not held by node {node} any more")
            case Reason.UNPROVEN:
                return Unavailable(
                    f"node {node} cannot prove that it still holds volume {volume.name}",
                    remedy="it needs the store, or every node of " + ", ".join(could_take),
                )
            case Reason.TOO_FEW:
                return Unavailable(
                    f"volume {volume.name} has {1 + len(could_take)} copies in sync and min_copies="
                    f"{volume.spec.min_copies}",
                    remedy="start the nodes of its other copies: pannier volume show "
                    + volume.name,
                )
            case reason:
                assert_never(reason)

    async def _let_leave(self, replicated: Replicated, nodes: frozenset[str]) -> None:
        """Go on without these nodes, unless this node's own disk has failed or was set back: then theirs
        are the only good copies, and they must be able to take over.
        """
        for node in sorted(nodes & replicated.progress.keys()):
            if replicated.progress[node].ahead is not None:
                raise Unavailable(
                    f"node {node} has what this node lacks of volume {replicated.volume.name}",
                    remedy="it takes the volume over by itself",
                )
        await self._drivers.check_disk(replicated.volume, by_writing=True)
        await self._in_sync.leave(replicated, nodes, why=self._why(replicated, nodes))

    def _why(self, replicated: Replicated, nodes: frozenset[str]) -> str:
        said = [replicated.progress[n].error for n in sorted(nodes) if n in replicated.progress]
        return "; ".join(filter(None, said)) or "no answer"

    async def _heard(self, replicated: Replicated, seconds: float) -> None:
        """Wait for a replica's next answer, for ``seconds`` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await replicated.answered.wait()

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
        now, could_take = self._clock.now(), self._claim(replicated).rivals
        late = left_behind(
            could_take,
            {node: replicated.lag_seconds(node, now) for node in could_take},
            interval=replicated.volume.spec.interval,
            limits=self._limits,
        )
        if late:
            # Read before the group is locked: a store that hangs must not hold up sync calls.
            await self._cluster.fresh(replicated.volume.name)
            async with replicated.group:
                await self._let_leave(replicated, late)
        known = self._cluster.catalog.volume(replicated.volume.name)
        for node in replicated.volume.replicas:
            if may_join(node, self._replica(replicated, node, failures=0), known=known):
                await self._join(replicated, node)

    async def _join(self, replicated: Replicated, node: str) -> None:
        if replicated.lag_seconds(node, self._clock.now()) > max(
            2 * replicated.volume.spec.interval, 2.0
        ):
            return  # it is far behind: sync calls must not wait for it
        found = await self._cluster.fresh(replicated.volume.name)  # nor for a store that hangs
        if not found.record.in_sync:
            # A volume may have been one with a single copy until now. A run of this daemon that remembers it so
            # would go on without the store, while this node takes it over.
            await self._cluster.catalog.save()
        await self._local.write_out(replicated.volume)  # nor for what nobody has synced
        async with replicated.group:
            await self._replicator.make(replicated, written_out=True)
            until = self._clock.now() + self._pace.join_patience
            while not replicated.progress[node].has(replicated.position):
                if replicated.ended or replicated.progress[node].error or self._clock.now() > until:
                    return
                await self._heard(replicated, 0.1)
            await self._in_sync.join(replicated, node)
