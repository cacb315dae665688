"""Snapshots of several volumes at one moment: the part of a node that holds some of them.

After the pre-snapshot hooks, all volumes stand still: no write to their file systems ends. Once each holder has said so, each
makes its generations, and then lets its volumes go on. A volume that went on before its generation was made, for whatever
reason, ends the whole. So there was a moment at which each volume was what its generation is. No volume stands still for
longer than a few seconds: its holder lets it go on by itself, and a restarted daemon does.

Then all generations get their names at once, in one change of the store, by one of the holders. Before that, nothing is left
but generations that are tidied away; after it, all snapshots are there, whoever dies. A holder keeps its generations from
being tidied away until it knows which of the two it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import TRIES, Versioned
from pannier.contract.bodies import PeerTogetherOrder, PeerTogetherStep
from pannier.contract.together import MadeGeneration, TogetherView
from pannier.contract.words import TogetherPhase
from pannier.core.errors import NotFound, OutcomeUnknown, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.pace import HoldingPace
from pannier.core.snapshots import Snapshot, check_labels
from pannier.core.volume import Volume
from pannier.holding.naming import Naming
from pannier.holding.quieting import SnapshotHooks
from pannier.holding.snapshots import Snapshots
from pannier.host.clock import Clock
from pannier.storage.base import SparseDriver

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Part:
    """A part under way.

    Attributes:
        step: the newest step that was asked for.
        asked: set with each.
    """

    order: PeerTogetherOrder
    peer: str
    step: PeerTogetherStep | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def may_be_named(self) -> bool:
        """Whether another node may be giving the generations of this one their names, also after this one has failed."""
        step = self.step
        given_up = step is not None and step.phase == TogetherPhase.GIVEN_UP and not step.made
        return not (self.order.alone or given_up)


class Together:
    """This node's parts in such snapshots."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        snapshots: Snapshots,
        naming: Naming,
        hooks: SnapshotHooks,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._snapshots = snapshots
        self._naming = naming
        self._hooks = hooks
        self._clock = clock
        self._pace = pace
        self._parts: dict[str, _Part] = {}

    async def step(self, order: PeerTogetherStep, *, peer: str) -> None:
        """See :meth:`pannier.contract.peers.Peer.peer_together_step`."""
        part = self._parts.get(order.session)
        if part is None or part.peer != peer:
            raise NotFound(
                f"node {self._cluster.node} makes no such snapshots any more", remedy="begin anew"
            )
        part.step = order
        part.asked.set()

    async def part(
        self, order: PeerTogetherOrder, *, peer: str
    ) -> AsyncGenerator[TogetherView, None]:
        """See :meth:`pannier.contract.peers.Peer.peer_together`. ``peer`` is the node that asks."""
        check_labels(order.labels)
        part = self._parts[order.session] = _Part(order, peer)
        try:
            volumes = [await self._snapshots.check(name, order.snapshot) for name in order.volumes]
            async with self._hooks.around(volumes) as hooks:
                yield TogetherView(phase=TogetherPhase.PREPARED)
                await self._asked(part, TogetherPhase.FROZEN, within=self._pace.together)
                async with self._taken(volumes, order) as (taken, locks):
                    async with self._still(taken):
                        yield TogetherView(phase=TogetherPhase.FROZEN)
                        await self._asked(part, TogetherPhase.MADE, within=self._pace.still)
                        made = await self._make(taken)
                    async with self._kept(part, made, locks):
                        yield TogetherView(phase=TogetherPhase.MADE, made=made)
                        began = self._clock.now()
                        await self._asked(part, TogetherPhase.NAMED, within=self._pace.kept)
                        await self._name(part, made, since=began)
                    yield TogetherView(phase=TogetherPhase.NAMED)
            named = [await self._named(each, order) for each in made]
            arrived = await _all(self._snapshots.arrived(volume, each) for volume, each in named)
            yield TogetherView(
                phase=TogetherPhase.DONE,
                snapshots=arrived,
                hook_failures=hooks.failures,
                hooks_failed=hooks.failed,
            )
        finally:
            self._parts.pop(order.session, None)

    async def _asked(self, part: _Part, phase: TogetherPhase, *, within: float) -> None:
        """Wait until this phase may come.

        Raises:
            Unavailable: nobody has said so in time, who would has lost its lease, or it was given up.
        """
        until = self._clock.now() + within
        while not part.order.alone and (part.step is None or part.step.phase != phase):
            is_up = part.peer == self._cluster.node or self._cluster.catalog.is_up(part.peer)
            given_up = part.step is not None and part.step.phase == TogetherPhase.GIVEN_UP
            if given_up or not is_up or self._clock.now() > until:
                raise Unavailable(
                    f"node {self._cluster.node} has made no snapshots: node {part.peer}, which leads it, did not go on to "
                    f"{phase} in time",
                    remedy="nothing was changed; do it again",
                )
            part.asked.clear()
            try:
                async with asyncio.timeout(self._pace.snapshot_look):
                    await part.asked.wait()
            except TimeoutError:
                continue

    @asynccontextmanager
    async def _taken(
        self, volumes: Sequence[Volume], order: PeerTogetherOrder
    ) -> AsyncIterator[tuple[list[Volume], AsyncExitStack]]:
        """Have the locks of all volumes, in the order in which everybody takes them: no generation is tidied away, and nobody
        mounts one that is not attached. Their records are read anew. The locks may be taken along."""
        async with AsyncExitStack() as locks:
            for volume in sorted(volumes, key=lambda each: each.id):
                try:
                    async with asyncio.timeout(self._pace.still):
                        await locks.enter_async_context(self._custody.lock(volume))
                except TimeoutError as error:
                    raise Unavailable(
                        f"volume {volume.name} is being attached, moved or tidied on node {self._cluster.node}",
                        remedy="nothing was changed; do it again",
                    ) from error
            taken = [(await self._custody.take_up(volume)).record for volume in volumes]
            for volume in taken:
                volume.check_may_add(order.snapshot)
            yield taken, locks

    @asynccontextmanager
    async def _still(self, volumes: Sequence[Volume]) -> AsyncIterator[None]:
        """All volumes stand still in the block.

        Raises:
            Conflict: one is frozen already. StorageError. Unavailable: one went on before the block's end.
        """
        await _all(self._write_out(volume) for volume in volumes)
        try:
            held = await _all(self._hold(volume) for volume in volumes)
            yield
        except BaseException:
            await asyncio.gather(*map(self._let_go, volumes), return_exceptions=True)
            raise
        stood = await _all(self._let_go(volume) for volume in volumes)
        if early := [
            volume.name
            for volume, was, still in zip(volumes, held, stood, strict=True)
            if was and not still
        ]:
            raise Unavailable(
                f"volume {', '.join(early)} went on before all volumes had their generations; it stands still for "
                f"{self._pace.still:g} s at most",
                remedy="nothing was changed; do it again, when the disks have less to do",
            )

    async def _write_out(self, volume: Volume) -> None:
        """Most of what memory holds, before anybody has to wait for it."""
        driver = self._drivers.of(volume)
        if isinstance(driver, SparseDriver):
            await driver.write_out(volume.id)

    async def _hold(self, volume: Volume) -> bool:
        """Returns whether it stands still. One that is not attached does not change anyway: this node has its lock."""
        driver = self._drivers.of(volume)
        assert isinstance(driver, SparseDriver), "all images have one"
        epoch, seconds = volume.grant.epoch, self._pace.still
        # What came while the others were written out: writers wait while the kernel does it.
        await driver.write_out(volume.id)
        return await driver.hold_still(volume.id, epoch=epoch, seconds=seconds)

    async def _let_go(self, volume: Volume) -> bool:
        driver = self._drivers.of(volume)
        assert isinstance(driver, SparseDriver), "all images have one"
        return await driver.let_go(volume.id, epoch=volume.grant.epoch)

    async def _make(self, volumes: Sequence[Volume]) -> list[MadeGeneration]:
        generations = await _all(self._snapshots.make_generation(volume) for volume in volumes)
        return [
            MadeGeneration(
                volume=volume.name,
                volume_id=volume.id,
                generation=str(generation),
                made_at=self._clock.unix(),
            )
            for volume, generation in zip(volumes, generations, strict=True)
        ]

    # -- names ----------------------------------------------------------------------------------

    async def _name(self, part: _Part, made: Sequence[MadeGeneration], *, since: float) -> None:
        """Give all generations their names, or see that another holder has done so.

        Args:
            since: when this node's generations were made, in seconds since boot.
        """
        to_name = made if part.order.alone else part.step.made if part.step else []
        if to_name:
            try:
                async with asyncio.timeout(since + self._pace.naming - self._clock.now()):
                    await self._name_all(to_name, part.order)
            except TimeoutError as error:
                raise OutcomeUnknown(
                    f"the store did not take the snapshots {part.order.snapshot} in time",
                    remedy="all volumes have them or none: pannier volume snapshot ls",
                ) from error
        for each in made:
            await self._named(each, part.order)

    async def _name_all(self, made: Sequence[MadeGeneration], order: PeerTogetherOrder) -> None:
        for _ in range(TRIES):
            changes = [await self._with_name(each, order) for each in made]
            try:
                written = await self._cluster.registry.replace_volumes(changes)
            except Stale:
                continue
            for each in written:
                self._cluster.catalog.remember(each.record, revision=each.revision)
            return
        raise Stale("the records of the volumes keep changing", remedy="do it again")

    async def _with_name(self, made: MadeGeneration, order: PeerTogetherOrder) -> Versioned[Volume]:
        found = await self._cluster.fresh(made.volume)
        generation = Generation.parse(made.generation)
        if (found.record.id, found.record.grant.epoch) != (made.volume_id, generation.epoch):
            raise Stale(f"volume {made.volume} has changed", remedy="do it again")
        snapshot = Snapshot(
            name=order.snapshot,
            generation=generation,
            made_at=made.made_at,
            labels=dict(order.labels),
            keep_until=None if order.keep_seconds is None else made.made_at + order.keep_seconds,
        )
        named = self._snapshots.with_new(found.record, snapshot, actor=order.actor)
        return Versioned(named, found.revision)

    async def _named(
        self, made: MadeGeneration, order: PeerTogetherOrder
    ) -> tuple[Volume, Snapshot]:
        """The record that has a generation's name.

        Raises:
            NotFound: it has none; and what reading raises.
        """
        volume = (await self._cluster.fresh(made.volume)).record
        snapshot = volume.snapshot(order.snapshot)
        if str(snapshot.generation) != made.generation:
            raise Stale(f"snapshot {order.snapshot} of volume {volume.name} is another one now")
        return volume, snapshot

    @asynccontextmanager
    async def _kept(
        self, part: _Part, made: Sequence[MadeGeneration], locks: AsyncExitStack
    ) -> AsyncIterator[None]:
        """In the block, generations may get names. If it fails, those that have none by then get none any more, and none is
        tidied away before that is known: another holder may still try to name it, and a change may be on its way.
        """
        named = [(each.volume, Generation.parse(each.generation)) for each in made]
        try:
            yield
        except Exception:
            tried_for = self._pace.naming if part.may_be_named else 0.0
            await self._naming.settle(named, locks, tried_for=tried_for)
            raise
        except BaseException:  # the daemon ends: nothing is tidied until it is back
            await self._naming.end_all(named)
            raise


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Do all at the same time, to the end; then raise what the first of them raised."""
    found = await asyncio.gather(*work, return_exceptions=True)
    done: list[T] = []
    for each in found:
        if isinstance(each, BaseException):
            raise each
        done.append(each)
    return done
