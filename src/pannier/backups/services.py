"""Backups of all volumes of a Swarm service, as of one moment, led by the Swarm manager that was asked.

All volumes get their snapshots at one moment (:mod:`pannier.swarm.service_snapshots`), and each is put at the target as any other. So
one that fails keeps no other from being there.
"""

from __future__ import annotations

from dataclasses import replace

from pannier.backups.progress import Report
from pannier.backups.running import Backups, snapshot_name
from pannier.backups.targets import Targets
from pannier.cluster.cluster import Cluster
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.views import BackupView, SnapshotView
from pannier.core.errors import BackupFailed, PannierError
from pannier.core.pace import BackupPace
from pannier.host.clock import Clock
from pannier.swarm.service_snapshots import ServiceSnapshots


class ServiceBackups:
    """Makes backups of services."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        snapshots: ServiceSnapshots,
        backups: Backups,
        targets: Targets,
        clock: Clock,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._snapshots = snapshots
        self._backups = backups
        self._targets = targets
        self._clock = clock
        self._pace = pace

    async def run(
        self, service: str, *, target: str | None, actor: str, report: Report
    ) -> list[BackupView]:
        """Back all volumes of a service up, one after the other, from snapshots of one moment.

        Args:
            target: where to; None for the only target.

        Raises:
            BackupFailed: some were not backed up; the others are there.
            And what :meth:`Targets.chosen` and :meth:`ServiceSnapshots.create` raise. No backup was made then.
        """
        chosen = (await self._targets.chosen(target)).name
        made = await self._snapshots.create(
            service,
            snapshot_name(chosen, self._clock.unix()),
            keep_seconds=self._pace.snapshot,
            labels={"backup": chosen},
            actor=actor,
        )
        done: list[BackupView] = []
        failed: list[str] = []
        for each in made:
            try:
                done.append(await self._one(each, chosen, actor=actor, report=report))
            except PannierError as error:
                failed.append(f"{each.volume}: {error.message}")
        if failed:
            raise BackupFailed(
                f"{len(failed)} of {len(made)} volumes of service {service} were not backed up: {'; '.join(failed)}",
                remedy="mend that, and do it again for all; the backups of the others are there",
            )
        return done

    async def _one(
        self, made: SnapshotView, target: str, *, actor: str, report: Report
    ) -> BackupView:
        def tell(progress: BackupProgress) -> None:
            report(replace(progress, volume=made.volume))

        volume = (await self._cluster.fresh(made.volume)).record
        return await self._backups.put(volume, made, target, None, actor=actor, report=tell)
