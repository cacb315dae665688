"""Snapshots of volumes: made by the holder, removed from the record by any node, kept by every copy.

A snapshot is made in this order: a generation, durable here; its name in the record; then each copy in sync says that it has
and keeps it. After a power cut in between, there is a generation without a name, which is tidied away, or a name whose
generation the copies get from the holder. Around the first two run the hooks of the containers that use the volume.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.room import RoomGuard
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.views import SnapshotView
from pannier.copies.named import NamedGenerations
from pannier.copies.replicated import Replicated
from pannier.copies.replication import Replicator
from pannier.core.errors import (
    Conflict,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    PoolFull,
    Stale,
)
from pannier.core.generation import Generation
from pannier.core.pace import HoldingPace
from pannier.core.schedules import Slot, missed_before
from pannier.core.snapshots import Snapshot, check_labels, check_snapshot_name, over
from pannier.core.volume import HistoryEntry, Volume
from pannier.holding.handover import Handovers
from pannier.holding.lasting import Lasting
from pannier.holding.naming import Naming
from pannier.holding.quieting import SnapshotHooks
from pannier.host.clock import Clock, rfc3339

log = structlog.get_logger(__name__)

TAKEN = "snapshot taken"
REMOVED = "snapshot removed"
MISSED = "snapshot missed"
"""What a volume's history calls them."""
_MOST_NAMES = 10
"""So many snapshots are named in one line of a volume's history."""


