"""What users and other nodes are shown of volumes, from memory and from this node's disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pannier.agent.custody import Custody
from pannier.contract.views import CopyView, TransferView, TrashView
from pannier.contract.volumes import (
    LiveVolumeView,
    RememberedVolumeView,
    VolumeCopyView,
    VolumeView,
)
from pannier.contract.words import HolderState
from pannier.copies.replication import Replicator
from pannier.core.options import describe_spec
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.host.clock import boottime, rfc3339
from pannier.node.upkeep import TRASH_SECONDS

Backlog = Callable[[str], tuple[int, float]]
"""Of a volume, how many sync calls wait here, and for how many seconds the first."""


class VolumeViews:
    """Builds the views of volumes."""

    def __init__(
        self,
        custody: Custody,
        handovers: Handovers,
        replicator: Replicator,
        *,
        backlog: Backlog = lambda name: (0, 0.0),
    ) -> None:
        self._custody = custody
        self._handovers = handovers
        self._replicator = replicator
        self._backlog = backlog

    def listed(self, volume: Volume) -> VolumeView:
        """One volume, from memory."""
        return VolumeView(**self._facts(volume))

    def remembered(self, volume: Volume, *, copies_on: list[str]) -> RememberedVolumeView:
        """A volume whose holder does not answer."""
        return RememberedVolumeView(**self._facts(volume), copies_on=copies_on)

    async def live(self, volume: Volume) -> LiveVolumeView:
        """A volume that this node holds, with what only the holder knows."""
        custody = self._custody
        generations = await self.generations(volume)
        calls, waiting = self._backlog(volume.name)
        return LiveVolumeView(
            **self._facts(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            copies=self._copies(volume),
            copies_on=[custody.node],
            used_bytes=await custody.driver(volume).used_bytes(volume.id),
            in_use_by=await custody.users(volume),
            mountpoint=str(custody.mounts.path(volume.name)),
            transfer=self._transfer(volume),
            sync_calls=calls,
            sync_waiting_seconds=round(waiting, 3),
        )

    async def copy(self, volume: Volume) -> VolumeCopyView:
        """A volume that another node holds, with whether a copy is here."""
        generations = await self.generations(volume)
        return VolumeCopyView(
            **self._facts(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            copies_on=[self._custody.node] if generations else [],
        )

    def _facts(self, volume: Volume) -> dict[str, Any]:
        """The fields that all views of a volume have."""
        up = self._custody.catalog.is_up(volume.grant.node)
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
        }

    async def generations(self, volume: Volume) -> list[str]:
        """All generations on this node, oldest first; empty also while its pool is away."""
        driver = self._custody.drivers.get(volume.spec.driver)
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
        now = boottime()
        return [
            CopyView(
                node=node,
                in_sync=node in volume.in_sync,
                generation=str(progress.generation) if progress.generation else None,
                lag_seconds=None
                if progress.current_at is None
                else round(max(now - progress.current_at, 0.0), 1),
                error=progress.error,
            )
            for node, progress in self._replicator.progress(volume).items()
            if node in volume.replicas
        ]


def trash_view(volume: Volume) -> TrashView:
    """A removed volume."""
    removed_at = volume.removed_at or 0.0
    return TrashView(
        name=volume.name,
        id=volume.id,
        holder=volume.grant.node,
        removed_at=rfc3339(removed_at),
        expires_at=rfc3339(removed_at + TRASH_SECONDS),
    )
