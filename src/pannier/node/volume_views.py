"""What users and other nodes are shown of volumes, from memory and from this node's disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pannier.agent.drivers import Drivers
from pannier.agent.mounts import Mounts
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.barrier.groups import Backlog
from pannier.cluster.cluster import Cluster
from pannier.contract.views import CopyView, KeptRecordView, SyncView, TransferView, TrashView
from pannier.contract.volumes import (
    LiveVolumeView,
    RememberedVolumeView,
    VolumeCopyView,
    VolumeView,
)
from pannier.contract.words import HolderState
from pannier.copies.replication import Replicator
from pannier.core.damage import open_damage
from pannier.core.line import LinePlace
from pannier.core.options import describe_spec
from pannier.core.pace import NodePace
from pannier.core.schedules import last_made
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.holding.policies import Policies
from pannier.host.clock import Clock, rfc3339
from pannier.node.quarantine import quarantine_of
from pannier.node.restored_store import doubt_of
from pannier.node.sync_views import sync_view
from pannier.node.unheld import Unheld
from pannier.storage.base import LocalCopy, SparseDriver


class VolumeViews:
    """Builds the views of volumes."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        mounts: Mounts,
        handovers: Handovers,
        replicator: Replicator,
        backlog: Callable[[str], Backlog],
        unheld: Unheld,
        room: RoomGuard,
        policies: Policies,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._use = use
        self._mounts = mounts
        self._handovers = handovers
        self._replicator = replicator
        self._backlog = backlog
        self._unheld = unheld
        self._room = room
        self._policies = policies
        self._clock = clock
        self._pace = pace

    def listed(self, volume: Volume) -> VolumeView:
        """One volume, from memory."""
        return VolumeView(**self._facts(volume))

    def remembered(self, volume: Volume, *, copies_on: list[str]) -> RememberedVolumeView:
        """A volume whose holder does not answer."""
        return RememberedVolumeView(**self._facts(volume), copies_on=copies_on)

    async def live(self, volume: Volume) -> LiveVolumeView:
        """A volume that this node holds, with what only the holder knows."""
        await self._drivers.opened(within=self._pace.listing)
        quarantine = await quarantine_of(self._drivers, volume)
        generations = [] if quarantine else await self.generations(volume)
        backlog = self._backlog(volume.name)
        return LiveVolumeView(
            **self._facts(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            quarantine=quarantine,
            copies=self._copies(volume),
            copies_on=[self._cluster.node],
            used_bytes=await self._drivers.of(volume).used_bytes(volume.id),
            in_use_by=await self._use.users(volume),
            mountpoint=str(self._mounts.path(volume.name)),
            transfer=self._transfer(volume),
            sync_calls=backlog.calls,
            sync_waiting_seconds=round(backlog.oldest_seconds, 3),
            stands_still=self._room.full(volume),
            not_held=list(self._unheld.of(volume)),
            unheld_writes=list(self._unheld.writers_of(volume)),
            sync=self._sync(volume),
            damage=[f"{line.node}: {line.detail}" for line in open_damage(volume)],
            **await self._space(volume),
        )

    def _sync(self, volume: Volume) -> SyncView | None:
        replicated = self._replicator.known(volume)
        return sync_view(replicated) if replicated is not None else None

    async def _space(self, volume: Volume) -> dict[str, Any]:
        """The fields on the volume's own file system."""
        driver = self._drivers.of(volume)
        found = await driver.space(volume.id) if isinstance(driver, SparseDriver) else None
        return asdict(found) if found is not None else {}

    async def copy(self, volume: Volume) -> VolumeCopyView:
        """A volume that another node holds, with whether a copy is here that could go on."""
        driver = self._drivers.get(volume.spec.driver)
        copy = await driver.inspect(volume.id) if driver is not None else LocalCopy()
        generations = list(map(str, copy.generations))
        lacks = await self._drivers.missing(volume) if generations else ""
        return VolumeCopyView(
            **self._facts(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            copies_on=[self._cluster.node] if generations and not lacks else [],
            record=_kept(copy.last),
            lacks=lacks,
        )

    def _facts(self, volume: Volume) -> dict[str, Any]:
        """The fields that all views of a volume have."""
        up = self._cluster.catalog.is_up(volume.grant.node)
        return {
            "name": volume.name,
            "id": volume.id,
            "holder": volume.grant.node,
            "holder_state": HolderState.UP if up else HolderState.DOWN,
            "epoch": volume.grant.epoch,
            "driver": volume.spec.driver,
            "options": describe_spec(volume.spec),
            "in_sync": list(volume.in_sync),
            "created_at": rfc3339(volume.created_at),
            "doubt": doubt_of(self._cluster, volume.name),
            "cloned_from": volume.origin.source if volume.origin is not None else "",
            "schedule": str(self._policies.of(volume) or ""),
            "last_scheduled": last.name if (last := last_made(volume.snapshots)) else None,
        }

    async def generations(self, volume: Volume) -> list[str]:
        """All generations on this node, oldest first; empty also while its pool is not open."""
        driver = self._drivers.get(volume.spec.driver)
        if driver is None:
            return []
        return [str(one) for one in (await driver.inspect(volume.id)).generations]

    def _transfer(self, volume: Volume) -> TransferView | None:
        running = self._handovers.of(volume)
        if not running:
            return None
        return TransferView(
            target=running.target.name,
            phase=running.phase,
            round=running.round,
            sent_bytes=running.sent_bytes,
            started_at=rfc3339(running.started_at),
        )

    def _copies(self, volume: Volume) -> list[CopyView]:
        now = self._clock.now()
        records = {node: self._cluster.catalog.node(node) for node in volume.replicas}
        replicated = self._replicator.known(volume)
        line = replicated.line if replicated is not None else None
        return [
            CopyView(
                node=node,
                in_sync=node in volume.in_sync,
                generation=str(progress.generation) if progress.generation else None,
                lag_seconds=None
                if progress.current_at is None
                else round(max(now - progress.current_at, 0.0), 1),
                error=progress.error,
                follows=progress.follows(line),
                record_error=progress.record_error,
                sent_anew=progress.tries.why,
                refused=progress.tries.whole,
                record=_kept(progress.record),
                room_percent=record.room * 10 if (record := records[node]) else None,
            )
            for node, progress in self._replicator.progress(volume).items()
            if node in volume.replicas
        ]

    def trashed(self, volume: Volume) -> TrashView:
        """A removed volume."""
        removed_at = volume.removed_at or 0.0
        holder = self._cluster.catalog.node(volume.grant.node)
        kept_seconds = holder.trash_seconds if holder is not None else self._pace.trash
        return TrashView(
            name=volume.name,
            id=volume.id,
            holder=volume.grant.node,
            removed_at=rfc3339(removed_at),
            expires_at=rfc3339(removed_at + kept_seconds),
        )


def _kept(place: LinePlace | None) -> KeptRecordView | None:
    if place is None:
        return None
    return KeptRecordView(run=place.run, generation=str(place.generation), number=place.number)
