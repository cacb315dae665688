"""Keeping the other copies up to date: generations of what was written, sent to every replica.

One task for each volume that is held here makes generations, at most one each ``interval`` and only
when something was written. One task for each of its replicas sends the newest to that node: a slow
or absent replica delays nobody, and on its return gets the difference to the best generation that
both have. What a sync call needs at once (:mod:`pannier.copies.acknowledging`) goes the same way.

For that the holder keeps the generations that a replica may have as its newest: the last one that it
confirmed, and the one that was on its way when the replica stopped answering. The latter is sent again
first: it may have arrived although its confirmation did not, and the replica then keeps no older one. It is kept
until the replica has confirmed another, even if it is refused when it is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import cache

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.copies.catching_up import CatchUps
from pannier.copies.cutting import ThreadCuts
from pannier.copies.delivering import Delivering
from pannier.copies.lines import Lines
from pannier.copies.named import NamedGenerations
from pannier.copies.replicated import BEGINS, Circle, OpenLine, ReplicaProgress, Replicated
from pannier.copies.switching import Switching
from pannier.core.delivery import pause_after
from pannier.core.errors import (
    NotHolder,
    PannierError,
    PeerUnavailable,
    SetBack,
    Stale,
    Unavailable,
)
from pannier.core.generation import Generation
from pannier.core.line import new_run
from pannier.core.pace import CopiesPace
from pannier.core.placement import Candidate, repair_replicas
from pannier.core.volume import Grant, Volume
from pannier.host.clock import Clock
from pannier.storage.base import LocalCopy
from pannier.transport.base import offer_of

log = structlog.get_logger(__name__)

_SPARE = 2
"""So many generations that nobody needs may be there while a volume is written to: each deletion asks the store."""


class Replicator:
    """Replicates the volumes that this node holds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        sender: Delivering,
        lines: Lines,
        named: NamedGenerations,
        switching: Switching,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        """Prepare; :meth:`run` works.

        Args:
            switching: volumes that are just being given away; no generation of them may be made.
        """
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._sender = sender
        self._lines = lines
        self._named = named
        self._switching = switching
        self._clock = clock
        self._pace = pace
        self._replicated: dict[str, Replicated] = {}
        self._circles: dict[str, tuple[Grant, Circle]] = {}
        self._catch_ups = CatchUps(at_once=pace.catch_ups)
        self._asked_at = -math.inf

    async def run(self) -> None:
        """For ever: run as a task."""
        try:
            while True:
                await self._reconcile()
                await asyncio.sleep(self._pace.reconcile)
        finally:
            for replicated in list(self._replicated.values()):
                await self._stop(replicated)

    def all_replicated(self) -> list[Replicated]:
        """Every volume that is replicated from here."""
        return list(self._replicated.values())

    def replicated(self, name: str) -> Replicated:
        """A volume that is replicated from here; begins now if it was not noticed yet.

        Raises:
            NotHolder: this node does not hold it, or is just giving it away.
        """
        volume = self._cluster.catalog.volume(name)
        if volume is not None and self._is_mine(volume):
            if volume.id not in self._replicated:
                self._start(volume)
            return self._replicated[volume.id]
        raise NotHolder(f"volume {name} is not replicated from node {self._cluster.node} now")

    def circle(self, volume: Volume) -> Circle:
        """Who may take over a volume that is held here."""
        grant, circle = self._circles.get(volume.id, (None, None))
        if circle is None or grant != volume.grant:
            circle = Circle(frozenset(volume.in_sync))
            self._circles[volume.id] = (volume.grant, circle)
        return circle

    def known(self, volume: Volume) -> Replicated | None:
        """A volume's replication; None where it is not replicated from here at the moment."""
        return self._replicated.get(volume.id)

    def progress(self, volume: Volume) -> dict[str, ReplicaProgress]:
        """How far each replica of a volume that is held here is; empty where nothing is known."""
        replicated = self._replicated.get(volume.id)
        return replicated.progress if replicated else {}

    async def bring(self, volume: Volume, node: str) -> ReplicaProgress | None:
        """Send a volume's generations to ``node`` as well, and make one now if the newest is old.

        Returns how far ``node`` is; None if the volume is not replicated from here. A node that is no
        replica gets nothing more once replication ends (:meth:`pause`).
        """
        try:
            replicated = self.replicated(volume.name)
        except NotHolder:
            return None
        if node in replicated.progress:
            replicated.progress[node].hurried = True
            self._catch_ups.hurry(volume.id, node)
        else:
            replicated.progress[node] = ReplicaProgress(hurried=True)
            send = asyncio.create_task(
                self._send_all(replicated, node), name=f"send {volume.name} {node}"
            )
            replicated.tasks.append(send)
            replicated.unknown.set()
        if (
            self._clock.now() - replicated.made_at > self._pace.hurry
            and not replicated.group.locked()
        ):
            try:
                async with replicated.group:
                    await self.make(replicated)
            except PannierError as error:
                self._not_made(replicated, error)
        return replicated.progress[node]

    async def pause(self, volume: Volume) -> None:
        """End a volume's replication: it is given away. If it stays after all, replication starts again.

        Who counts is not changed from then on either: the hand-over must find the record that it read.
        """
        replicated = self._replicated.get(volume.id)
        if replicated is not None:
            await self._stop(replicated)
            async with replicated.group:
                pass

    def _is_mine(self, volume: Volume) -> bool:
        return (
            volume.grant.node == self._cluster.node
            and volume.spec.copies > 1
            and volume.spec.driver in self._drivers
            and volume not in self._switching
        )

    async def _reconcile(self) -> None:
        mine = {v.id: v for v in self._cluster.catalog.volumes() if self._is_mine(v)}
        for replicated in list(self._replicated.values()):
            now = mine.get(replicated.volume.id)
            was = replicated.volume
            if now is None or (now.grant, now.replicas, now.spec) != (
                was.grant,
                was.replicas,
                was.spec,
            ):
                await self._stop(replicated)
            elif failed := next((task for task in replicated.tasks if task.done()), None):
                error = None if failed.cancelled() else failed.exception()
                log.error("replication.failed", volume=replicated.volume.name, exc_info=error)
                await self._stop(replicated)
        candidates = cache(lambda: candidates_of(self._cluster))
        for volume in mine.values():
            if volume in self._switching:
                continue  # its switch has begun meanwhile
            if volume.id not in self._replicated:
                self._start(volume)
            else:
                await self._repair(self._replicated[volume.id], candidates)

    def _start(self, volume: Volume) -> None:
        replicated = Replicated(
            volume,
            since=self._clock.now(),
            circle=self.circle(volume),
            progress={node: ReplicaProgress() for node in volume.replicas},
        )
        self._replicated[volume.id] = replicated
        replicated.tasks = [
            asyncio.create_task(self._make_all(replicated), name=f"generations {volume.name}"),
            asyncio.create_task(self._tidy_all(replicated), name=f"tidy {volume.name}"),
            asyncio.create_task(
                self._named.keep_known(replicated), name=f"snapshots {volume.name}"
            ),
            *(
                asyncio.create_task(
                    self._send_all(replicated, node), name=f"send {volume.name} {node}"
                )
                for node in volume.replicas
            ),
        ]

    async def _stop(self, replicated: Replicated) -> None:
        self._replicated.pop(replicated.volume.id, None)
        replicated.end()
        ending = (*replicated.tasks, *replicated.records)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _make_all(self, replicated: Replicated) -> None:
        """Make records or generations while the volume is writable."""
        volume = replicated.volume
        driver = self._drivers.of(volume)
        while True:
            began = self._clock.now()
            try:
                copy = await driver.inspect(volume.id)
                if replicated.found is None:
                    replicated.found = frozenset(copy.generations)
                if any(t.epoch == volume.grant.epoch and not t.sealed for t in copy.live):
                    await self._make_one(replicated)
            except PannierError as error:
                self._not_made(replicated, error)
            replicated.due.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    max(volume.spec.interval - (self._clock.now() - began), 0.05)
                ):
                    await replicated.due.wait()

    async def _make_one(self, replicated: Replicated) -> None:
        """Make a record or a generation of what was written."""
        written_out = replicated.line is not None
        if written_out:
            # A cut sees only what is on the disk. Before the lock is taken: what nobody has synced must not
            # hold up sync calls.
            await self._lines.write_out(replicated)
        async with replicated.group:
            if replicated.line is None or self._is_due(replicated):
                await self.make(replicated, written_out=written_out)
            else:
                await self.advance(replicated)

    def _is_due(self, replicated: Replicated) -> bool:
        """Whether a generation is made although there is a line: the records since the last one are old or many,
        or a copy that waits for something does not get them."""
        line = replicated.line
        return (
            line is not None
            and line.number > line.included
            and (
                line.bytes > self._pace.line_bytes
                or self._clock.now() - replicated.made_at > self._pace.generation
                or any(
                    progress.sending is None and not progress.follows(line)
                    for progress in replicated.progress.values()
                )
            )
        )

    async def renew(self, replicated: Replicated) -> int:
        """As :meth:`advance`; what copies have on top of an older generation, and this node has not, is ended by it."""
        await self._lines.renew(replicated)
        return await self.advance(replicated)

    async def advance(self, replicated: Replicated) -> int:
        """The position that has all that is on this node's disk by now. The caller has the group lock.

        It is that of a record, which is on its way to the copies that follow, or of a generation.

        Raises:
            Unavailable: as :meth:`make`.
        """
        self._check_goes_on(replicated)
        if not await self._lines.cut(replicated):
            doubt = replicated.doubt
            await self.make(replicated, written_out=doubt is not None and doubt.too_much)
            replicated.note_detour(replicated.doubt.reason if replicated.doubt else BEGINS)
        return replicated.position

    def thread_cuts(self, replicated: Replicated) -> ThreadCuts | None:
        """See :meth:`Lines.thread_cuts`. The caller has the group lock until they have ended."""
        return None if replicated.ended else self._lines.thread_cuts(replicated)

    async def make(self, replicated: Replicated, *, written_out: bool = False) -> Generation:
        """The generation with all that was written so far. The caller has the group lock.

        Args:
            written_out: all that it must have is on this node's disk already.

        Raises:
            Unavailable: the replication has ended since the caller began to wait for the lock.
        """
        self._check_goes_on(replicated)
        began, line = self._clock.now(), replicated.line
        begins = line is None and await self._lines.watch(replicated)
        generation = await self._lines.snapshot(replicated, written_out=written_out)
        if begins:
            replicated.line = OpenLine(new_run(), generation)
        elif line is not None:
            line.generation, line.included, line.bytes = generation, line.number, 0
        await replicated.note_made(generation, at=began)
        return generation

    def _check_goes_on(self, replicated: Replicated) -> None:
        """What is written to a volume is told once. So nothing is cut for a replication that another one has followed."""
        if replicated.ended:
            raise Unavailable(f"volume {replicated.volume.name} is not replicated at the moment")

    def _not_made(self, replicated: Replicated, error: PannierError) -> None:
        """Report the error once in the log, and for each copy that has no other error of its own."""
        if replicated.trouble != error.message:
            log.warning(
                "replication.no-generation", volume=replicated.volume.name, error=str(error)
            )
        for progress in replicated.progress.values():
            if progress.error in ("", replicated.trouble):
                progress.error = error.message
        replicated.trouble = error.message

    async def _tidy_all(self, replicated: Replicated) -> None:
        """Delete generations that no copy needs, again and again: whenever there are a few, and all while nothing is written."""
        volume = replicated.volume
        driver = self._drivers.of(volume)
        while True:
            await asyncio.sleep(
                max(self._pace.tidy_intervals * volume.spec.interval, self._pace.tidy)
            )
            try:
                copy = await driver.inspect(volume.id)
                at_rest = replicated.newest_position == replicated.position
                if len(self._spare(replicated, copy)) > (0 if at_rest else _SPARE):
                    await self._tidy(replicated)
            except PannierError as error:
                log.warning("replication.not-tidied", volume=volume.name, error=str(error))

    def _spare(self, replicated: Replicated, copy: LocalCopy) -> frozenset[Generation]:
        """What of the generations here would be tidied away: see :func:`plan_cleanup`."""
        record = self._record(replicated.volume)
        if all(tree.epoch != record.grant.epoch for tree in copy.live):
            return frozenset()
        ours = [each for each in copy.generations if record.grew_out_of(each)]
        return frozenset(ours) - {
            *ours[-1:], record.base, *record.named, *replicated.needed()
        }  # fmt: skip

    def _record(self, volume: Volume) -> Volume:
        return self._cluster.catalog.volume(volume.name) or volume

    async def tidy(self, volume: Volume) -> None:
        """Delete generations of a volume, held here or not, that no copy needs, and that are no snapshots, now."""
        replicated = self._replicated.get(volume.id)
        if replicated is not None:
            await self._tidy(replicated)
        elif volume.spec.driver in self._drivers:
            async with self._custody.lock(volume):
                await self._custody.tidy(volume)

    async def _tidy(self, replicated: Replicated) -> None:
        """Tidy up by the record; without the store, only what was made since the beginning.

        Generations are made while the store is away, too, and must not fill the disk meanwhile.
        """
        volume = replicated.volume
        try:
            # Read before the lock is taken: a store that hangs must not hang under the lock.
            await self._cluster.fresh(volume.name)
            async with self._custody.lock(volume):
                await self._custody.tidy(volume, needed=replicated.needed)
        except Unavailable:
            driver = self._drivers.of(volume)
            async with self._custody.lock(volume):
                here = (await driver.inspect(volume.id)).generations
                keep = replicated.needed() | set(here[-1:]) | self._record(volume).named
                for generation in here:
                    if generation in replicated.made and generation not in keep:
                        await driver.delete_generation(volume.id, generation)
        replicated.made &= set((await self._drivers.of(volume).inspect(volume.id)).generations)

    async def _send_all(self, replicated: Replicated, node: str) -> None:
        """Send the newest generation to one replica, again and again, and in between the snapshots that it lacks."""
        progress, pause, sending_made_at = replicated.progress[node], self._pace.retry, 0.0

        def is_behind() -> bool:
            return replicated.newest is not None and replicated.newest != progress.generation

        while True:
            if progress.lacks:
                await self._named.send_next(replicated, node, send=self._send)
            if progress.sending is None:
                async with replicated.written:
                    await replicated.written.wait_for(lambda: progress.lacks or is_behind())
                    if not is_behind():
                        continue
                    progress.sending, sending_made_at = replicated.newest, replicated.made_at
                    progress.sending_position = replicated.newest_position
            assert progress.sending is not None
            was_up = self._cluster.catalog.is_up(node)
            try:
                async with self._turn(replicated, node):
                    if (generation := progress.sending) is None:
                        continue  # it has lost its copy while this waited: it gets the newest
                    await self._send(replicated, generation, node)
            except PannierError as error:
                if progress.error != error.message:
                    log.warning(
                        "replication.behind",
                        volume=replicated.volume.name,
                        node=node,
                        error=str(error),
                    )
                if isinstance(error, SetBack) and error.newest:
                    progress.ahead = Generation.parse(error.newest)
                # It may have arrived if no answer came, or if only its confirmation was refused.
                arrived = None if isinstance(error, PeerUnavailable | Stale) else False
                replicated.note_failed(node, error.message, arrived=arrived)
                progress.tries = self._sender.tries(replicated.volume.id, node)
                wait = max(pause, pause_after(progress.tries, error, self._pace))
                back = await self._pause(node, wait, was_up=was_up)
                pause = self._pace.retry if back else min(pause * 2, self._pace.retry_limit)
            else:
                pause, progress.ahead = self._pace.retry, None
                progress.tries = self._sender.tries(replicated.volume.id, node)
                replicated.note_confirmed(node, at=sending_made_at)

    @contextlib.asynccontextmanager
    async def _turn(self, replicated: Replicated, node: str) -> AsyncIterator[None]:
        """Whoever has much to catch up waits for its turn. One that is in sync never does: sync calls wait
        for it."""
        if not replicated.may_wait(node):
            yield
            return
        volume = replicated.volume
        size = await self._drivers.of(volume).used_bytes(volume.id)
        replicated.progress[
            node
        ].error = f"it waits for its turn: no more than {self._pace.catch_ups} copies of a node catch up at once"
        async with self._catch_ups.turn(volume.id, node, size=size, rest=self._rest):
            yield

    def note_asked(self) -> None:
        """Sync calls of a volume of this node were just answered."""
        self._asked_at = self._clock.now()

    def _rest(self, took: float) -> float:
        """How long the next copy that catches up waits. While nobody makes sync calls, not at all."""
        asked = self._clock.now() - self._asked_at < self._pace.catch_up_calm
        return min(took * self._pace.catch_up_rests, self._pace.catch_up_rest) if asked else 0.0

    async def _pause(self, node: str, seconds: float, *, was_up: bool) -> bool:
        """Wait before the next attempt, but no longer once the node is back. Returns whether it is.

        Args:
            was_up: whether it was up when the attempt began that has failed. It may have come back
                while that attempt still waited for an answer.
        """
        until = self._clock.now() + seconds
        while (left := until - self._clock.now()) > 0:
            is_up = self._cluster.catalog.is_up(node)
            if is_up and not was_up:
                return True
            was_up = is_up
            await asyncio.sleep(min(left, self._pace.retry))
        return False

    async def _send(self, replicated: Replicated, generation: Generation, name: str) -> None:
        node, volume, progress = (
            self._cluster.catalog.node(name),
            replicated.volume,
            replicated.progress[name],
        )
        if node is None:
            raise PeerUnavailable(f"node {name} is not in this cluster any more")
        before = progress.sent_bytes

        def report(sent_bytes: int) -> None:
            progress.sent_bytes = before + sent_bytes

        driver = self._drivers.of(volume)
        sent = await self._sender.send(
            offer_of(volume, generation),
            to=node,
            driver=driver,
            progress=report,
            may_wait=lambda: replicated.may_wait(name),
        )
        report(sent.bytes)

    async def _repair(
        self, replicated: Replicated, candidates: Callable[[], list[Candidate]]
    ) -> None:
        """Replace replicas that left the cluster, are drained, or stay away.

        ``candidates`` is called only if needed: it looks at every volume.
        """
        catalog, now = self._cluster.catalog, self._clock.now()
        gone = set()
        for name, progress in replicated.progress.items():
            node = catalog.node(name)
            if catalog.is_up(name):
                progress.absent_since = None
            elif progress.absent_since is None:
                progress.absent_since = now
            absent = progress.absent_since is not None and (
                now - progress.absent_since > self._pace.absence
            )
            if node is None or node.drained or absent:
                gone.add(name)
        volume = replicated.volume
        if not gone and len(volume.replicas) == volume.spec.copies - 1:
            return
        wanted = repair_replicas(volume, candidates(), gone=frozenset(gone))
        lock = self._custody.lock(volume)
        if wanted == volume.replicas or lock.locked():
            return
        # Both locks: a hand-over that comes to its switch must find the record that it read.
        async with lock, replicated.group:
            if volume not in self._switching:
                await self._replace(volume, wanted)

    async def _replace(self, volume: Volume, wanted: tuple[str, ...]) -> None:
        """Change the record if it is unchanged; otherwise :meth:`_reconcile` looks again."""
        with contextlib.suppress(PannierError):
            fresh = await self._cluster.fresh(volume.name)
            record = fresh.record
            if (record.id, record.grant, record.replicas) != (
                volume.id,
                volume.grant,
                volume.replicas,
            ):
                return
            left = tuple(name for name in record.in_sync if name in wanted)
            record = replace(record, replicas=wanted, in_sync=left)
            await self._cluster.replace(record, expect=fresh.revision)
            log.info("replication.replaced", volume=volume.name, replicas=",".join(wanted))


def candidates_of(cluster: Cluster) -> list[Candidate]:
    """The cluster's nodes as placement sees them."""
    copies = Counter(
        name
        for volume in cluster.catalog.volumes()
        for name in (volume.grant.node, *volume.replicas)
    )
    return [
        Candidate(
            name=node.name,
            up=cluster.catalog.is_up(node.name) or node.name == cluster.node,
            drained=node.drained,
            drivers=node.drivers,
            copies=copies[node.name],
            room=node.room,
        )
        for node in cluster.catalog.nodes()
    ]
