"""Backing up a volume: a snapshot, read on a node that does not hold it where there is one.

The node that is asked makes the snapshot, and asks one node after another that has it to put it there: first those where the
application does not feel it, then the holder. The snapshot goes when the backup is there. What power failures leave is a
snapshot that goes by itself, and at the target parts of files, which the next prune removes.
"""

from __future__ import annotations

import time
from contextlib import aclosing

import structlog

from pannier.backups.about import ABOUT, DATA, about
from pannier.backups.history import BACKED_UP, FAILED, NOT_REMOVED, BackupHistory
from pannier.backups.progress import Report, Status, unreported
from pannier.backups.repository import Repository
from pannier.backups.targets import Targets
from pannier.backups.workroom import Workroom
from pannier.cluster.cluster import Cluster
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.peers import Peers
from pannier.contract.views import BackupView, SnapshotView
from pannier.contract.words import BackupPhase
from pannier.core.backup_plans import BackupPlan
from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    NotFound,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    TargetUnavailable,
)
from pannier.core.pace import BackupPace
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume
from pannier.holding.looking import Looking
from pannier.holding.snapshots import Snapshots, check_layout
from pannier.host.clock import Clock, rfc3339

log = structlog.get_logger(__name__)

_ANOTHER_MAY = (PeerUnavailable, TargetUnavailable, DeadlineExceeded, OutcomeUnknown)
"""Of a node that was asked to read a backup: another one may be able to. If both make one, that is no harm."""


def snapshot_name(target: str, at: float) -> str:
    """Of a snapshot that is backed up to a target, with a Unix time in it."""
    return f"backup-{target}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at))}"


