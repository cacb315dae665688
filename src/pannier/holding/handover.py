"""Giving a volume away: rounds of generations while it is in use, then the switch.

The holder alone gives a volume away, in this order: end of use, unmount, *seal* (from here on no
write is possible), last generation, confirmed whole and durable by the other node, change of the
record by compare-and-swap. If a step before the change fails, the tree is unsealed. Once the record
has changed, the other node has everything, and the sealed tree is removed later
(:mod:`pannier.holding.after_handover`). If the answer to the change never came, the tree stays sealed
until a fresh read shows that nothing changed, and the record was written anew: that makes a change
fail that is still on its way (:meth:`Custody.take_up`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.contract.views import HandoverReply, MoveProgress
from pannier.contract.words import HandoverState, MovePhase
from pannier.copies.delivering import Delivering
from pannier.copies.named import NamedGenerations
from pannier.copies.switching import Switching
from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    NodeNotFound,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    Stale,
    StorageError,
    StoreUnavailable,
    Unavailable,
)
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.pace import HoldingPace
from pannier.core.placement import replicas_after_move
from pannier.core.volume import Grant, HistoryEntry, Volume
from pannier.holding.last_generation import LastGeneration
from pannier.holding.rounds import Moving, Replication, Rounds
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Handovers:
    """The hand-overs under way on this node, at most one for each volume."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        use: Use,
        sender: Delivering,
        replication: Replication,
        named: NamedGenerations,
        switching: Switching,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._use = use
        self._sender = sender
        self._switching = switching
        self._clock = clock
        self._pace = pace
        self._rounds = Rounds(
            cluster=cluster,
            drivers=drivers,
            use=use,
            sender=sender,
            replication=replication,
            named=named,
            clock=clock,
            pace=pace,
        )
        self._running: dict[str, Moving] = {}

    def of(self, volume: Volume) -> Moving | None:
        """The hand-over of a volume that is under way."""
        return self._running.get(volume.id)

    async def asked(self, name: str, *, epoch: int, peer: str) -> HandoverReply:
        """``peer`` wants the volume: begin or go on with its hand-over, and report after some seconds.

        Raises:
            Stale: the volume is not held here, or not at ``epoch``; Conflict: it is on its way to a
            third node; Unavailable: this node's disk has failed; any error with which the hand-over
            ended.
        """
        volume = self._cluster.catalog.volume(name)
        if volume is None or volume.grant != Grant(self._cluster.node, epoch):
            volume = (await self._cluster.fresh(name)).record
        if volume.grant.node == peer:
            return HandoverReply(state=HandoverState.GIVEN, in_use_by=[])
        if volume.grant != Grant(self._cluster.node, epoch):
            raise Stale(
                f"volume {name} is held by node {volume.grant.node} (epoch {volume.grant.epoch})",
                remedy="ask that node",
            )
        running = self._begin(volume, peer, wanted_seconds=self._pace.interest)
        assert running.task is not None
        await asyncio.wait({running.task}, timeout=self._pace.answer)
        if running.task.done():
            running.task.result()
            return HandoverReply(
                state=HandoverState.GIVEN, in_use_by=[], sent_bytes=running.sent_bytes
            )
        state = HandoverState.IN_USE if running.in_use_by else HandoverState.COPYING
        return HandoverReply(
            state=state, in_use_by=running.in_use_by, sent_bytes=running.sent_bytes
        )

    async def _need_disk(self, volume: Volume, *, by_writing: bool = False) -> None:
        """Raise Unavailable if the disk has failed: the caller then waits until the volume is taken over."""
        try:
            await self._drivers.check_disk(volume, by_writing=by_writing)
        except StorageError as error:
            raise Unavailable(
                f"node {self._cluster.node} cannot give volume {volume.name} away: {error.message}",
                remedy="a copy in sync takes over within seconds, where there is one",
            ) from error

    async def move(
        self, volume: Volume, target: str, *, wait_seconds: float
    ) -> AsyncIterator[MoveProgress]:
        """Move a volume that is held here, reporting each step.

        Ends with ``done``, or raises the error that ended it; the volume then is where it was.
        """
        running = self._begin(volume, target, wanted_seconds=wait_seconds)
        assert running.task is not None
        try:
            yield self._progress(running)
            while not running.task.done():
                running.changed.clear()
                waiter = asyncio.ensure_future(running.changed.wait())
                await asyncio.wait(
                    {running.task, waiter}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                waiter.cancel()
                if not running.task.done():
                    yield self._progress(running)
        finally:
            # The caller has gone. Another node that wants the volume, too, repeats that within this time.
            until = self._clock.now() + self._pace.interest
            running.wanted_until = min(running.wanted_until, until)
        running.task.result()
        running.phase = MovePhase.DONE
        yield self._progress(running)

    def _progress(self, running: Moving) -> MoveProgress:
        return MoveProgress(
            phase=running.phase,
            volume=running.volume.name,
            source=self._cluster.node,
            target=running.target.name,
            round=running.round,
            sent_bytes=running.sent_bytes,
            in_use_by=running.in_use_by,
            pause_seconds=running.pause_seconds,
            total_seconds=self._clock.now() - running.started,
            generation=str(running.generation) if running.generation else None,
        )

    def _begin(self, volume: Volume, target: str, *, wanted_seconds: float) -> Moving:
        running = self._running.get(volume.id)
        now = self._clock.now()
        until = now + wanted_seconds
        if running is not None:
            if running.target.name != target:
                raise Conflict(
                    f"volume {volume.name} is on its way to node {running.target.name}",
                    remedy="wait until it is there, then ask again",
                )
            running.wanted_until = max(running.wanted_until, until)
            return running
        node = self._cluster.catalog.node(target)
        if node is None:
            raise NodeNotFound(f"there is no node {target}", remedy="see pannier node ls")
        if volume.spec.driver not in node.drivers:
            raise Conflict(
                f"node {target} has no {volume.spec.driver} driver, which volume {volume.name} needs",
                remedy=f"it has {', '.join(node.drivers)}; choose another node",
            )
        running = Moving(volume, node, now, until, started_at=self._clock.unix())
        running.task = asyncio.create_task(self._run(running), name=f"handover {volume.name}")
        running.task.add_done_callback(lambda task: self._ended(volume, task))
        self._running[volume.id] = running
        return running

    def _ended(self, volume: Volume, task: asyncio.Task[None]) -> None:
        self._running.pop(volume.id, None)
        self._switching.end(volume)
        if not task.cancelled() and (error := task.exception()):
            log.warning("handover.failed", volume=volume.name, error=str(error))

    async def _run(self, running: Moving) -> None:
        custody, volume = self._custody, running.volume
        try:
            await self._need_disk(volume)
            while True:
                await self._rounds.while_used(running)
                await self._rounds.until_near(running)
                async with custody.lock(volume):
                    if await self._use.in_use(volume):
                        continue
                    running.to(MovePhase.SWITCHING)
                    self._switching.begin(volume)
                    await self._rounds.pause(volume)
                    await self._switch(running)
                    return
        except StorageError:
            await self._need_disk(volume, by_writing=True)
            raise
        finally:
            await self._rounds.pause(volume)

    async def _send_last(
        self, running: Moving, generation: Generation, others: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Send the generation with which the next epoch begins; returns who has it, besides the target."""
        me, volume = self._cluster.node, running.volume
        copies = LastGeneration(
            cluster=self._cluster,
            sender=self._sender,
            driver=self._drivers.of(volume),
            volume=volume,
        )
        copies.send(generation, to=[name for name in others if name != me])
        try:
            await self._rounds.send(running, generation)
            return (me, *await copies.reached(seconds=self._pace.other_copies))
        finally:
            await copies.end()

    async def _switch(self, running: Moving) -> None:
        """The caller has the lock, and nobody uses the volume."""
        custody, volume = self._custody, running.volume
        driver, epoch = self._drivers.of(volume), volume.grant.epoch
        began = self._clock.now()
        try:
            fresh = await custody.take_up(volume)
        except NotHolder as error:
            raise _changed(volume) from error
        if fresh.record.grant != volume.grant:
            raise _changed(volume)
        await self._rounds.send_snapshots(running, fresh.record)
        replicas = replicas_after_move(fresh.record, target=running.target.name)
        await custody.take_down(volume)
        try:
            generation = await driver.seal(volume.id, epoch=epoch)
            have_it = await self._send_last(running, generation, replicas)
        except BaseException:
            await driver.unseal(volume.id, epoch=epoch)
            raise
        record = fresh.record.granted(
            running.target.name,
            base=generation,
            on_top=OnTop.NOTHING,
            replicas=replicas,
            in_sync=have_it,
        ).with_entry(
            HistoryEntry(
                at=self._clock.unix(),
                what="moved",
                node=running.target.name,
                epoch=epoch + 1,
                detail=f"from {self._cluster.node} with generation {generation}",
            )
        )
        await self._give(volume, record, expect=fresh.revision)
        running.pause_seconds = self._clock.now() - began
        log.info(
            "volume.given",
            volume=volume.name,
            to=running.target.name,
            epoch=epoch + 1,
            generation=str(generation),
            pause=round(running.pause_seconds, 3),
        )

    async def _give(self, volume: Volume, record: Volume, *, expect: int) -> None:
        """Change the record. If it may have changed despite an error, read it before writing resumes."""
        driver = self._drivers.of(volume)
        try:
            await self._cluster.replace(record, expect=expect)
        except (StoreUnavailable, StorageError):  # certainly not done
            await driver.unseal(volume.id, epoch=volume.grant.epoch)
            raise
        except (Stale, OutcomeUnknown) as error:
            if not await self._was_given(volume, record.grant):
                raise error from None

    async def _was_given(self, volume: Volume, grant: Grant) -> bool:
        """Whether the change of the record happened. If not, it cannot any more, and writing resumes.

        If the store does not tell, the tree stays sealed, and the next Mount asks the store first.
        """
        custody = self._custody
        try:
            found = (await self._cluster.fresh(volume.name)).record
            if (found.id, found.grant) == (volume.id, volume.grant):
                await custody.take_up(volume)
                await self._drivers.of(volume).unseal(volume.id, epoch=volume.grant.epoch)
                return False
        except NotHolder:  # it arrived between the two reads
            return True
        except PannierError as error:
            log.warning("handover.unknown", volume=volume.name, error=str(error))
            return False
        # A later epoch than the next: given, and given on. Another grant at the next: recovered by a person.
        given_on = found.grant.epoch > grant.epoch
        return found.id == volume.id and (found.grant == grant or given_on)

    async def close(self) -> None:
        """End what is under way; every volume keeps a single holder that has all its data."""
        tasks = [running.task for running in self._running.values() if running.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _changed(volume: Volume) -> Stale:
    return Stale(f"volume {volume.name} changed while it was copied", remedy="ask again")


def still_waiting(name: str, holder: str, reason: str, seconds: float) -> DeadlineExceeded:
    """The error for a Mount whose time is over."""
    return DeadlineExceeded(
        f"volume {name} is still on node {holder}"
        + (f" ({reason})" if reason else "")
        + f"; waited {seconds:.0f} s",
        remedy="stop its user there (services: --update-order stop-first), then start this again",
    )
