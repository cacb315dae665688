"""Taking a volume back to one of its snapshots.

Nobody uses it. It is sealed, and its last generation becomes a snapshot itself, so that nothing of what is replaced is lost. Then
the live tree becomes what the snapshot is, in one step, and goes on with a new generation. The epoch stays, since
the holder does. Before anybody can use the volume, each copy in sync has that generation, or does not count any more.

If power fails before the step, the volume is what it was. If the holder is lost before the copies have the new generation, they go on with
what it was, too: then nobody was told that it was rolled back.
"""

from __future__ import annotations

import time

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.views import SnapshotView
from pannier.copies.acknowledging import Acknowledging
from pannier.copies.replication import Replicator
from pannier.copies.switching import Switching
from pannier.core.errors import (
    Conflict,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    VolumeInUse,
)
from pannier.core.snapshots import Snapshot, check_snapshot_name
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.holding.snapshots import Snapshots, check_layout, check_stays, snapshot_view
from pannier.host.clock import Clock
from pannier.storage.base import RollingBackDriver

log = structlog.get_logger(__name__)

ROLLED_BACK = "rolled back"
"""What a volume's history calls it."""


class Rollback:
    """Takes volumes back."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        use: Use,
        replicator: Replicator,
        switching: Switching,
        acknowledging: Acknowledging,
        handovers: Handovers,
        snapshots: Snapshots,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._use = use
        self._replicator = replicator
        self._switching = switching
        self._acknowledging = acknowledging
        self._handovers = handovers
        self._snapshots = snapshots
        self._peers = peers
        self._clock = clock

    async def roll_back(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        """Take a volume back to a snapshot, wherever it is held. See :meth:`roll_back_here`.

        Raises:
            PeerUnavailable: its holder does not answer.
        """
        check_snapshot_name(snapshot)
        volume = (await self._cluster.fresh(name)).record
        if volume.grant.node == self._cluster.node:
            return await self.roll_back_here(name, snapshot, actor=actor)
        holder = self._cluster.holder_of(volume)
        try:
            return await self._peers.to(holder).peer_roll_back(name, snapshot, actor=actor)
        except PeerUnavailable as error:
            raise holder_unreachable(volume, error) from error

    async def check(self, name: str, snapshot: str) -> None:
        """Check, before a service is stopped for it, that a volume can be taken back to a snapshot.

        Raises:
            VolumeNotFound; NotFound: it has no such snapshot.
            Conflict: its holder does not have the snapshot, or it has as many as it can have.
            PeerUnavailable: its holder does not answer.
        """
        volume = (await self._cluster.fresh(name)).record
        check_layout(volume)
        volume.check_may_add(_name_of_replaced(volume, self._clock.unix()))
        found, holder = await self._snapshots.show(name, snapshot), volume.grant.node
        if holder in (found.silent or ()):
            raise holder_unreachable(volume, PeerUnavailable(f"node {holder} is silent"))
        if holder not in (found.on or ()):
            raise _not_here(volume, found.name)

    async def roll_back_here(self, name: str, snapshot: str, *, actor: str) -> SnapshotView:
        """Take a volume that is held here back to a snapshot. Returns the snapshot that has what it was before.

        Raises:
            VolumeNotFound; NotFound: it has no such snapshot; VolumeInUse: somebody uses it.
            Conflict: the snapshot is not on this node, the volume is no image, has as many snapshots as it can have, or is on its
                way to another node; NotHolder, Stale.
            StorageError: the disk refused. Then the volume is what it was.
            StoreUnavailable: nothing was changed. OutcomeUnknown: it may be rolled back, and a copy may not have that.
        """
        volume = (await self._cluster.fresh(name)).record
        check_layout(volume)
        async with self._custody.lock(volume):
            await self._check_unused(volume)
            volume = (await self._custody.take_up(volume)).record
            wanted, at = volume.snapshot(snapshot), self._clock.unix()
            driver = await self._driver_with(wanted, volume)
            replaced = _name_of_replaced(volume, at)
            volume.check_may_add(replaced)
            await self._drivers.check_disk(volume)
            self._switching.begin(volume)  # no generation is made meanwhile
            try:
                await self._replicator.pause(volume)
                await self._custody.take_down(volume)
                kept = await self._replace(
                    volume, wanted, driver, name=replaced, actor=actor, at=at
                )
            finally:
                self._switching.end(volume)
            log.warning("volume.rolled-back", volume=name, to=snapshot, before=kept.name, by=actor)
            await self._reach_copies(volume, kept)
        detail = f"to {snapshot}, by {actor}; what it was before is {kept.name}"
        await self._custody.note(volume, ROLLED_BACK, detail)
        return snapshot_view(volume, kept)

    async def _check_unused(self, volume: Volume) -> None:
        if await self._use.in_use(volume):
            users = await self._use.users(volume)
            raise VolumeInUse(
                f"volume {volume.name} is in use on node {self._cluster.node} by {', '.join(users)}",
                remedy="stop and remove that first, or if it is a Swarm service: --stop-service; nothing was changed",
            )
        check_stays(volume, self._handovers)

    async def _driver_with(self, wanted: Snapshot, volume: Volume) -> RollingBackDriver:
        driver = self._drivers.of(volume)
        if not isinstance(driver, RollingBackDriver):
            raise Conflict(f"the driver of volume {volume.name} cannot take it back")
        if wanted.generation not in (await driver.inspect(volume.id)).generations:
            raise _not_here(volume, wanted.name)
        return driver

    async def _replace(
        self,
        volume: Volume,
        wanted: Snapshot,
        driver: RollingBackDriver,
        *,
        name: str,
        actor: str,
        at: float,
    ) -> Snapshot:
        """Name what there is, and make it what the snapshot is. If it fails, the volume is one or the other, and writable."""
        epoch = volume.grant.epoch
        try:
            last = await driver.seal(volume.id, epoch=epoch)
            kept = Snapshot(name=name, generation=last, made_at=at)
            await self._snapshots.add(volume, kept, actor=actor)
            await driver.roll_back(volume.id, wanted.generation, epoch=epoch)
        except BaseException:
            await driver.unseal(volume.id, epoch=epoch)
            raise
        return kept

    async def _reach_copies(self, volume: Volume, kept: Snapshot) -> None:
        if volume.spec.copies == 1:
            return
        try:
            await self._acknowledging.begin(volume)
        except PannierError as error:
            raise OutcomeUnknown(
                f"volume {volume.name} was rolled back on node {self._cluster.node}, and not every copy in sync has that: "
                f"{error.message}",
                remedy=f"the copies get it by themselves; what it was before is its snapshot {kept.name}",
            ) from error


def _not_here(volume: Volume, snapshot: str) -> Conflict:
    return Conflict(
        f"node {volume.grant.node}, which holds volume {volume.name}, does not have its snapshot {snapshot}",
        remedy=f"move it to a node that has it: pannier volume snapshot show {volume.name} {snapshot}",
    )


def _name_of_replaced(volume: Volume, at: float) -> str:
    """A name that no snapshot of the volume has, with a Unix time in it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    taken = {each.name for each in volume.snapshots}
    name, number = f"before-rollback-{stamp}", 2
    while name in taken:
        name, number = f"before-rollback-{stamp}-{number}", number + 1
    return name
