"""Bringing a backup back, as a new volume.

It is made on the node that is asked, with the options that it had, and used there like by a container until all is in it. If
anything fails it is removed for ever: what stays is a whole volume, or none. If power fails meanwhile, a volume stays that says in its history that it is
not whole: that line comes first, and another one ends it.
"""

from __future__ import annotations

import os
import secrets as random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.backups.running import ABOUT, DATA, read_about
from pannier.backups.targets import Targets
from pannier.backups.workroom import Workroom
from pannier.cluster.cluster import Cluster
from pannier.copies.acknowledging import Acknowledging
from pannier.core.backups import StoredBackup, chosen_backup
from pannier.core.errors import (
    AlreadyExists,
    BackupFailed,
    Conflict,
    OutcomeUnknown,
    PannierError,
    Stale,
    VolumeNotFound,
)
from pannier.core.volume import Volume, check_name
from pannier.holding.volumes import Volumes
from pannier.host.files import sync_filesystem_of
from pannier.host.mountflags import bind
from pannier.host.threads import in_own_thread

log = structlog.get_logger(__name__)

BEGUN = "restoring from a backup"
BROUGHT_BACK = "restored from a backup"
"""What a volume's history calls them."""
_NOT_BROUGHT_BACK = ("nodes", "driver", "layout", "protected", "backup")
"""Options that say where the volume was, that nobody removes it (until it is whole, that may be necessary), or that it is backed up
by itself: many are brought back to look at them. Backups are always of images."""
_TRIES = 10
"""How often a removal is tried that loses its race with a change of the volume's copies: there are a few while they are made."""
_OF_SCRATCH = ("size", "uid", "gid", "mode")


class _UsedByOthers(Conflict):
    """Somebody has written to the new volume, which so stays."""


class UsesVolumes:
    """How this node gives a volume's path to somebody, and takes it back; as for containers."""

    def __init__(
        self,
        *,
        mount: Callable[[str, str], Awaitable[Path]],
        unmount: Callable[[str, str], Awaitable[None]],
        give_up: Callable[[str, str], Awaitable[object]],
    ) -> None:
        """Put it together.

        Args:
            mount, unmount: as for Docker, with a volume's name and an id.
            give_up: removes what is in the trash for ever, by a volume's id and who asks for it.
        """
        self.mount = mount
        self.unmount = unmount
        self.give_up = give_up


