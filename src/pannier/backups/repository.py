"""A repository of restic's: what is put there, found there, brought back and removed."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets as random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from pannier.backups.messages import failure, locked, no_room
from pannier.backups.progress import Status, percent_of, status_of
from pannier.core.backup_plans import Retention
from pannier.core.backups import StoredBackup
from pannier.core.complete_backups import BYTES, END, OF, RUN, complete, is_about, settle
from pannier.core.errors import BackupFailed, PannierError, TargetUnavailable
from pannier.core.pace import BackupPace
from pannier.host import process
from pannier.host.process import Failing, Finished

log = structlog.get_logger(__name__)

_PROGRAM = "restic"
_TAG = "pannier"
"""Marks the backups that are ours, in a repository that others may use as well."""
_END_TAG = "pannier-end"
"""Marks those that say that a backup is complete (:mod:`pannier.core.complete_backups`)."""
_COMPARES = "verifying files"
"""How the line begins that `restic restore --verify` prints when all is written."""
_ERRORS = 1
_INCOMPLETE = 3
"""restic's exit status where something failed, and for a backup that lacks a file."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What a backup has added.

    Attributes:
        id: its id, short.
        read_bytes: of all files; added_bytes: what the repository did not have.
        changed, unchanged: numbers of files: those that were read, and those that were not.
    """

    id: str
    read_bytes: int
    added_bytes: int
    changed: int
    unchanged: int


class Repository:
    """A repository. All methods may raise the errors listed here.

    Raises:
        TargetUnavailable: it is not reached from this node, or restic is not installed here; RepositoryMissing.
        Denied: the password, or who logs in, is not accepted.
        Conflict: somebody else has locked it for long.
        Corrupt: what is in it is damaged.
        BackupFailed: it is full, too slow, or what else restic says.
    """

    def __init__(
        self,
        *,
        target: str,
        node: str,
        options: Sequence[str],
        environment: Mapping[str, str],
        pace: BackupPace,
    ) -> None:
        self._target = target
        self._node = node
        self._options = tuple(options)
        self._environment = environment
        self._pace = pace

    async def id(self) -> str:
        """The repository's id."""
        found = await self._run("cat", "config")
        return str(self._read(found.stdout)["id"])

    async def make(self) -> None:
        """Make a repository where there is none."""
        await self._run("init")

    async def backups(self) -> list[StoredBackup]:
        """All complete backups of Pannier's, also those of other clusters, oldest first."""
        return complete(await self._stored())

    async def _stored(self) -> list[StoredBackup]:
        """All backups and marks, also what is not complete."""
        found = await self._run("snapshots", "--json", "--tag", _TAG, "--tag", _END_TAG)
        return [_backup(each) for each in self._read(found.stdout) or ()]

    async def back_up(
        self,
        names: Sequence[str],
        *,
        mark: str,
        directory: Path,
        host: str,
        tags: Mapping[str, str],
        told: Callable[[Status], None],
    ) -> Uploaded:
        """Put files of a directory there. Where the directory's path is that of an earlier backup, files that are the same by
        size, times and inode are not read.

        Args:
            tags: with ``id``, the volume's.
            mark: a small file of the directory. It is put there by itself when all has been read, and only with that it is a backup.
            told: hears now and then how far it is.

        Raises:
            BackupFailed: also if a file could not be read. No backup was made then.
        """
        run = random.token_hex(8)

        def tell(line: str) -> bool:
            status = status_of(line)
            if status is not None:
                told(status)
            return status is not None

        found = await self._put(
            names, _TAG, {**tags, RUN: run}, directory, host, accepted=(0, _INCOMPLETE), told=tell
        )
        summary = self._summary(found)
        if found.status == _INCOMPLETE:
            await self._give_up(summary.id)
            raise BackupFailed(
                f"files could not be read for the backup at {self._target}: {found.last_words}",
                remedy="see dmesg on that node for errors of its disk, then try again",
            )
        about_end = {END: run, OF: tags["id"], BYTES: str(summary.read_bytes)}
        await self._put((mark,), _END_TAG, about_end, directory, host)
        return summary

    async def _put(
        self,
        names: Sequence[str],
        kind: str,
        tags: Mapping[str, str],
        directory: Path,
        host: str,
        *,
        accepted: Sequence[int] = (0,),
        told: Callable[[str], bool] | None = None,
    ) -> Finished:
        marks = [f"--tag={kind}", *(f"--tag={key}={text}" for key, text in tags.items())]
        return await self._run(
            *("backup", "--json", "--host", host, *marks, "--", *names),
            seconds=self._pace.work,
            directory=directory,
            accepted=accepted,
            told=told,
        )

    async def _give_up(self, id: str) -> None:
        """Remove what has no mark, and never gets one. Whether that works or not, it is no backup."""
        try:
            await self._run("forget", id)
        except PannierError as error:
            log.info("backup.rest-stays", target=self._target, backup=id, error=error.message)

    def _summary(self, found: Finished) -> Uploaded:
        for line in reversed(found.stdout.splitlines()):
            told = self._read(line)
            if told.get("message_type") == "summary":
                return Uploaded(
                    id=told["snapshot_id"][:8],
                    read_bytes=told["total_bytes_processed"],
                    added_bytes=told["data_added"],
                    changed=told["files_new"] + told["files_changed"],
                    unchanged=told["files_unmodified"],
                )
        raise failure(found, where=self._where)

    async def text(self, backup: str, name: str) -> str:
        """The content of a small file at the top of a backup."""
        return (await self._run("dump", backup, f"/{name}")).stdout

    async def restore(
        self,
        backup: str,
        name: str,
        *,
        to: Path,
        directory: Path,
        compares: Callable[[], None],
    ) -> None:
        """Bring back what is in a directory of a backup, and compare all of it with what is on the disk then.

        Args:
            name: of that directory, at the backup's top.
            to: where a directory of that name is.
            directory: the program runs there, so that it is seen to use what is mounted there.
            compares: hears when all is written, and it begins to compare.

        Raises:
            BackupFailed: also if there is no room for it, or something else is on the disk then.
        """

        def tell(line: str) -> bool:
            if line.startswith(_COMPARES):
                compares()
            return False

        found = await self._run(
            *("restore", backup, "--target", str(to), "--include", f"/{name}", "--verify"),
            seconds=self._pace.work,
            directory=directory,
            accepted=(0, _ERRORS),
            told=tell,
        )
        if not found.status:
            return
        if said := no_room(found):
            raise BackupFailed(
                f"what is in the backup has no room on node {self._node}: {said}",
                remedy="give the new volume another size, or its pool more room",
            )
        raise failure(found, where=self._where)

    async def check(self, told: Callable[[int], None]) -> None:
        """Read all of it. ``told`` hears now and then how many hundredths are done.

        Raises:
            Corrupt: something is damaged.
        """

        def tell(line: str) -> bool:
            percent = percent_of(line)
            if percent is not None:
                told(percent)
            return percent is not None

        await self._run("check", "--read-data", seconds=self._pace.work, told=tell)

    async def forget(
        self, retention: Retention, *, host: str, now: float, volume_id: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Give up the backups of a host that need not stay, and the room of what nobody needs any more. By volume.

        Args:
            now: Unix time.
            volume_id: of the one volume that is meant; None for all. Where nothing of it goes, no room is looked for.

        Returns:
            The ids of those that stay, and of those that went.
        """
        found = [
            each
            for each in await self._stored()
            if each.host == host and (volume_id is None or is_about(each, volume_id))
        ]
        most = 2 * (self._pace.lock + self._pace.work)  # of a backup and its mark
        kept = settle(found, retention, now=now, most=most)
        gone = [each.id for each in (*kept.go, *kept.rest)]
        if gone:
            await self._run("forget", *gone, seconds=self._pace.work)
        if gone or volume_id is None:
            await self._run("prune", seconds=self._pace.work)
        return [each.id for each in kept.stay], [each.id for each in kept.go]

    async def _run(
        self,
        *words: str,
        seconds: float | None = None,
        directory: Path | None = None,
        accepted: Sequence[int] = (0,),
        told: Callable[[str], bool] | None = None,
    ) -> Finished:
        """Run a command. A lock that a killed command left is taken away. Another command's is waited for, where this one may take
        long, too: all nodes begin their backups at the same time, and some commands need the repository alone.
        """
        most = round(self._pace.lock / self._pace.lock_look) if seconds else 1
        for tries in itertools.count():
            found = await process.run(
                [_PROGRAM, *self._options, *words],
                timeout_s=seconds or self._pace.answer,
                check=False,
                failing=self._failing,
                environment=self._environment,
                directory=directory,
                told=told,
            )
            if found.status in accepted:
                break
            if not locked(found) or tries >= most:
                raise failure(found, where=self._where)
            await process.run(
                [_PROGRAM, *self._options, "unlock"],
                timeout_s=self._pace.answer,
                check=False,
                failing=self._failing,
                environment=self._environment,
            )
            if tries:
                await asyncio.sleep(self._pace.lock_look)
        return found

    @property
    def _where(self) -> str:
        return f"backup target {self._target}, from node {self._node}"

    @property
    def _failing(self) -> Failing:
        return Failing(
            error=TargetUnavailable,
            missing=TargetUnavailable,
            slow=f"see why backup target {self._target} answers so slowly from node {self._node}",
            install="apt install restic",
        )

    def _read(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise BackupFailed(
                f"restic on node {self._node} says what cannot be read: {text[:80]!r}",
                remedy="see which version that is: restic version",
            ) from error


def _backup(told: Mapping[str, Any]) -> StoredBackup:
    pairs = (tag.partition("=") for tag in told.get("tags") or ())
    return StoredBackup(
        id=told["short_id"],
        host=told["hostname"],
        made_at=_in_utc(told["time"]),
        tags={key: text for key, equals, text in pairs if equals},
    )


def _in_utc(at: str) -> str:
    """restic tells a time as the clock of the node shows it that made the backup. Times are compared as text."""
    return datetime.fromisoformat(at).astimezone(UTC).isoformat(timespec="microseconds")
