"""What ``pannier doctor`` says of backups: those that were to be made and were not, and drills that failed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.backup_plans import BEGUN, parse_plan, what_is_wrong
from pannier.core.drill_plans import parse_drill_plan, what_drills_lack
from pannier.host.clock import Clock


class BackupFindings:
    """Looks at all drills, and at all volumes with the options ``backup`` and ``drill``."""

    def __init__(self, *, cluster: Cluster, records: BackupRecords, clock: Clock) -> None:
        self._cluster = cluster
        self._records = records
        self._clock = clock

    async def backups(self) -> AsyncIterator[FindingView]:
        """What is wrong. Nothing is asked of any target."""
        drills = {(each.target, each.volume): each for each in await self._records.drills()}
        now = self._clock.unix()
        for drill in drills.values():
            if drill.failure not in ("", BEGUN):
                yield FindingView(
                    level=Level.WARNING,
                    subject=f"backup of volume {drill.volume}",
                    what=f"the last restore drill from {drill.target} failed: {drill.failure}",
                    remedy=f"pannier backup drill {drill.volume} --target {drill.target} tries it again",
                )
        for volume in self._cluster.catalog.volumes():
            if volume.spec.drill:
                tried = parse_drill_plan(volume.spec.drill)
                lacks = what_drills_lack(tried, drills.get((tried.target, volume.name)), now=now)
                if lacks:
                    yield FindingView(
                        level=Level.WARNING,
                        subject=f"backup of volume {volume.name}",
                        what=lacks,
                        remedy=f"pannier backup drill {volume.name} --target {tried.target} makes one now and says what is wrong",
                    )
        planned = [each for each in self._cluster.catalog.volumes() if each.spec.backup]
        if not planned:
            return
        states = await self._records.states()
        for volume in planned:
            plan, found = parse_plan(volume.spec.backup), states.get(volume.id)
            wrong = what_is_wrong(plan, None if found is None else found.record, now=now)
            if wrong:
                yield FindingView(
                    level=Level.WARNING,
                    subject=f"backup of volume {volume.name}",
                    what=wrong,
                    remedy=f"pannier backup run {volume.name} --target {plan.target} tries it now and says why",
                )
