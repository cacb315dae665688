"""Keeping the other copies up to date: generations of what was written, sent to every replica.

One task for each volume that is held here makes generations, at most one each ``interval`` and only
when something was written. One task for each of its replicas sends the newest to that node: a slow
or absent replica delays nobody, and on its return gets the difference to the best generation that
both have.

For that the holder keeps what a replica may have as its newest: the last one that it confirmed, and
the one that was under way when its node fell silent. That one is sent again first, since it may have
arrived without our hearing of it, and the replica then keeps no older one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from pannier.agent.clock import boottime
from pannier.agent.custody import Custody
from pannier.core.errors import PannierError, PeerUnavailable, Unavailable
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.placement import Candidate, repair_replicas
from pannier.core.volume import Volume
from pannier.transport.base import Offer, Sender

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
RETRY_LIMIT_SECONDS = 30.0
ABSENCE_SECONDS = 900.0
"""A replica that is down for so long is replaced: long enough for a reboot or a new disk cable."""
RECONCILE_SECONDS = 2.0
TIDY_INTERVALS = 4
TIDY_SECONDS = 2.0
"""Old generations are looked for each so many intervals, and not more often than so."""


@dataclass(slots=True)
class Progress:
    """How far one replica is. Times are seconds since boot."""

    generation: Generation | None = None
    current_at: float | None = None
    """When it last was known to have everything up to ``generation``, made at that time."""
    error: str = ""
    sending: Generation | None = None
    """On its way, or given up without an answer: it may be there."""
    absent_since: float | None = None


@dataclass(slots=True)
class _Held:
    """One volume's replication."""

    volume: Volume
    newest: Generation | None = None
    made_at: float = 0.0
    found: frozenset[Generation] | None = None
    """What was here at the beginning: any of it may be what a replica that is not heard yet has."""
    made: set[Generation] = field(default_factory=set)
    """What was made since, and may be here still."""
    trouble: str = ""
    """Why no generation can be made."""
    written: asyncio.Condition = field(default_factory=asyncio.Condition)
    progress: dict[str, Progress] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Replicator:
    """Replicates the volumes that this node holds."""

    def __init__(
        self, custody: Custody, sender: Sender, *, moving: Callable[[Volume], bool]
    ) -> None:
        """Prepare; :meth:`run` works.

        Args:
            moving: whether a hand-over of the volume is under way, which sends it by itself.
        """
        self._custody = custody
        self._sender = sender
        self._moving = moving
        self._held: dict[str, _Held] = {}

    async def run(self) -> None:
        """For ever: run as a task."""
        try:
            while True:
                await self._reconcile()
                await asyncio.sleep(RECONCILE_SECONDS)
        finally:
            for held in list(self._held.values()):
                await self._stop(held)

    def progress(self, volume: Volume) -> dict[str, Progress]:
        """How far each replica of a volume that is held here is; empty where nothing is known."""
        held = self._held.get(volume.id)
        return held.progress if held else {}

    async def pause(self, volume: Volume) -> None:
        """End this volume's sending now: a hand-over begins. It starts again after that."""
        held = self._held.get(volume.id)
        if held is not None:
            await self._stop(held)

    async def _reconcile(self) -> None:
        custody = self._custody
        mine = {
            volume.id: volume
            for volume in custody.catalog.volumes()
            if volume.grant.node == custody.node
            and volume.spec.copies > 1
            and volume.spec.driver in custody.drivers
            and not self._moving(volume)
        }
        for held in list(self._held.values()):
            now = mine.get(held.volume.id)
            if now is None or (now.grant, now.replicas) != (
                held.volume.grant,
                held.volume.replicas,
            ):
                await self._stop(held)
            elif failed := next((task for task in held.tasks if task.done()), None):
                error = None if failed.cancelled() else failed.exception()
                log.error("replication.failed", volume=held.volume.name, exc_info=error)
                await self._stop(held)
        for volume in mine.values():
            if self._moving(volume):
                continue  # since a moment ago
            if volume.id not in self._held:
                self._start(volume)
            else:
                await self._repair(self._held[volume.id])

    def _start(self, volume: Volume) -> None:
        held = _Held(volume, progress={node: Progress() for node in volume.replicas})
        self._held[volume.id] = held
        held.tasks = [
            asyncio.create_task(self._make(held), name=f"generations {volume.name}"),
            asyncio.create_task(self._tidy_all(held), name=f"tidy {volume.name}"),
            *(
                asyncio.create_task(self._send_all(held, node), name=f"send {volume.name} {node}")
                for node in volume.replicas
            ),
        ]

    async def _stop(self, held: _Held) -> None:
        self._held.pop(held.volume.id, None)
        for task in held.tasks:
            task.cancel()
        await asyncio.gather(*held.tasks, return_exceptions=True)

    async def _make(self, held: _Held) -> None:
        """Make generations while the volume is written."""
        custody, volume = self._custody, held.volume
        driver = custody.driver(volume)
        while True:
            began = boottime()
            try:
                copy = await driver.inspect(volume.id)
                if held.found is None:
                    held.found = frozenset(copy.generations)
                if any(t.epoch == volume.grant.epoch and not t.sealed for t in copy.live):
                    generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
                    await self._made(held, generation, at=began)
            except PannierError as error:
                self._not_made(held, error)
            await asyncio.sleep(max(volume.spec.interval - (boottime() - began), 0.05))

    async def _made(self, held: _Held, generation: Generation, *, at: float) -> None:
        async with held.written:
            if generation != held.newest and generation not in (held.found or ()):
                held.made.add(generation)
            held.newest, held.made_at = generation, at
            for progress in held.progress.values():
                if progress.generation == generation:
                    progress.current_at = at  # nothing was written since: it is current again
                if held.trouble and progress.error == held.trouble:
                    progress.error = ""
            held.trouble = ""
            held.written.notify_all()

    def _not_made(self, held: _Held, error: PannierError) -> None:
        """Say it once, in the log and of each copy that is not behind for a reason of its own."""
        if held.trouble != error.message:
            log.warning("replication.no-generation", volume=held.volume.name, error=str(error))
        for progress in held.progress.values():
            if progress.error in ("", held.trouble):
                progress.error = error.message
        held.trouble = error.message

    async def _tidy_all(self, held: _Held) -> None:
        """Delete what no copy needs, again and again, where it has come to more than that."""
        custody, volume = self._custody, held.volume
        driver = custody.driver(volume)
        while True:
            await asyncio.sleep(max(TIDY_INTERVALS * volume.spec.interval, TIDY_SECONDS))
            try:
                if len((await driver.inspect(volume.id)).generations) > 3 + len(held.progress):
                    await self._tidy(held)
            except PannierError as error:
                log.warning("replication.not-tidied", volume=volume.name, error=str(error))

    async def _tidy(self, held: _Held) -> None:
        """As the record says; without the store, only what was made since the beginning.

        That goes on for as long as the store is away, and nothing else may fill the disk meanwhile.
        """
        custody, volume = self._custody, held.volume
        try:
            await custody.fresh(volume.name)  # a store that hangs must not do so under the lock
            async with custody.lock(volume):
                await custody.tidy(volume, needed=self._needed(held))
        except Unavailable:
            driver = custody.driver(volume)
            async with custody.lock(volume):
                here = (await driver.inspect(volume.id)).generations
                keep = self._needed(held) | set(here[-2:])
                for generation in here:
                    if generation in held.made and generation not in keep:
                        await driver.delete_generation(volume.id, generation)
        held.made &= set((await custody.driver(volume).inspect(volume.id)).generations)

    def _needed(self, held: _Held) -> frozenset[Generation]:
        """What a replica may have as its newest."""
        known = {p.generation for p in held.progress.values()}
        maybe = (held.found or frozenset()) if None in known else frozenset()
        known |= {p.sending for p in held.progress.values()} | maybe
        return frozenset(one for one in known if one is not None)

    async def _send_all(self, held: _Held, node: str) -> None:
        """Send the newest generation to one replica, again and again."""
        progress, pause, sending_made_at = held.progress[node], RETRY_SECONDS, 0.0
        while True:
            if progress.sending is None:
                async with held.written:
                    await held.written.wait_for(
                        lambda: held.newest is not None and held.newest != progress.generation
                    )
                    progress.sending, sending_made_at = held.newest, held.made_at
            assert progress.sending is not None
            try:
                await self._send(held.volume, progress.sending, node)
            except PannierError as error:
                if progress.error != error.message:
                    log.warning(
                        "replication.behind", volume=held.volume.name, node=node, error=str(error)
                    )
                progress.error = error.message
                if not isinstance(error, PeerUnavailable):
                    progress.sending = None  # it was refused: it is not there
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_LIMIT_SECONDS)
            else:
                progress.generation, progress.current_at = progress.sending, sending_made_at
                progress.sending, progress.error, pause = None, "", RETRY_SECONDS

    async def _send(self, volume: Volume, generation: Generation, name: str) -> None:
        node = self._custody.catalog.node(name)
        if node is None:
            raise PeerUnavailable(f"node {name} is not in this cluster any more")
        offer = Offer(
            volume_id=volume.id,
            volume_name=volume.name,
            driver=volume.spec.driver,
            epoch=volume.grant.epoch,
            generation=generation,
        )
        await self._sender.send(offer, to=node, driver=self._custody.driver(volume))

    async def _repair(self, held: _Held) -> None:
        """Replace replicas that left the cluster, are drained, or stay away."""
        catalog, now = self._custody.catalog, boottime()
        gone = set()
        for name, progress in held.progress.items():
            node = catalog.node(name)
            if catalog.is_up(name):
                progress.absent_since = None
            elif progress.absent_since is None:
                progress.absent_since = now
            absent = progress.absent_since is not None and (
                now - progress.absent_since > ABSENCE_SECONDS
            )
            if node is None or node.drained or absent:
                gone.add(name)
        volume = held.volume
        wanted = repair_replicas(
            volume, candidates_of(catalog.nodes(), self._custody), gone=frozenset(gone)
        )
        lock = self._custody.lock(volume)
        if wanted == volume.replicas or lock.locked():
            return
        async with lock:  # a hand-over that comes to its switch meanwhile must find what it read
            if not self._moving(volume):
                await self._replace(volume, wanted)

    async def _replace(self, volume: Volume, wanted: tuple[str, ...]) -> None:
        """Change the record, if it still is what it was; else :meth:`_reconcile` looks again."""
        with contextlib.suppress(PannierError):
            fresh = await self._custody.fresh(volume.name)
            record = fresh.record
            if (record.id, record.grant, record.replicas) != (
                volume.id,
                volume.grant,
                volume.replicas,
            ):
                return
            record = replace(record, replicas=wanted)
            revision = await self._custody.registry.replace_volume(record, expect=fresh.revision)
            self._custody.catalog.remember(record, revision=revision)
            log.info("replication.replaced", volume=volume.name, replicas=",".join(wanted))


def candidates_of(nodes: list[Node], custody: Custody) -> list[Candidate]:
    """The cluster's nodes as placement sees them."""
    volumes = custody.catalog.volumes()
    return [
        Candidate(
            name=node.name,
            up=custody.catalog.is_up(node.name) or node.name == custody.node,
            drained=node.drained,
            drivers=node.drivers,
            copies=sum(node.name in (v.grant.node, *v.replicas) for v in volumes),
        )
        for node in nodes
    ]
