"""restic, as a program: repositories at a target, with secrets that no command line and no log has."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets as random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pannier.backups.messages import failure, locked, no_room
from pannier.backups.workroom import Workroom
from pannier.core.backup_plans import Retention
from pannier.core.backups import (
    Secrets,
    StoredBackup,
    TargetKind,
    place_of,
    sftp_server,
)
from pannier.core.errors import BackupFailed, StorageError, TargetUnavailable
from pannier.core.pace import BackupPace
from pannier.host import process
from pannier.host.files import write_file
from pannier.host.process import Failing, Finished
from pannier.host.threads import in_own_thread

_PROGRAM = "restic"
_TAG = "pannier"
"""Marks the backups that are ours, in a repository that others may use as well."""
_ERRORS = 1
_INCOMPLETE = 3
"""restic's exit status where something failed, and for a backup that lacks a file."""
_PROGRESS_FPS = "0.0167"
"""Once a minute: restic tells 60 times a second how far it is, and all that it tells is kept until its end."""
_KEY_FILE, _HOSTS_FILE = "key", "known_hosts"


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


class Restic:
    """Opens repositories."""

    def __init__(self, *, node: str, workroom: Workroom, pace: BackupPace) -> None:
        self._node = node
        self._workroom = workroom
        self._pace = pace

    @asynccontextmanager
    async def opened(self, target: str, url: str, secrets: Secrets) -> AsyncIterator[Repository]:
        """The repository at a URL for the time of the block. Nothing is asked of it yet.

        Args:
            target: what messages call it.

        Raises:
            TargetUnavailable: it is a path that this node does not have. StorageError: what it needs here cannot be made.
        """
        place = place_of(url)
        if place is TargetKind.PATH and not await self._is_there(target, url):
            raise TargetUnavailable(
                f"node {self._node} has no directory {url}, where backup target {target} is",
                remedy="mount or make it there, or ask a node that has it",
            )
        try:
            async with self._workroom.place(f"target+{random.token_hex(8)}") as files:
                self._workroom.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
                options: tuple[str, ...] = ()
                if place is TargetKind.SFTP:
                    write_file(files / _KEY_FILE, secrets.ssh_key.encode(), durable=False)
                    write_file(files / _HOSTS_FILE, secrets.known_hosts.encode(), durable=False)
                    options = ("-o", f"sftp.command={_ssh(url, files)}")
                environment = {
                    "HOME": str(files),
                    "RESTIC_REPOSITORY": url,
                    "RESTIC_PASSWORD": secrets.password,
                    # What is sent next is in files there, too: a tmpfs may have no room for it.
                    "RESTIC_CACHE_DIR": str(self._workroom.cache),
                    "TMPDIR": str(self._workroom.cache),
                    "RESTIC_PROGRESS_FPS": _PROGRESS_FPS,
                    "TZ": "UTC",  # days begin at the same time on all nodes
                }
                if place is TargetKind.S3:
                    environment["AWS_ACCESS_KEY_ID"] = secrets.s3_key_id
                    environment["AWS_SECRET_ACCESS_KEY"] = secrets.s3_key
                yield Repository(
                    target=target,
                    node=self._node,
                    options=options,
                    environment=environment,
                    pace=self._pace,
                )
        except OSError as error:
            raise StorageError(
                f"node {self._node} cannot use {self._workroom.run}: {error}",
                remedy="see what fills or disturbs it",
            ) from error

    async def _is_there(self, target: str, path: str) -> bool:
        """Whether a directory is there. It may be a share whose server does not answer.

        Raises:
            TargetUnavailable: it does not say.
        """
        try:
            async with asyncio.timeout(self._pace.answer):
                return await in_own_thread(Path(path).is_dir)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"not in {self._pace.answer:.0f} s"
            raise TargetUnavailable(
                f"{path}, where backup target {target} is, does not answer on node {self._node}: {why}",
                remedy="see what is mounted there, and its server",
            ) from error


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
        """All backups of Pannier's, also those of other clusters, oldest first."""
        found = await self._run("snapshots", "--json", "--tag", _TAG)
        told = [_backup(each) for each in self._read(found.stdout) or ()]
        return sorted(told, key=lambda each: each.made_at)

    async def back_up(
        self, names: Sequence[str], *, directory: Path, host: str, tags: Mapping[str, str]
    ) -> Uploaded:
        """Put files of a directory there. Where the directory's path is that of an earlier backup, files that are the same by
        size, times and inode are not read.

        Raises:
            BackupFailed: also if a file could not be read. What was made is taken back.
        """
        marks = [f"--tag={_TAG}", *(f"--tag={key}={text}" for key, text in tags.items())]
        found = await self._run(
            *("backup", "--json", "--host", host, *marks, "--", *names),
            seconds=self._pace.work,
            directory=directory,
            accepted=(0, _INCOMPLETE),
        )
        summary = self._summary(found)
        if found.status == _INCOMPLETE:
            await self._run("forget", summary.id, seconds=self._pace.work)
            raise BackupFailed(
                f"files could not be read for the backup at {self._target}: {found.last_words}",
                remedy="see dmesg on that node for errors of its disk, then try again",
            )
        return summary

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

    async def restore(self, backup: str, name: str, *, to: Path, directory: Path) -> None:
        """Bring back what is in a directory of a backup, and compare all of it with what is on the disk then.

        Args:
            name: of that directory, at the backup's top.
            to: where a directory of that name is.
            directory: the program runs there, so that it is seen to use what is mounted there.

        Raises:
            BackupFailed: also if there is no room for it, or something else is on the disk then.
        """
        found = await self._run(
            *("restore", backup, "--target", str(to), "--include", f"/{name}", "--verify"),
            seconds=self._pace.work,
            directory=directory,
            accepted=(0, _ERRORS),
        )
        if not found.status:
            return
        if said := no_room(found):
            raise BackupFailed(
                f"what is in the backup has no room on node {self._node}: {said}",
                remedy="give the new volume another size, or its pool more room",
            )
        raise failure(found, where=self._where)

    async def check(self) -> None:
        """Read all of it.

        Raises:
            Corrupt: something is damaged.
        """
        await self._run("check", "--read-data", seconds=self._pace.work)

    async def forget(
        self, retention: Retention, *, host: str, volume_id: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Give up the backups of a host that need not stay, and the room of what nobody needs any more. By volume.

        Args:
            volume_id: of the one volume that is meant; None for all. Where none of its backups goes, no room is looked for.

        Returns:
            The ids of those that stay, and of those that went.
        """
        rules = [
            f"--keep-{name}={count}"
            for name, count in (
                ("last", retention.last),
                ("hourly", retention.hourly),
                ("daily", retention.daily),
                ("weekly", retention.weekly),
                ("monthly", retention.monthly),
            )
            if count
        ]
        tag = _TAG if volume_id is None else f"{_TAG},id={volume_id}"
        mine = ("--host", host, "--tag", tag, "--group-by", "paths")
        found = await self._run("forget", "--json", *mine, *rules)
        groups = self._read(found.stdout) or ()
        removed = [each["short_id"] for group in groups for each in group["remove"] or ()]
        if removed or volume_id is None:
            await self._run("prune", seconds=self._pace.work)
        kept = [each["short_id"] for group in groups for each in group["keep"] or ()]
        return kept, removed

    async def _run(
        self,
        *words: str,
        seconds: float | None = None,
        directory: Path | None = None,
        accepted: Sequence[int] = (0,),
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


def _ssh(url: str, files: Path) -> str:
    """The command with which restic reaches an SSH server. It asks nothing, and trusts only the keys that it was given."""
    server = sftp_server(url)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "20",
        "IdentitiesOnly": "yes",
        "ServerAliveInterval": "15",  # with three tries: a server that vanished is noticed within a minute
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(files / _HOSTS_FILE),
    }
    words = ["ssh", "-F", "none", "-i", str(files / _KEY_FILE)]
    for name, text in options.items():
        words += ["-o", f"{name}={text}"]
    if server.port is not None:
        words += ["-p", str(server.port)]
    if server.user is not None:
        words += ["-l", server.user]
    return " ".join([*words, server.host, "-s", "sftp"])


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