class Backups:
    """Makes backups."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        snapshots: Snapshots,
        looking: Looking,
        targets: Targets,
        workroom: Workroom,
        peers: Peers,
        history: BackupHistory,
        clock: Clock,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._snapshots = snapshots
        self._looking = looking
        self._targets = targets
        self._workroom = workroom
        self._peers = peers
        self._history = history
        self._clock = clock
        self._pace = pace
        self._running: set[str] = set()
        """Ids of the volumes that this node is just reading."""

    async def run(
        self,
        name: str,
        *,
        target: str | None,
        plan: BackupPlan | None = None,
        actor: str,
        report: Report = unreported,
    ) -> BackupView:
        """Back a volume up, also one that is in use.

        Args:
            target: where to; None for the only target.
            plan: which of its backups stay, where the others are to be removed after that.

        Raises:
            VolumeNotFound; NotFound: there is no such target. InvalidInput: none was named, and there is not exactly one.
            Conflict: the volume is no image, a backup of it is under way, or the target is only to be read or another one by now.
            TargetUnavailable: no node that has the snapshot reaches the target.
            And what :meth:`Snapshots.create` and :class:`~pannier.backups.repository.Repository` raise. No backup was made then.
        """
        chosen = (await self._targets.chosen(target)).name
        volume = (await self._cluster.fresh(name)).record
        check_layout(volume)
        try:
            made = await self._snapshots.create(
                name,
                snapshot_name(chosen, self._clock.unix()),
                keep_seconds=self._pace.snapshot,
                labels={"backup": chosen},
                actor=actor,
            )
        except PannierError as error:
            await self._failed(volume, chosen, error, actor=actor)
            raise
        return await self.put(volume, made, chosen, plan, actor=actor, report=report)

    async def put(
        self,
        volume: Volume,
        made: SnapshotView,
        target: str,
        plan: BackupPlan | None,
        *,
        actor: str,
        report: Report,
    ) -> BackupView:
        """Put a snapshot at a target, and remove the snapshot. See :meth:`run`."""
        try:
            try:
                backup = await self._somewhere(
                    volume, made, target, plan, actor=actor, report=report
                )
            finally:
                await self._remove(volume.name, made.name, actor=actor)
        except PannierError as error:
            await self._failed(volume, target, error, actor=actor)
            raise
        detail = f"to {target} as {backup.id}, read on node {backup.node}, by {actor}"
        await self._history.note(volume.name, BACKED_UP, detail, id=volume.id)
        if backup.not_removed:
            detail = f"at {target}: {backup.not_removed}"
            await self._history.note(volume.name, NOT_REMOVED, detail, id=volume.id)
        return backup

    async def _failed(
        self, volume: Volume, target: str, error: PannierError, *, actor: str
    ) -> None:
        detail = f"to {target}, by {actor}: {error.message}"
        await self._history.note(volume.name, FAILED, detail, id=volume.id)

    async def _somewhere(
        self,
        volume: Volume,
        made: SnapshotView,
        target: str,
        plan: BackupPlan | None,
        *,
        actor: str,
        report: Report,
    ) -> BackupView:
        """Have one of the nodes that have the snapshot put it there."""
        have = made.on or []
        first = [node for node in have if node != volume.grant.node]
        why: list[str] = []
        for node in (*first, *(node for node in have if node not in first)):
            try:
                return await self._on(
                    node, volume, made.name, target, plan, actor=actor, report=report
                )
            except _ANOTHER_MAY as error:
                last: PannierError = error
            except NotFound as error:  # it runs an earlier version
                if type(error) is not NotFound:
                    raise
                last = error
            log.info("backup.not-here", volume=volume.name, node=node, error=str(last))
            why.append(f"{node}: {last.message}")
        raise TargetUnavailable(
            f"no node that has volume {volume.name} reaches backup target {target}: {'; '.join(why)}",
            remedy="mend one of these, then try again",
        )

    async def _on(
        self,
        node: str,
        volume: Volume,
        snapshot: str,
        target: str,
        plan: BackupPlan | None,
        *,
        actor: str,
        report: Report,
    ) -> BackupView:
        if node == self._cluster.node:
            return await self.run_here(
                volume.name,
                snapshot=snapshot,
                target=target,
                plan=plan,
                actor=actor,
                report=report,
            )
        record = self._cluster.catalog.node(node)
        if record is None or not self._cluster.catalog.is_up(node):
            raise PeerUnavailable(f"node {node} is down")
        try:
            peer = self._peers.to(record)
        except OSError as error:
            raise PeerUnavailable(f"this node's certificate cannot be read: {error}") from error
        steps = peer.peer_put_backup(
            volume.name,
            snapshot=snapshot,
            target=target,
            plan=None if plan is None else str(plan),
            actor=actor,
        )
        async with aclosing(steps):
            async for step in steps:
                if step.backup is not None:
                    return step.backup
                report(step)
        raise OutcomeUnknown(f"node {node} does not say what became of the backup")

    async def _remove(self, name: str, snapshot: str, *, actor: str) -> None:
        try:
            await self._snapshots.remove(name, snapshot, actor=actor)
        except PannierError as error:
            log.warning("backup.snapshot-stays", volume=name, snapshot=snapshot, error=str(error))

    async def run_here(
        self,
        name: str,
        *,
        snapshot: str,
        target: str,
        plan: BackupPlan | None,
        actor: str,
        report: Report,
    ) -> BackupView:
        """Put a snapshot that this node has at a target. See :meth:`run` for ``plan``.

        Raises:
            VolumeNotFound; NotFound: there is no such snapshot or target, or it is not on this node.
            Conflict: this node is just reading this volume; StorageError: the snapshot cannot be mounted.
            And what :meth:`Targets.opened` and :class:`~pannier.backups.repository.Repository` raise.
        """
        volume = (await self._cluster.fresh(name)).record
        wanted = volume.snapshot(snapshot)
        if volume.id in self._running:
            raise Conflict(
                f"node {self._cluster.node} is just backing volume {name} up",
                remedy="wait until that has ended",
            )
        self._running.add(volume.id)
        try:
            return await self._read(volume, wanted, target, plan, actor=actor, report=report)
        finally:
            self._running.discard(volume.id)

    async def _read(
        self,
        volume: Volume,
        wanted: Snapshot,
        target: str,
        plan: BackupPlan | None,
        *,
        actor: str,
        report: Report,
    ) -> BackupView:
        def tell(status: Status) -> None:
            report(self._step(BackupPhase.READING, status))

        report(self._step(BackupPhase.READING))
        generation = str(wanted.generation)
        # The same path each time, on each node: by it restic finds the backup before, and what has not changed since.
        async with (
            self._targets.opened(target) as repository,
            self._workroom.place(volume.id) as place,
        ):
            (place / ABOUT).write_bytes(about(volume, wanted))
            (place / DATA).mkdir()
            await self._looking.show(volume.name, tree=generation, at=str(place / DATA))
            written = await repository.back_up(
                (DATA, ABOUT),
                mark=ABOUT,
                directory=place,
                host=self._targets.host,
                tags={
                    "volume": volume.name,
                    "id": volume.id,
                    "generation": generation,
                    "snapshot": wanted.name,
                },
                told=tell,
            )
            not_removed = ""
            if plan is not None:
                report(self._step(BackupPhase.REMOVING))
                not_removed = await self._forget(repository, volume, plan)
        log.info(
            "volume.backed-up",
            volume=volume.name,
            target=target,
            backup=written.id,
            read_files=written.changed,
            unchanged_files=written.unchanged,
            added_bytes=written.added_bytes,
            by=actor,
        )
        return BackupView(
            target=target,
            id=written.id,
            volume=volume.name,
            volume_id=volume.id,
            generation=generation,
            snapshot=wanted.name,
            made_at=rfc3339(self._clock.unix()),
            node=self._cluster.node,
            bytes=written.read_bytes,
            added_bytes=written.added_bytes,
            read_files=written.changed,
            unchanged_files=written.unchanged,
            not_removed=not_removed,
        )

    def _step(self, phase: BackupPhase, status: Status | None = None) -> BackupProgress:
        return BackupProgress(
            phase=phase,
            node=self._cluster.node,
            done_bytes=0 if status is None else status.done_bytes,
            percent=None if status is None else status.percent,
        )

    async def _forget(self, repository: Repository, volume: Volume, plan: BackupPlan) -> str:
        """Remove the backups that need not stay. The new one is there whether that works or not; the next one tries it again.

        Returns:
            Why that did not work; empty where it did.
        """
        try:
            await repository.forget(
                plan.retention,
                host=self._targets.host,
                now=self._clock.unix(),
                volume_id=volume.id,
            )
        except PannierError as error:
            log.warning("backups.not-pruned", volume=volume.name, plan=str(plan), error=str(error))
            return error.message
        return ""
