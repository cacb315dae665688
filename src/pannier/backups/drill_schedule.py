"""Restore drills that are made by themselves, as a volume's option says.

The node that has read the volume's last backup makes them: it reaches the target, and mostly does not hold the volume. The
holder does it where that node is down, or where nobody knows which one it was. Before that it notes the day, week or month in the store by
compare-and-swap: so there is one in each, whoever looks.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from pannier.backups.drills import Drills
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.core.backup_plans import BEGUN, BackupState, parse_plan
from pannier.core.backups import BackupDrill
from pannier.core.drill_plans import DrillPlan, drill_is_due, first_backup_is_due, parse_drill_plan
from pannier.core.errors import PannierError, Stale
from pannier.core.pace import BackupPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)

_ACTOR = "its option drill"
"""Who is recorded as having asked."""


class DrillSchedule:
    """Makes the drills that are due and this node's to make, one after the other."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        records: BackupRecords,
        drills: Drills,
        clock: Clock,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._drills = drills
        self._clock = clock
        self._pace = pace

    async def run(self) -> None:
        """Look again and again, for ever: run as a task."""
        while True:
            await self.look()
            await asyncio.sleep(self._pace.look)

    async def look(self) -> None:
        """Remove what drills have left here that were cut off, and make what is due now."""
        await self._drills.tidy()
        for volume in self._cluster.catalog.volumes():
            if volume.spec.drill:
                try:
                    await self._one(volume, parse_drill_plan(volume.spec.drill))
                except (PannierError, OSError) as error:
                    log.warning("drill.not-scheduled", volume=volume.name, error=str(error))

    async def _one(self, volume: Volume, plan: DrillPlan) -> None:
        noted = await self._records.state(volume.id)
        state = None if noted is None else noted.record
        if (
            first_backup_is_due(volume, plan, state)
            or self._whose(volume, plan, state) != self._cluster.node
        ):
            return
        found, now = await self._records.drill(plan.target, volume.name), self._clock.unix()
        last = None if found is None else found.record
        if not drill_is_due(plan, last, now=now, retry=self._pace.drill_retry):
            return
        begun = BackupDrill(
            target=plan.target,
            volume=volume.name,
            backup="",
            at=now,
            failure=BEGUN,
            good_at=None if last is None else last.good_at,
            slot=plan.slot(now),
        )
        try:
            revision = await self._records.put_drill(
                begun, expect=ABSENT if found is None else found.revision
            )
        except Stale:  # another node was faster
            return
        await self._made(plan, Versioned(begun, revision))

    def _whose(self, volume: Volume, plan: DrillPlan, state: BackupState | None) -> str:
        """The node that makes it."""
        if state is None or not self._cluster.catalog.is_up(state.node):
            return volume.grant.node
        same = parse_plan(state.plan).target == plan.target
        return state.node if same else volume.grant.node

    async def _made(self, plan: DrillPlan, begun: Versioned[BackupDrill]) -> None:
        name = begun.record.volume
        try:
            await self._drills.run(
                plan.target, name, backup=None, check=None, image=None, actor=_ACTOR
            )
        except PannierError as error:
            log.warning("drill.failed", volume=name, target=plan.target, error=str(error))
            now = await self._records.drill(plan.target, name)
            if now is not None and now.revision == begun.revision:  # not even begun: no backup
                failed = replace(begun.record, failure=error.message)
                await self._records.put_drill(failed, expect=now.revision)