class Restoring:
    """Brings backups back."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        volumes: Volumes,
        acknowledging: Acknowledging,
        targets: Targets,
        uses: UsesVolumes,
        workroom: Workroom,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._volumes = volumes
        self._acknowledging = acknowledging
        self._targets = targets
        self._uses = uses
        self._workroom = workroom

    async def restore(
        self,
        target: str,
        volume: str,
        *,
        backup: str | None,
        new: str,
        options: Mapping[str, str],
        actor: str,
    ) -> Volume:
        """Make a new volume of a backup. Returns when each copy in sync has all of it.

        Args:
            volume: the name of the volume that was backed up; it need not be there any more.
            backup: the beginning of the backup's id; None for the newest.
            options: those that shall be other than they were.

        Raises:
            NotFound: there is no such target or backup. AlreadyExists: there is a volume ``new``.
            BackupFailed: what is on the disk is not what is in the backup.
            OutcomeUnknown: it is restored here, and a copy may not have that yet.
            And what :meth:`Volumes.create`, :meth:`Targets.opened` and :class:`~pannier.backups.restic.Repository` raise.
            There is no new volume then.
        """

        def as_it_was(had: Mapping[str, str]) -> dict[str, str]:
            return {**{k: v for k, v in had.items() if k not in _NOT_BROUGHT_BACK}, **options}

        made, chosen = await self._bring_back(target, volume, backup, new, as_it_was, actor=actor)
        return await self._reach_copies(made, target, chosen, actor=actor)

    async def scratch(
        self, target: str, volume: str, *, backup: str | None, new: str, actor: str
    ) -> tuple[Volume, StoredBackup]:
        """Make a volume of a backup that is soon removed again (:meth:`discard`): on this node only, and nothing but its size and
        its root's owner is as it was. Raises as :meth:`restore`.
        """

        def only_here(had: Mapping[str, str]) -> dict[str, str]:
            return {k: v for k, v in had.items() if k in _OF_SCRATCH}

        return await self._bring_back(target, volume, backup, new, only_here, actor=actor)

    async def discard(self, volume: Volume, *, actor: str) -> None:
        """Remove a volume for ever.

        Raises:
            What :meth:`Volumes.remove` raises, and giving up what is in the trash.
        """
        for left in reversed(range(_TRIES)):
            try:
                await self._volumes.remove(volume.name, actor=actor)
                break
            except Stale:  # a copy has just joined or left those in sync
                if not left:
                    raise
        await self._uses.give_up(volume.id, actor)

    async def _bring_back(
        self,
        target: str,
        volume: str,
        backup: str | None,
        new: str,
        choose: Callable[[Mapping[str, str]], dict[str, str]],
        *,
        actor: str,
    ) -> tuple[Volume, StoredBackup]:
        """A new volume with all that is in a backup, on this node's disk; and which backup that is.

        Args:
            choose: its options, by those that the volume had.
        """
        await self._check_new(check_name(new))
        async with self._targets.opened(target) as repository:
            chosen = chosen_backup(await repository.backups(), volume=volume, backup=backup)
            about = read_about(await repository.text(chosen.id, ABOUT))
            made = await self._make(new, choose(about.options), actor=actor)
            try:
                async with self._filled(made, target, chosen, actor=actor) as (to, used):
                    await repository.restore(chosen.id, DATA, to=to, directory=used)
            except _UsedByOthers:
                raise
            except BaseException:
                await self._remove(made, actor=actor)
                raise
        return made, chosen

    async def _check_new(self, new: str) -> None:
        with suppress(VolumeNotFound):
            await self._cluster.fresh(new)
            raise _there_already(new)

    async def _make(self, new: str, options: Mapping[str, str], *, actor: str) -> Volume:
        """An empty volume. One that somebody else makes at the same moment is theirs."""
        by = f"{actor} for backup {random.token_hex(4)}"
        made = await self._volumes.create(new, options, actor=by)
        if made.history[0].detail != f"by {by}":
            raise _there_already(new)
        return made

    @asynccontextmanager
    async def _filled(
        self, volume: Volume, target: str, backup: StoredBackup, *, actor: str
    ) -> AsyncIterator[tuple[Path, Path]]:
        """The directory in which the volume is as DATA, and the volume itself; on the disk after the block."""
        await self._custody.note(volume, BEGUN, f"{backup.id} at {target}, by {actor}")
        mount_id = f"restore-{random.token_hex(8)}"
        used = await self._uses.mount(volume.name, mount_id)
        try:
            if await in_own_thread(partial(os.listdir, used)):
                raise _UsedByOthers(
                    f"somebody else has just written to volume {volume.name}",
                    remedy="use a name that nobody else uses",
                )
            async with self._workroom.place(f"restore+{volume.id}") as place:
                await in_own_thread(partial(_show, used, place / DATA))
                yield place, used
            await in_own_thread(partial(sync_filesystem_of, used))
        except OSError as error:
            raise BackupFailed(
                f"the backup cannot be written to volume {volume.name}: {error}",
                remedy="see its size and the pool, then try again",
            ) from error
        finally:
            await self._uses.unmount(volume.name, mount_id)

    async def _remove(self, volume: Volume, *, actor: str) -> None:
        try:
            await self.discard(volume, actor=actor)
        except PannierError as error:
            log.warning("restore.volume-stays", volume=volume.name, error=str(error))

    async def _reach_copies(
        self, volume: Volume, target: str, backup: StoredBackup, *, actor: str
    ) -> Volume:
        if volume.spec.copies > 1:
            try:
                await self._acknowledging.begin(volume)
            except PannierError as error:
                raise OutcomeUnknown(
                    f"volume {volume.name} is restored on node {self._cluster.node}, and not every copy in sync has that: "
                    f"{error.message}",
                    remedy="the copies get it by themselves: pannier volume show",
                ) from error
        await self._custody.note(volume, BROUGHT_BACK, f"{backup.id} at {target}, by {actor}")
        log.info("volume.restored-from-backup", volume=volume.name, backup=backup.id, by=actor)
        return (await self._cluster.fresh(volume.name)).record


def _there_already(new: str) -> AlreadyExists:
    return AlreadyExists(
        f"there is a volume {new} already, and a backup is never put over what is there",
        remedy="use another name",
    )


def _show(used: Path, at: Path) -> None:
    at.mkdir()
    bind(used, at, allow_devices_and_setuid=False)
