"""Long work with backups, as people ask for it: each as a stream that tells how it goes on, and at last what came of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from pannier.backups.drills import Drills
from pannier.backups.progress import Followed, Report
from pannier.backups.restoring import Restoring
from pannier.backups.running import Backups
from pannier.backups.services import ServiceBackups
from pannier.backups.targets import Targets
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.volumes import VolumeView
from pannier.contract.words import BackupPhase
from pannier.core.backup_plans import BackupPlan
from pannier.core.volume import Volume


class BackupWork:
    """All of it, on this node."""

    def __init__(
        self,
        *,
        node: str,
        backups: Backups,
        services: ServiceBackups,
        restoring: Restoring,
        drills: Drills,
        targets: Targets,
        listed: Callable[[Volume], VolumeView],
    ) -> None:
        """Put it together.

        Args:
            node: this one. listed: a volume as lists show it.
        """
        self._node = node
        self._backups = backups
        self._services = services
        self._restoring = restoring
        self._drills = drills
        self._targets = targets
        self._listed = listed
        self._followed = Followed(node=node)

    def back_up(
        self, name: str, *, target: str | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`Backups.run`."""

        async def work(report: Report) -> BackupProgress:
            made = await self._backups.run(name, target=target, actor=actor, report=report)
            return BackupProgress(phase=BackupPhase.DONE, node=self._node, backup=made)

        return self._followed.follow(BackupPhase.SNAPSHOT, work)

    def back_up_service(
        self, service: str, *, target: str | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`ServiceBackups.run`."""

        async def work(report: Report) -> BackupProgress:
            made = await self._services.run(service, target=target, actor=actor, report=report)
            return BackupProgress(phase=BackupPhase.DONE, node=self._node, backups=made)

        return self._followed.follow(BackupPhase.SNAPSHOT, work)

    def put_there(
        self, name: str, *, snapshot: str, target: str, plan: BackupPlan | None, actor: str
    ) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`Backups.run_here`."""

        async def work(report: Report) -> BackupProgress:
            made = await self._backups.run_here(
                name, snapshot=snapshot, target=target, plan=plan, actor=actor, report=report
            )
            return BackupProgress(phase=BackupPhase.DONE, node=self._node, backup=made)

        return self._followed.follow(BackupPhase.READING, work)

    def restore(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        new: str,
        options: Mapping[str, str],
        actor: str,
    ) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`Restoring.restore`."""

        async def work(report: Report) -> BackupProgress:
            made = await self._restoring.restore(
                target,
                volume,
                backup=backup,
                new=new,
                options=options,
                actor=actor,
                report=report,
            )
            return BackupProgress(
                phase=BackupPhase.DONE, node=self._node, restored=self._listed(made)
            )

        return self._followed.follow(BackupPhase.RESTORING, work)

    def drill(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        check: str | None,
        image: str | None,
        actor: str,
    ) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`Drills.run`."""

        async def work(report: Report) -> BackupProgress:
            made = await self._drills.run(
                target,
                volume,
                backup=backup,
                check=check,
                image=image,
                actor=actor,
                report=report,
            )
            return BackupProgress(phase=BackupPhase.DONE, node=self._node, drill=made)

        return self._followed.follow(BackupPhase.RESTORING, work)

    def verify(self, target: str) -> AsyncGenerator[BackupProgress, None]:
        """See :meth:`Targets.verify`."""

        async def work(report: Report) -> BackupProgress:
            def told(percent: int) -> None:
                report(
                    BackupProgress(phase=BackupPhase.VERIFYING, node=self._node, percent=percent)
                )

            return BackupProgress(
                phase=BackupPhase.DONE,
                node=self._node,
                verified=await self._targets.verify(target, told),
            )

        return self._followed.follow(BackupPhase.VERIFYING, work)