class Snapshots:
    """Makes, lists and removes snapshots."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        replicator: Replicator,
        named: NamedGenerations,
        naming: Naming,
        hooks: SnapshotHooks,
        handovers: Handovers,
        room: RoomGuard,
        peers: Peers,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._replicator = replicator
        self._named = named
        self._naming = naming
        self._hooks = hooks
        self._handovers = handovers
        self._room = room
        self._peers = peers
        self._clock = clock
        self._pace = pace
        self._over = Lasting[tuple[str, str]]()
        """Of snapshots whose time is over, by volume id and name."""

    # -- making -----------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        snapshot: str,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
    ) -> SnapshotView:
        """Make a snapshot of a volume, wherever it is held. See :meth:`create_here`.

        Raises:
            PeerUnavailable: its holder does not answer.
        """
        check_snapshot_name(snapshot)
        check_labels(labels)
        volume = (await self._cluster.fresh(name)).record
        if volume.grant.node == self._cluster.node:
            return await self.create_here(
                name, snapshot, keep_seconds=keep_seconds, labels=labels, actor=actor
            )
        holder = self._cluster.holder_of(volume)
        try:
            return await self._peers.to(holder).peer_snapshot(
                name, snapshot, keep_seconds=keep_seconds, labels=labels, actor=actor
            )
        except PeerUnavailable as error:
            raise holder_unreachable(volume, error) from error

    async def create_here(
        self,
        name: str,
        snapshot: str,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
        slot: Slot | None = None,
    ) -> SnapshotView:
        """Make a snapshot of a volume that is held here, with all that was written before the call, also while it is used.

        The hooks of the containers that use it run around that. Returns once each copy in sync has it, or after
        :attr:`HoldingPace.snapshot` seconds: the answer says who has it.

        Args:
            slot: the one for which a schedule makes it; None: a person does.

        Raises:
            VolumeNotFound; AlreadyExists: it has one of that name.
            Conflict: it is no image, has as many as it can have, or is on its way to another node; a pre-snapshot hook failed; or
                a post-snapshot hook did, and the snapshot is there. NotHolder, Stale.
            InvalidInput: a container asks for a hook that cannot be read. EngineUnavailable: the engine does not answer.
            StorageError: no generation can be made. PoolFull: the pool is full.
            StoreUnavailable: nothing was changed. OutcomeUnknown: it may have been.
        """
        check_snapshot_name(snapshot)
        volume = await self.check(name, snapshot)
        # With the lock, nothing is tidied away before it has its name.
        async with self._hooks.around([volume]) as hooks, AsyncExitStack() as locks:
            await locks.enter_async_context(self._custody.lock(volume))
            volume = (await self._custody.take_up(volume)).record
            volume.check_may_add(snapshot)
            at = self._clock.unix()
            made = Snapshot(
                name=snapshot,
                generation=await self.make_generation(volume),
                made_at=at,
                labels=check_labels(labels),
                keep_until=None if keep_seconds is None else at + keep_seconds,
                slot_start=None if slot is None else slot.start,
            )
            try:
                volume = await self.add(volume, made, actor=actor, slot=slot)
            except OutcomeUnknown:
                known = await self._naming.settle([(name, made.generation)], locks)
                found = self._cluster.catalog.volume(name)
                if not known or found is None or made.generation not in found.named:
                    raise
                volume = found
        log.info("volume.snapshot", volume=name, snapshot=snapshot, generation=str(made.generation))
        view = await self.arrived(volume, made)
        hooks.check(f"snapshot {snapshot} of volume {name} was made")
        return replace(view, hook_failures=hooks.failures)

    async def check(self, name: str, snapshot: str) -> Volume:
        """Check that a snapshot of that name can be made here now, before any hook is run. Returns the volume's record.

        Raises:
            VolumeNotFound; AlreadyExists; NotHolder.
            Conflict: it is no image, has as many as it can have, or is on its way to another node. PoolFull: the pool is full.
        """
        volume = (await self._cluster.fresh(name)).record
        check_layout(volume)
        if volume.grant.node != self._cluster.node:
            raise NotHolder(
                f"volume {name} is held by node {volume.grant.node} (epoch {volume.grant.epoch})",
                remedy="ask again",
            )
        volume.check_may_add(snapshot)
        check_stays(volume, self._handovers)
        if full := self._room.full(volume):
            raise PoolFull(
                f"no snapshot of volume {name} can be made on node {self._cluster.node}: {full}",
                remedy="remove snapshots, volumes or files that nobody needs, or enlarge the pool's disk",
            )
        return volume

    async def make_generation(self, volume: Volume) -> Generation:
        """The generation with all that was written so far. The caller has the lock.

        Raises:
            StorageError: none can be made. NotHolder: it is just being given away.
        """
        if volume.spec.copies == 1:
            driver = self._drivers.of(volume)
            return await driver.snapshot(volume.id, epoch=volume.grant.epoch)
        replicated = self._replicator.replicated(volume.name)
        async with replicated.group:
            return await self._replicator.make(replicated)

    async def arrived(self, volume: Volume, made: Snapshot) -> SnapshotView:
        """Wait until each copy in sync has a snapshot, but no longer than some time. Returns it with those that have it."""
        replicated = self._replicator.known(volume)
        if replicated is not None:
            await self._arrives(replicated, made)
        return await self._shown(volume, made)

    async def add(
        self, volume: Volume, made: Snapshot, *, actor: str, slot: Slot | None = None
    ) -> Volume:
        """Add a snapshot to a volume's record. The caller has the lock. Returns the record as it is then.

        Args:
            slot: as in :meth:`create_here`. Where those before it have no snapshot, the volume's history tells that.

        Raises:
            AlreadyExists, Conflict: as :meth:`Volume.check_may_add`; Stale: it has another holder; StoreUnavailable;
            OutcomeUnknown.
        """

        def add(found: Volume) -> Volume:
            if (found.id, found.grant) != (volume.id, volume.grant):
                raise Stale(f"volume {volume.name} has changed", remedy="ask again")
            if slot is not None and (missed := missed_before(slot, found.snapshots)):
                found = found.with_snapshot_entry(self._entry(found, MISSED, missed))
            return self.with_new(found, made, actor=actor)

        return await self._change(volume.name, add)

    def with_new(self, volume: Volume, made: Snapshot, *, actor: str) -> Volume:
        """A volume's record with one more snapshot, and its line in the history. Raises as :meth:`Volume.check_may_add`."""
        detail = f"{made.name}, generation {made.generation}, by {actor}"
        return volume.with_snapshot(made).with_snapshot_entry(self._entry(volume, TAKEN, detail))

    async def _change(self, name: str, decide: Callable[[Volume], Volume | None]) -> Volume:
        read = partial(self._cluster.fresh, name)
        now = await self._cluster.registry.change(read, decide)
        self._cluster.catalog.remember(now.record, revision=now.revision)
        return now.record

    def _entry(self, volume: Volume, what: str, detail: str) -> HistoryEntry:
        return HistoryEntry(
            at=self._clock.unix(),
            what=what,
            node=self._cluster.node,
            epoch=volume.grant.epoch,
            detail=detail,
        )

    async def _arrives(self, replicated: Replicated, made: Snapshot) -> None:
        """Wait until each copy in sync has it, but no longer than some time."""
        until = self._clock.now() + self._pace.snapshot
        replicated.unknown.set()
        while not replicated.ended and self._clock.now() < until:
            volume = self._cluster.catalog.volume(replicated.volume.name)
            if volume is None or not replicated.who_lacks(made.generation, volume.in_sync):
                return
            await asyncio.sleep(self._pace.snapshot_look)

    # -- looking ----------------------------------------------------------------------------------

    async def all(self, name: str) -> list[SnapshotView]:
        """All snapshots of a volume, in the order in which they were made."""
        volume = (await self._cluster.fresh(name)).record
        return [snapshot_view(volume, each) for each in volume.snapshots]

    async def show(self, name: str, snapshot: str) -> SnapshotView:
        """One snapshot, with the nodes that have it.

        Raises:
            VolumeNotFound; NotFound: the volume has no such snapshot.
        """
        volume = (await self._cluster.fresh(name)).record
        return await self._shown(volume, volume.snapshot(check_snapshot_name(snapshot)))

    async def _shown(self, volume: Volume, snapshot: Snapshot) -> SnapshotView:
        """Each node that may have it is asked, all at the same time."""
        nodes = (volume.grant.node, *volume.replicas)
        found = await asyncio.gather(*(self._has(node, volume, snapshot) for node in nodes))
        has = dict(zip(nodes, found, strict=True))
        return snapshot_view(
            volume,
            snapshot,
            on=[node for node in nodes if has[node] is True],
            not_on=[node for node in nodes if has[node] is False],
            silent=[node for node in nodes if has[node] is None],
        )

    async def _has(self, node: str, volume: Volume, snapshot: Snapshot) -> bool | None:
        """Whether a node has it; None where it does not say."""
        try:
            return snapshot.generation in await self._named.on(node, volume.name)
        except (PannierError, OSError) as error:
            log.info("snapshot.not-asked", volume=volume.name, node=node, error=str(error))
            return None

    async def here(self, name: str) -> list[str]:
        """The generations of this node that are snapshots of a volume: another node asks. See :meth:`NamedGenerations.here`."""
        return list(map(str, sorted(await self._named.here(name))))

    # -- removing ---------------------------------------------------------------------------------

    async def remove(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        """Remove a snapshot from a volume's record; each node then deletes its generation. The holder is not needed.

        Raises:
            VolumeNotFound; NotFound: there is no such snapshot; StoreUnavailable: nothing was changed;
            OutcomeUnknown: it may have been.
        """
        check_snapshot_name(snapshot)
        gone: list[Snapshot] = []

        def remove(found: Volume) -> Volume:
            gone[:] = [found.snapshot(snapshot)]
            return self._without(found, gone, why=f"by {actor}")

        volume = await self._change(name, remove)
        log.info("volume.snapshot-removed", volume=name, snapshot=snapshot, by=actor)
        return snapshot_view(volume, gone[0])

    def _without(self, volume: Volume, gone: Collection[Snapshot], *, why: str) -> Volume:
        names = ", ".join(each.name for each in tuple(gone)[:_MOST_NAMES])
        more = f" and {len(gone) - _MOST_NAMES} more" if len(gone) > _MOST_NAMES else ""
        entry = self._entry(volume, REMOVED, f"{names}{more}, {why}")
        return volume.without_snapshots(gone).with_snapshot_entry(entry)

    async def run(self) -> None:
        """Remove the snapshots whose time is over of volumes that are held here, for ever: run as a task."""
        while True:
            due = self._over_for_long()
            for volume in self._cluster.catalog.volumes():
                if gone := [each for each in volume.snapshots if (volume.id, each.name) in due]:
                    await self.drop(volume, partial(_present, gone), why="whose time was over")
            await asyncio.sleep(self._pace.snapshots_look)

    def _over_for_long(self) -> frozenset[tuple[str, str]]:
        """Those whose time has been over for a while: a clock that jumped ahead is put right by then."""
        found = [
            (volume.id, each.name)
            for volume in self._cluster.catalog.volumes()
            if volume.grant.node == self._cluster.node
            for each in over(volume.snapshots, now=self._clock.unix())
        ]
        return self._over.for_long(found, now=self._clock.now(), seconds=self._pace.snapshot_grace)

    async def drop(
        self, volume: Volume, choose: Callable[[Volume], Collection[Snapshot]], *, why: str
    ) -> None:
        """Remove snapshots of a volume that is held here from its record. What fails is in the log, and tried again by the caller.

        Args:
            choose: those that go, of the record as it is then.
            why: as in "whose time was over".
        """

        def remove(found: Volume) -> Volume | None:
            if (found.id, found.grant) != (volume.id, volume.grant):
                return None
            gone = choose(found)
            return self._without(found, gone, why=why) if gone else None

        try:
            await self._change(volume.name, remove)
        except PannierError as error:
            log.info("snapshots.not-removed", volume=volume.name, error=str(error))


def _present(gone: Collection[Snapshot], volume: Volume) -> list[Snapshot]:
    """Those of them that a volume still has."""
    return [each for each in volume.snapshots if each in gone]


def check_stays(volume: Volume, handovers: Handovers) -> None:
    """Raise Conflict for a volume that is on its way to another node."""
    if running := handovers.of(volume):
        raise Conflict(
            f"volume {volume.name} is on its way to node {running.target.name}",
            remedy="wait until it is there, then ask again",
        )


def check_layout(volume: Volume) -> None:
    """Raise Conflict for a volume that cannot have snapshots."""
    if volume.spec.layout != "image":
        raise Conflict(
            f"volume {volume.name} is no image, and only images have snapshots",
            remedy=f"have its files copied into one: pannier volume set {volume.name} layout=image",
        )


def snapshot_view(
    volume: Volume,
    snapshot: Snapshot,
    *,
    on: list[str] | None = None,
    not_on: list[str] | None = None,
    silent: list[str] | None = None,
) -> SnapshotView:
    """A snapshot as users see it."""
    return SnapshotView(
        volume=volume.name,
        name=snapshot.name,
        generation=str(snapshot.generation),
        made_at=rfc3339(snapshot.made_at),
        keep_until=None if snapshot.keep_until is None else rfc3339(snapshot.keep_until),
        labels=dict(snapshot.labels),
        on=on,
        not_on=not_on,
        silent=silent,
        by_schedule=snapshot.slot_start is not None,
    )
