"""Backups off-site: where they go, with which secrets, and which one is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pannier.core.errors import InvalidInput, NotFound
from pannier.core.record import Record

TARGET_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,31}$"
_NAME = re.compile(TARGET_PATTERN, re.ASCII)
"""So short that the names of the snapshots that backups are read from have room for it."""
MOST_URL_LETTERS = 512
MOST_SECRET_LETTERS = 16_384
"""Of each secret: a private key has some 3,000, and a request takes 64 KiB."""

_HOST = r"(?:[a-zA-Z0-9][a-zA-Z0-9.-]*|\[[0-9a-fA-F:.]+\])"
_USER = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*"
_LOGIN = rf"(?:(?P<user>{_USER})@)?(?P<host>{_HOST})"
_SFTP = (
    re.compile(rf"sftp://{_LOGIN}(?::(?P<port>[0-9]{{1,5}}))?/\S+", re.ASCII),
    re.compile(rf"sftp:{_LOGIN}:(?P<port>)\S+", re.ASCII),  # this form has no port
)
_S3 = re.compile(rf"s3:(?:https?://)?{_HOST}(?::[0-9]{{1,5}})?/[^\s@]+", re.ASCII)


class TargetKind(StrEnum):
    """What kind of place a target is."""

    PATH = "path"
    SFTP = "sftp"
    S3 = "s3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What opens a target. No text of it is ever shown.

    Attributes:
        password: the repository's; without it nobody reads the backups.
        s3_key_id, s3_key: with which S3 lets us in.
        ssh_key, known_hosts: the private key with which we log in, and the server's public keys as in a file known_hosts.
    """

    password: str = field(repr=False)
    s3_key_id: str = field(default="", repr=False)
    s3_key: str = field(default="", repr=False)
    ssh_key: str = field(default="", repr=False)
    known_hosts: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupTarget(Record):
    """The store's record of a target.

    Attributes:
        url: as restic takes it.
        repository: the id of the repository there: another one in its place is not used.
        sealed: the secrets, encrypted (:mod:`pannier.holding.cluster_keys`), base64.
        key: the id of the key with which that was done.
        added_at: Unix time, for people.
        read_only: only to restore from it, such as another cluster's.
    """

    name: str
    url: str
    repository: str
    sealed: str = field(repr=False)
    key: str
    added_at: float
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class SftpServer:
    """Where the URL of a target at an SSH server leads."""

    host: str
    user: str | None
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBackup:
    """One backup in a repository.

    Attributes:
        id: restic's, short.
        host: whose it is: see :func:`host_of`.
        made_at: RFC 3339, as restic tells it.
        tags: ours, as key and text.
    """

    id: str
    host: str
    made_at: str
    tags: Mapping[str, str]

    @property
    def volume(self) -> str:
        """The name of the volume at that time."""
        return self.tags.get("volume", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupDrill(Record):
    """The store's record of the last restore drill of a volume at a target.

    Attributes:
        volume: its name; it may be gone.
        backup: which one was brought back.
        at: Unix time of the last drill; good_at: of the last one that went well, None before the first.
        failure: why the last one failed; empty where it did not.
        slot: for which day, week or month the last one by the volume's option was begun; empty before the first.
    """

    target: str
    volume: str
    backup: str
    at: float
    failure: str = ""
    good_at: float | None = None
    slot: str = ""


_HOST_PREFIX = "pannier-"


def host_of(cluster: str) -> str:
    """Under which host's name restic keeps a cluster's backups."""
    return f"{_HOST_PREFIX}{cluster}"


def strangers(backups: list[StoredBackup], *, cluster: str) -> list[str]:
    """The ids of other clusters of which there are backups."""
    hosts = {each.host for each in backups if each.host.startswith(_HOST_PREFIX)}
    return sorted(host.removeprefix(_HOST_PREFIX) for host in hosts - {host_of(cluster)})


def check_target_name(name: str) -> str:
    """Return ``name`` if it can name a target.

    Raises:
        InvalidInput: it cannot.
    """
    if _NAME.fullmatch(name) and not name.endswith("\n"):
        return name
    raise InvalidInput(
        f"{name[:40]!r} cannot name a backup target",
        remedy="use 1 to 32 letters, digits, '_', '.' or '-', the first a letter or digit",
    )


def place_of(url: str) -> TargetKind:
    """What kind of place a URL names.

    Raises:
        InvalidInput: it is none that is known here.
    """
    if len(url) <= MOST_URL_LETTERS and url.isprintable():
        if url.startswith("/") and ".." not in url.split("/"):
            return TargetKind.PATH
        if any(form.fullmatch(url) for form in _SFTP):
            return TargetKind.SFTP
        if _S3.fullmatch(url):
            return TargetKind.S3
    raise InvalidInput(
        f"{url[:80]!r} is no place for backups",
        remedy="write an absolute path, sftp:USER@HOST:/PATH, sftp://USER@HOST:PORT//PATH or s3:https://HOST/BUCKET",
    )


def sftp_server(url: str) -> SftpServer:
    """The server that a target of :attr:`TargetKind.SFTP` names."""
    found = _SFTP[0].fullmatch(url) or _SFTP[1].fullmatch(url)
    assert found is not None
    port = found["port"]
    return SftpServer(found["host"].strip("[]"), found["user"], int(port) if port else None)


def check_secrets(url: str, secrets: Secrets) -> None:
    """Make sure that nothing is missing that a place needs.

    Raises:
        InvalidInput: something is, or is said that it does not need.
    """
    place = place_of(url)
    if not secrets.password or "\n" in secrets.password:
        raise InvalidInput(
            "the repository's password is empty, or has several lines",
            remedy="give a file with one line: --password-file FILE",
        )
    _check_pair(place, TargetKind.S3, "--s3-key-file FILE", (secrets.s3_key_id, secrets.s3_key))
    given = (secrets.ssh_key, secrets.known_hosts)
    _check_pair(place, TargetKind.SFTP, "--ssh-key FILE and --known-hosts FILE", given)


def _check_pair(place: TargetKind, needs: TargetKind, options: str, given: tuple[str, str]) -> None:
    if place is needs and not all(given):
        raise InvalidInput(f"a target of {place.value}: needs {options}", remedy=f"add {options}")
    if place is not needs and any(given):
        raise InvalidInput(
            f"{options} is for targets of {needs.value}: only", remedy="leave it out"
        )


def chosen_backup(backups: list[StoredBackup], *, volume: str, backup: str | None) -> StoredBackup:
    """The backup of a volume that is meant: by the beginning of its id, or the newest.

    Raises:
        NotFound: there is none. InvalidInput: several ids begin so.
    """
    of_it = sorted((b for b in backups if b.volume == volume), key=lambda each: each.made_at)
    found = of_it[-1:] if backup is None else [b for b in of_it if b.id.startswith(backup)]
    if len(found) > 1:
        raise InvalidInput(
            f"the ids of {len(found)} backups begin with {backup}", remedy="write more of it"
        )
    if not found:
        what = "no backup" if backup is None else f"no backup {backup}"
        raise NotFound(
            f"there is {what} of a volume {volume}", remedy="pannier backup ls shows all"
        )
    return found[0]
