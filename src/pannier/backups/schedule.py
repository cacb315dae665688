"""Backups that are made by themselves, as a volume's option says.

The volume's holder begins them, one after the other. Before that it notes the hour, day or week in the store by compare-and-swap: so there is one in
each, also if the holder changes. What it notes says that nothing is known of the backup's end, until one is: if power fails in between, it is tried again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from pannier.backups.running import Backups
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.core.backup_plans import (
    BEGUN,
    BackupPlan,
    BackupState,
    is_due,
    parse_plan,
)
from pannier.core.errors import PannierError, Stale
from pannier.core.pace import BackupPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)

ACTOR = "its option backup"
"""Who is recorded as having asked."""


class BackupSchedule:
    """Makes the backups that are due of volumes that this node holds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        records: BackupRecords,
        backups: Backups,
        clock: Clock,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._backups = backups
        self._clock = clock
        self._pace = pace

    async def run(self) -> None:
        """Look again and again, for ever: run as a task."""
        while True:
            await self.look()
            await asyncio.sleep(self._pace.look)

    async def look(self) -> None:
        """Make what is due now."""
        for volume in self._cluster.catalog.volumes():
            if volume.spec.backup and volume.grant.node == self._cluster.node:
                try:
                    await self._one(volume, parse_plan(volume.spec.backup))
                except (PannierError, OSError) as error:
                    log.warning("backup.not-scheduled", volume=volume.name, error=str(error))
        try:
            await self._forget_gone()
        except PannierError as error:
            log.info("backups.not-forgotten", error=str(error))

    async def _one(self, volume: Volume, plan: BackupPlan) -> None:
        found, now = await self._records.state(volume.id), self._clock.unix()
        known = None if found is None else found.record
        if not is_due(plan, known, now=now, retry=self._pace.retry):
            return
        begun = BackupState(plan=str(plan), slot=plan.slot(now), tried_at=now, failure=BEGUN)
        if known is not None:
            begun = replace(
                known,
                plan=begun.plan,
                slot=begun.slot,
                tried_at=begun.tried_at,
                failure=begun.failure,
            )
        try:
            revision = await self._records.put_state(
                volume.id, begun, expect=ABSENT if found is None else found.revision
            )
        except Stale:  # another node was faster: it holds the volume by now
            return
        state = await self._made(volume, plan, begun)
        await self._records.put_state(volume.id, state, expect=revision)

    async def _made(self, volume: Volume, plan: BackupPlan, begun: BackupState) -> BackupState:
        """What became of it."""
        try:
            made = await self._backups.run(volume.name, target=plan.target, plan=plan, actor=ACTOR)
        except PannierError as error:
            log.warning("backup.failed", volume=volume.name, target=plan.target, error=str(error))
            return replace(begun, failure=error.message)
        return replace(
            begun,
            failure="",
            backup=made.id,
            made_at=self._clock.unix(),
            node=made.node or "",
            not_removed=made.not_removed,
        )

    async def _forget_gone(self) -> None:
        """Forget what is remembered of volumes that are gone for ever."""
        states = await self._records.states()
        known = {volume.id for volume in self._cluster.catalog.volumes()}
        unknown = {key: state for key, state in states.items() if key not in known}
        if unknown:
            there = {volume.id for volume in await self._cluster.registry.every_volume()}
            for key in unknown.keys() - there:
                await self._forget(key, unknown[key])

    async def _forget(self, volume_id: str, state: Versioned[BackupState]) -> None:
        try:
            await self._records.put_state(volume_id, None, expect=state.revision)
        except Stale:
            return  # another node does the same
