"""restic, as a program: what it needs to reach a target, with secrets that no command line and no log has."""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pannier.backups.repository import Repository
from pannier.backups.workroom import Workroom
from pannier.core.backups import Secrets, TargetKind, place_of, sftp_server
from pannier.core.errors import StorageError, TargetUnavailable
from pannier.core.pace import BackupPace
from pannier.host.files import write_file
from pannier.host.threads import in_own_thread

_PROGRESS_FPS = "1"
"""Once a second: restic would tell 60 times a second how far it is, and not at all where it writes to no terminal."""
_KEY_FILE, _HOSTS_FILE = "key", "known_hosts"


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
