"""Restore drills: whether what is at a target can be brought back, and used.

A backup becomes a scratch volume on the node that is asked, and restic compares all its bytes with what was read when the backup was
made. A command of the person's may look at it, in a container without network. Then everything is removed again, and the store has when that was, and how it went.
"""

from __future__ import annotations

import secrets as random
from contextlib import suppress
from dataclasses import replace

import structlog

from pannier.backups.history import DRILL_FAILED, DRILLED, BackupHistory
from pannier.backups.progress import Report, unreported
from pannier.backups.restoring import Restoring
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.views import DrillView
from pannier.contract.words import BackupPhase
from pannier.core.backups import BackupDrill, check_target_name
from pannier.core.errors import BackupFailed, InvalidInput, NotFound, PannierError, Stale
from pannier.core.pace import BackupPace
from pannier.core.volume import Volume
from pannier.host import process
from pannier.host.clock import Clock, rfc3339
from pannier.host.process import Failing
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)

AT = "/data"
"""Where the container has the volume."""
_PREFIX = "drill-"
_LABEL, _HERE = "pannier.drill", "scratch"
"""What scratch volumes are called, and their label: of one that is cut off nothing else tells what it is."""
_DOCKER = Failing(error=BackupFailed, missing=BackupFailed, install="install Docker's client")


class Drills:
    """Runs drills, and remembers them."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        records: BackupRecords,
        restoring: Restoring,
        history: BackupHistory,
        clock: Clock,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._restoring = restoring
        self._history = history
        self._clock = clock
        self._pace = pace
        self._under_way: set[str] = set()
        """Names of the scratch volumes of this run of the daemon."""

    async def all(self) -> list[DrillView]:
        """The last drill of each volume at each target."""
        return [_view(each) for each in await self._records.drills()]

    async def run(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        check: str | None,
        image: str | None,
        actor: str,
        report: Report = unreported,
    ) -> DrillView:
        """Bring a backup back, look at it, and remove it again.

        Args:
            backup: the beginning of its id; None for the newest.
            check: a shell command, which finds the volume at :data:`AT`; image: in which it runs. Both, or neither.

        Raises:
            InvalidInput: one of both is missing. NotFound: there is no such target or backup.
            BackupFailed: what came back is not what was put there, or the check failed.
            And what :meth:`Restoring.scratch` and :meth:`Restoring.discard` raise. Each of them counts as a failed drill, apart from
            InvalidInput.
        """
        if (check is None) is not (image is None):
            raise InvalidInput(
                "a check needs a command and an image",
                remedy="give both: --check COMMAND --image IMAGE",
            )
        await self._records.target(check_target_name(target))
        before = await self._records.drill(target, volume)
        began, chosen = self._clock.now(), ""
        try:
            chosen = await self._drill(
                target, volume, backup, check, image, actor=actor, report=report
            )
        except (InvalidInput, NotFound):  # nothing was tried
            raise
        except PannierError as error:
            with suppress(PannierError):  # the first error is the one to tell
                await self._note(before, target, volume, backup or "", failure=error.message)
            detail = f"from {target}, by {actor}: {error.message}"
            await self._history.note(volume, DRILL_FAILED, detail)
            raise
        done = await self._note(before, target, volume, chosen, failure="")
        await self._history.note(volume, DRILLED, f"{chosen} from {target}, by {actor}")
        log.info("backup.drill", volume=volume, target=target, backup=chosen, by=actor)
        return replace(_view(done), seconds=round(self._clock.now() - began, 1))

    async def _drill(
        self,
        target: str,
        volume: str,
        backup: str | None,
        check: str | None,
        image: str | None,
        *,
        actor: str,
        report: Report,
    ) -> str:
        """The id of the backup that came back whole."""
        name = f"{_PREFIX}{random.token_hex(6)}"
        self._under_way.add(name)
        try:
            made, chosen = await self._restoring.scratch(
                target,
                volume,
                backup=backup,
                new=name,
                label=f"{_LABEL}={_HERE}",
                actor=actor,
                report=report,
            )
            try:
                if check is not None and image is not None:
                    report(BackupProgress(phase=BackupPhase.CHECKING, node=self._cluster.node))
                    await self._check(made, check, image)
            finally:
                await self._restoring.discard(made, actor=actor)
        finally:
            self._under_way.discard(name)
        return chosen.id

    async def tidy(self) -> None:
        """Remove what drills have left on this node that were cut off, with their containers. What resists is tried again later."""
        for volume in self._cluster.catalog.volumes():
            ours = volume.grant.node == self._cluster.node and volume.name.startswith(_PREFIX)
            if not ours or volume.spec.labels.get(_LABEL) != _HERE:
                continue
            if volume.name in self._under_way:
                continue
            try:
                await self._remove_container(volume.name)
                await self._restoring.discard(volume, actor="a drill that was cut off")
            except PannierError as error:
                log.warning("drill.rest-stays", volume=volume.name, error=str(error))

    async def _check(self, volume: Volume, check: str, image: str) -> None:
        """Run the command.

        Raises:
            BackupFailed: it failed, did not end, or could not be started.
        """
        mount = ("--volume-driver", "pannier", "-v", f"{volume.name}:{AT}")
        shut = ("--network", "none", "--security-opt", "no-new-privileges")
        name = volume.name  # a container's name is no volume's
        try:
            done = await process.run(
                ["docker", "run", "--name", name, *shut, *mount, image, "sh", "-c", check],
                timeout_s=self._pace.check,
                check=False,
                failing=_DOCKER,
            )
        finally:
            await self._remove_container(name)
        if done.status:
            raise BackupFailed(
                f"the check of what came back failed: it ended with {done.status}: {done.last_words}",
                remedy=f"restore the backup and look: the volume is at {AT} in the check's container",
            )

    async def _remove_container(self, name: str) -> None:
        await process.run(
            ["docker", "rm", "-f", name],
            timeout_s=self._pace.answer,
            check=False,
            failing=_DOCKER,
        )

    async def _note(
        self,
        before: Versioned[BackupDrill] | None,
        target: str,
        volume: str,
        backup: str,
        *,
        failure: str,
    ) -> BackupDrill:
        """Remember it. Of two at the same time, either may stay."""
        at = self._clock.unix()
        good = before.record.good_at if before is not None else None
        drill = BackupDrill(
            target=target,
            volume=volume,
            backup=backup,
            at=at,
            failure=failure,
            good_at=good if failure else at,
            slot=before.record.slot if before is not None else "",
        )
        try:
            await self._records.put_drill(drill, expect=before.revision if before else ABSENT)
        except Stale:
            log.info("backup.drill-not-noted", volume=volume, target=target)
        return drill


def _view(drill: BackupDrill) -> DrillView:
    return DrillView(
        target=drill.target,
        volume=drill.volume,
        backup=drill.backup,
        at=rfc3339(drill.at),
        failure=drill.failure,
        last_good=None if drill.good_at is None else rfc3339(drill.good_at),
    )
