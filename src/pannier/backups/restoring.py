"""Bringing a backup back, as a new volume.

It is made on the node that is asked, with the options that it had, and gets its name when it is whole, as what is imported
does (:mod:`pannier.holding.imports`). So no container ever begins with a part of it, and what a power cut leaves is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from pannier.agent.room import RoomGuard
from pannier.backups.about import ABOUT, DATA, read_about
from pannier.backups.progress import Report, share_of, unreported
from pannier.backups.repository import Repository
from pannier.backups.targets import Targets
from pannier.backups.workroom import Workroom
from pannier.contract.backup_progress import BackupProgress
from pannier.contract.words import BackupPhase
from pannier.core.backups import StoredBackup, chosen_backup
from pannier.core.clones import taken_over
from pannier.core.complete_backups import bytes_of
from pannier.core.errors import BackupFailed, PannierError, PoolFull
from pannier.core.volume import Volume, check_name
from pannier.holding.imports import Draft, Imports
from pannier.holding.volumes import Volumes
from pannier.host.mountflags import bind
from pannier.host.threads import in_own_thread

log = structlog.get_logger(__name__)

_NOT_BROUGHT_BACK = ("nodes", "driver", "layout", "protected", "backup", "drill")
"""Options that say where the volume was, that nobody removes it, or that something is done with it by itself: many are brought back to look at
them. Backups are always of images."""
_LOOK_SECONDS = 1.0
"""Between two looks at a pool's room while it is restored into."""
_OF_SCRATCH = ("size", "uid", "gid", "mode")


class _Filling:
    """How far a volume is filled with a backup."""

    def __init__(self, draft: Draft, node: str, whole_bytes: int | None, report: Report) -> None:
        self._draft = draft
        self._node = node
        self._whole = whole_bytes
        self._report = report
        self._phase = BackupPhase.RESTORING

    def compares(self) -> None:
        """All is written: it is compared now."""
        self._phase = BackupPhase.COMPARING
        self._report(BackupProgress(phase=self._phase, node=self._node))

    async def tell(self) -> None:
        """Say how far it is."""
        if self._phase is not BackupPhase.RESTORING:
            return
        try:
            used = await self._draft.driver.used_bytes(self._draft.volume.id)
        except (PannierError, OSError):  # what hinders the work is told by the work
            return
        percent = share_of(used, self._whole)
        self._report(
            BackupProgress(phase=self._phase, node=self._node, done_bytes=used, percent=percent)
        )


class Restoring:
    """Brings backups back."""

    def __init__(
        self,
        *,
        imports: Imports,
        volumes: Volumes,
        targets: Targets,
        room: RoomGuard,
        give_up: Callable[[str, str], Awaitable[object]],
        workroom: Workroom,
        node: str,
    ) -> None:
        """Put it together.

        Args:
            node: this one.
            give_up: removes what is in the trash for ever, by a volume's id and who asks for it.
        """
        self._imports = imports
        self._volumes = volumes
        self._targets = targets
        self._room = room
        self._give_up = give_up
        self._workroom = workroom
        self._node = node

    async def restore(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        new: str,
        options: Mapping[str, str],
        actor: str,
        report: Report = unreported,
    ) -> Volume:
        """Make a new volume of a backup. Its copies are made after that, as those of every new volume.

        Args:
            volume: the name of the volume that was backed up; it need not be there any more.
            backup: the beginning of the backup's id; None for the newest.
            options: those that shall be other than they were.

        Raises:
            NotFound: there is no such target or backup. AlreadyExists: there is a volume ``new``.
            BackupFailed: what is on the disk is not what is in the backup. OutcomeUnknown: it may get its name yet.
            And what :meth:`Imports.draft`, :meth:`Targets.opened` and :class:`~pannier.backups.repository.Repository` raise.
            There is no new volume then.
        """

        def as_it_was(had: Mapping[str, str]) -> dict[str, str]:
            there = {k: v for k, v in had.items() if k not in _NOT_BROUGHT_BACK}
            return {**taken_over(there, options), **options}

        made, _ = await self._bring_back(
            target, volume, backup, new, as_it_was, actor=actor, report=report
        )
        return made

    async def scratch(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        new: str,
        label: str,
        actor: str,
        report: Report,
    ) -> tuple[Volume, StoredBackup]:
        """Make a volume of a backup that is soon removed again (:meth:`discard`): on this node only, and nothing but its size and
        its root's owner is as it was. Raises as :meth:`restore`.

        Args:
            label: it gets this one, KEY=VALUE, by which it is found if power fails before it is removed.
        """

        def only_here(had: Mapping[str, str]) -> dict[str, str]:
            return {**{k: v for k, v in had.items() if k in _OF_SCRATCH}, "labels": label}

        return await self._bring_back(
            target, volume, backup, new, only_here, actor=actor, report=report
        )

    async def discard(self, volume: Volume, *, actor: str) -> None:
        """Remove a volume for ever.

        Raises:
            What :meth:`Volumes.remove` raises, and giving up what is in the trash.
        """
        await self._volumes.remove(volume.name, actor=actor)
        await self._give_up(volume.id, actor)

    async def _bring_back(
        self,
        target: str,
        volume: str,
        backup: str | None,
        new: str,
        choose: Callable[[Mapping[str, str]], dict[str, str]],
        *,
        actor: str,
        report: Report,
    ) -> tuple[Volume, StoredBackup]:
        """A new volume with all that is in a backup, on this node's disk; and which backup that is.

        Args:
            choose: its options, by those that the volume had.
        """
        check_name(new)
        async with self._targets.opened(target) as repository:
            chosen = chosen_backup(await repository.backups(), volume=volume, backup=backup)
            about = read_about(await repository.text(chosen.id, ABOUT))
            origin = f"backup {chosen.id} at {target}"
            options = choose(about.options)
            async with self._imports.draft(new, options, origin=origin, actor=actor) as draft:
                await self._fill(draft, repository, chosen, report)
                made = await self._imports.publish(draft)
                await self._imports.ended(draft)
        log.info("volume.restored-from-backup", volume=new, backup=chosen.id, by=actor)
        return made, chosen

    async def _fill(
        self, draft: Draft, repository: Repository, chosen: StoredBackup, report: Report
    ) -> None:
        """Put into a new volume what is in a backup, and compare it."""
        filling = _Filling(draft, self._node, bytes_of(chosen), report)
        async with self._workroom.place(f"restore+{draft.volume.id}") as place:
            try:
                await in_own_thread(partial(_show, draft.path, place / DATA))
                work = repository.restore(
                    chosen.id,
                    DATA,
                    to=place,
                    directory=draft.path,
                    compares=filling.compares,
                )
                await self._while_there_is_room(draft, work, filling)
            except OSError as error:
                raise BackupFailed(
                    f"the backup cannot be written to volume {draft.volume.name}: {error}",
                    remedy="see its size and the pool, then try again",
                ) from error

    async def _while_there_is_room(
        self, draft: Draft, work: Coroutine[Any, Any, None], filling: _Filling
    ) -> None:
        """Give up before the writers of other volumes have to stand still: nothing stops restic then.

        Raises:
            PoolFull: the pool has no room for more.
        """
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait((task,), timeout=_LOOK_SECONDS))[0]:
                await filling.tell()
                if draft.driver.pool in self._room.short():
                    raise PoolFull(
                        f"the pool has no room for what is in the backup of volume {draft.volume.name}",
                        remedy="make room: pannier volume trash shows what was removed; or enlarge the pool",
                    )
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _show(used: Path, at: Path) -> None:
    at.mkdir()
    bind(used, at, allow_devices_and_setuid=False)
