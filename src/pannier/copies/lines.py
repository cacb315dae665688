"""Cuts of the volumes that this node holds, and their records on the way to the copies.

A record needs no snapshot, here or there: so it is what a sync call waits for. A copy that does not get one gets
the next generation, and then follows again. Whatever is doubtful here has the same end: a generation.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.copies.cutting import ThreadCuts
from pannier.copies.replicated import Following, OpenLine, Replicated
from pannier.core.errors import JournalFull, PannierError, PeerUnavailable
from pannier.core.generation import Generation
from pannier.core.line import Cut, Doubt, LinePlace, LineRecord
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.storage.base import SparseDriver
from pannier.storage.lines import LineDriver, line_driver
from pannier.transport.base import Parcel, SendsRecords

log = structlog.get_logger(__name__)


class Lines:
    """Makes records of what was written, and sends them. The caller has the volume's group lock."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        sender: SendsRecords,
        clock: Clock,
        pace: CopiesPace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._sender = sender
        self._clock = clock
        self._pace = pace

    def _driver(self, volume: Volume) -> LineDriver | None:
        return line_driver(self._drivers.of(volume))

    async def watch(self, replicated: Replicated) -> bool:
        """Begin to note what is written, before the generation with which a run begins.

        Returns whether it is noted.
        """
        volume = replicated.volume
        driver = self._driver(volume)
        if driver is None:
            replicated.doubt = Doubt(f"the driver {volume.spec.driver} makes no records")
            return False
        doubt = await driver.watch(volume.id, epoch=volume.grant.epoch)
        if doubt is not None:
            self._note(replicated, doubt)
        return doubt is None

    async def write_out(self, replicated: Replicated) -> None:
        """Bring what was written to the disk: a cut sees nothing else.

        Raises:
            StorageError: the disk refused something.
        """
        driver = self._drivers.of(replicated.volume)
        if isinstance(driver, SparseDriver):
            await driver.write_out(replicated.volume.id)

    async def snapshot(self, replicated: Replicated, *, written_out: bool) -> Generation:
        """Make a generation.

        Args:
            written_out: all that it must have is on the disk. What is only in memory by now is not waited for.

        Raises:
            StorageError: the disk refused something, or a driver without lines makes none.
        """
        volume, driver = replicated.volume, self._driver(replicated.volume)
        if driver is None or not written_out:
            return await self._drivers.of(volume).snapshot(volume.id, epoch=volume.grant.epoch)
        return await driver.snapshot_disk(volume.id, epoch=volume.grant.epoch)

    async def renew(self, replicated: Replicated) -> None:
        """Let the next generation be a new one, unless a run has begun with one: see :meth:`LineDriver.renew`."""
        driver = self._driver(replicated.volume)
        if driver is not None and replicated.line is None:
            await driver.renew(replicated.volume.id, epoch=replicated.volume.grant.epoch)

    async def cut(self, replicated: Replicated) -> bool:
        """Make a record of what was written since the last position, and begin to send it.

        Returns whether the newest position has all that was written. If not, a generation has.
        """
        volume, line = replicated.volume, replicated.line
        driver = self._driver(volume)
        if line is None or driver is None:
            return False
        began = self._clock.now()
        try:
            cut = await driver.cut(line.next_place(volume))
        except BaseException:
            self._hear(replicated, line, None, began)
            raise
        self._hear(replicated, line, cut, began)
        return replicated.line is line

    def thread_cuts(self, replicated: Replicated) -> ThreadCuts | None:
        """Cuts by a thread that is to begin. None where no cut can be made: a generation is needed."""
        line, driver = replicated.line, self._driver(replicated.volume)
        if line is None or driver is None:
            return None
        hear = partial(self._hear, replicated, line)
        place = line.next_place(replicated.volume)
        durable = replicated.note_synced
        return ThreadCuts(driver, place, hear=hear, durable=durable, clock=self._clock)

    def _hear(
        self, replicated: Replicated, line: OpenLine, cut: Cut | Doubt | None, began: float
    ) -> None:
        """Send a cut of a line. A doubt, or a cut that was lost (None), ends it."""
        if replicated.line is not line:
            return  # it has ended: the next generation has what was cut
        if cut is None:
            replicated.line = None
            replicated.doubt = Doubt("what was written could not be read")
        elif isinstance(cut, Doubt):
            replicated.line = None
            self._note(replicated, cut)
        else:
            replicated.doubt = None
            try:
                self._heard(replicated, line, cut, began)
            except BaseException:
                replicated.line = None  # what was told is lost
                raise

    def _heard(self, replicated: Replicated, line: OpenLine, cut: Cut, began: float) -> None:
        if cut.ranges:
            self._ship(replicated, line, cut, at=began)
        else:
            replicated.note_unchanged(at=began)

    def _note(self, replicated: Replicated, doubt: Doubt) -> None:
        if doubt != replicated.doubt:
            self._say(replicated, "line.doubt", reason=doubt.reason)
        replicated.doubt = doubt

    def _say(self, replicated: Replicated, event: str, **facts: str) -> None:
        """Log what may happen with each sync call; not each time."""
        kind = f"{event} {facts.get('node', '')}"
        if (more := replicated.said.due(kind, now=self._clock.now(), every=self._pace.say)) is None:
            return
        log.info(
            event, volume=replicated.volume.name, **facts, **({"left_out": more} if more else {})
        )

    def _ship(self, replicated: Replicated, line: OpenLine, cut: Cut, *, at: float) -> None:
        place = line.next_place(replicated.volume)
        parcel = Parcel.of(LineRecord(place=place, size=cut.size, ranges=cut.ranges))
        followers = [
            (node, progress.following)
            for node, progress in replicated.progress.items()
            if progress.following is not None and progress.follows(line)
        ]
        line.number += 1
        line.bytes += parcel.size
        replicated.position += 1
        for node, following in followers:
            if (
                following.waiting >= self._pace.most_waiting
                or following.waiting_bytes + parcel.size > self._pace.most_waiting_bytes
            ):
                # A generation is one thing to wait for instead of many.
                replicated.note_not_following(
                    node, following, "too many records are on their way to it"
                )
                continue
            following.number += 1
            following.waiting += 1
            following.waiting_bytes += parcel.size
            following.last = replicated.start(
                self._send(
                    replicated,
                    node,
                    following,
                    parcel,
                    place=place,
                    position=replicated.position,
                    at=at,
                    before=following.last,
                ),
                name=f"record {replicated.volume.name} {node}",
            )
        if line.bytes > self._pace.line_bytes:
            replicated.due.set()

    async def _send(
        self,
        replicated: Replicated,
        name: str,
        following: Following,
        parcel: Parcel,
        *,
        place: LinePlace,
        position: int,
        at: float,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await following.ready.wait()
        try:
            if following.broken or replicated.has_since(name, place):
                return
            await self._send_one(replicated, name, parcel)
        except PannierError as error:
            self._say(replicated, "line.broken", node=name, error=str(error))
            tries = 1 if isinstance(error, JournalFull) else self._pace.refused_tries
            again = self._clock.now() + self._pace.full_again
            replicated.note_refused(name, following, tries=tries, again=again)
            replicated.note_not_following(name, following, error.message)
        except BaseException:
            replicated.note_not_following(name, following, "it was not sent to the end")
            raise
        else:
            if not following.broken:
                replicated.note_followed(name, place, position=position, at=at)
        finally:
            following.waiting -= 1
            following.waiting_bytes -= parcel.size

    async def _send_one(self, replicated: Replicated, name: str, parcel: Parcel) -> None:
        node = self._cluster.catalog.node(name)
        if node is None:
            raise PeerUnavailable(f"node {name} is not in this cluster any more")
        await self._sender.send(parcel, to=node, volume_name=replicated.volume.name)
