"""What restic's messages mean. In the versions that Debian has they are the only word on what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from pannier.core.errors import (
    BackupFailed,
    Conflict,
    Corrupt,
    Denied,
    PannierError,
    RepositoryMissing,
    TargetUnavailable,
)
from pannier.host.process import Finished

_FULL = ("no space left", "disk quota exceeded", "not enough space", "quota exceeded")
_UNWRITTEN = ('write: sftp: "failure"',)
"""All that an SSH server without room says. restic has tried it again for some minutes by then."""
_LOCKED = ("already locked",)
_PASSWORD = ("wrong password", "no key found")
_MISSING = ("is there a repository at the following location", "repository does not exist")
_NOTHING_THERE = (
    "no such file or directory",
    "file does not exist",
    "key does not exist",
    "bucket does not exist",
    "repository does not exist",
)
"""What it says besides, where it could look and there is none."""
_DAMAGED = (
    "ciphertext verification failed",
    "repository contains errors",
    "pack id does not match",
    "invalid data returned",
    "is damaged",
    "did not match",
)
_REFUSED = (
    "permission denied",
    "access denied",
    "host key verification failed",
    "access key id you provided does not exist",
    "signature we calculated does not match",
)
_AWAY = (
    "unable to start the sftp session",
    "connection refused",
    "no such host",
    "no route to host",
    "could not resolve",
    "i/o timeout",
    "timed out",
    "connection reset",
    "dial tcp",
)


def failure(found: Finished, *, where: str) -> PannierError:
    """What the words of a failed command mean.

    Args:
        where: names the target, and the node from which it was used.
    """
    words = _words(found)
    if _says(found, _PASSWORD):
        return Denied(
            f"{where}: the repository does not open with this password",
            remedy="give the password with which it was made",
        )
    if _says(found, _FULL):
        return BackupFailed(
            f"{where}: it is full ({words}); the backups before are as they were",
            remedy="make room there, or remove older backups: pannier backup prune",
        )
    if _says(found, _UNWRITTEN):
        return BackupFailed(
            f"{where}: its server refuses what is written, and is mostly full then ({words}); the backups before are as they were",
            remedy="see its room; make some there, or remove older backups: pannier backup prune",
        )
    if _says(found, _LOCKED):
        return Conflict(
            f"{where}: another command has locked the repository ({words})",
            remedy="wait until that has ended, then try again",
        )
    if _says(found, _DAMAGED):
        return Corrupt(
            f"{where}: the repository is damaged: {_first(found, _DAMAGED)}",
            remedy="copy it before anything else; `restic repair` and `restic check` help further, "
            "and a new target keeps new backups safe",
        )
    if _says(found, _REFUSED):
        return Denied(f"{where}: it lets nobody in: {words}", remedy="see the keys that were given")
    if _says(found, _AWAY):
        return TargetUnavailable(
            f"{where}: it does not answer: {words}", remedy="see its server and the network"
        )
    if _says(found, _MISSING) and _says(found, _NOTHING_THERE):
        return RepositoryMissing(
            f"{where}: there is no repository",
            remedy="see whether the right disk or share is mounted there",
        )
    if _says(found, _MISSING):  # it asks that also where it could not look
        return TargetUnavailable(
            f"{where}: it cannot be looked into: {words}",
            remedy="see the keys that were given, its server and the network",
        )
    return BackupFailed(f"{where}: {words}", remedy="see what restic says of that")


def no_room(found: Finished) -> str:
    """What a failed command says of a disk without room; empty where that is not why it failed."""
    return _first(found, _FULL)


def locked(found: Finished) -> bool:
    """Whether a failed command says that the repository is locked."""
    return _says(found, _LOCKED)


def _says(found: Finished, texts: Sequence[str]) -> bool:
    said = f"{found.stderr}\n{found.stdout[-4096:]}".lower()
    return any(text in said for text in texts)


def _first(found: Finished, texts: Sequence[str]) -> str:
    """The first line that says one of the texts."""
    lines = f"{found.stderr}\n{found.stdout}".splitlines()
    return next((line.strip() for line in lines if any(t in line.lower() for t in texts)), "")


def _words(found: Finished) -> str:
    """What restic complains of, in a line: what its helper says first, and its last word."""
    lines = [line.strip().removeprefix("Fatal: ") for line in found.stderr.splitlines()]
    telling = [line for line in takewhile(lambda line: not _says_where(line), lines) if line]
    helper = [line for line in telling if line.startswith("subprocess ")]
    return "; ".join(dict.fromkeys([*helper[:1], *telling[-1:]])) or f"exit status {found.status}"


def _says_where(line: str) -> bool:
    """Whether a line is restic's question after a failure; it is followed by the URL only."""
    return line.lower().startswith(_MISSING)
