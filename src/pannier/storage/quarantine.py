"""Volumes that a driver cannot tidy up or remove. They are set apart, so that the others stay usable.

The cause may go away at any time without notice: somebody removes a subvolume that a program made, or
makes a file mutable. So no result is kept for good: whenever the volume, or the list of quarantined
volumes, is asked for, it is tried again first.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from pannier.core.errors import PannierError, StorageError
from pannier.host.files import DRAFT
from pannier.storage.blocking import storage_error
from pannier.storage.naming import DOOMED

log = structlog.get_logger(__name__)


class Quarantine:
    """The entries of the volumes' directory that could not be tidied up, each with the reason.

    All methods block, and may be called from several threads.

    Args:
        volumes: the directory. A name with a leading dot is a leftover of a volume that was being
            made or removed.
        tidy: removes what was left half done in an entry, or a whole leftover. May be repeated.
    """

    def __init__(self, volumes: Path, tidy: Callable[[Path], None]) -> None:
        self._volumes = volumes
        self._tidy = tidy
        self._reasons: dict[str, StorageError] = {}
        self._lock = threading.Lock()

    def sweep(self) -> None:
        """Tidy every entry, leftovers first. An entry that fails is quarantined.

        Raises:
            OSError: the directory cannot be read.
        """
        names = sorted(os.listdir(self._volumes), key=lambda name: (not name.startswith("."), name))
        with self._lock:
            self._reasons.clear()
            for name in names:
                self._try(name)

    def check(self, volume: str) -> None:
        """Make sure that a volume is not quarantined. One that is, is tried again first.

        Raises:
            StorageError: it still is, for this reason.
        """
        with self._lock:
            if volume in self._reasons and (reason := self._try(volume)):
                raise reason

    def remove(self, name: str) -> None:
        """Remove a leftover that the caller has just made. If that fails, it is quarantined.

        Raises:
            StorageError: it failed.
        """
        with self._lock:
            if reason := self._try(name):
                raise reason

    def add(self, volume: str, error: Exception) -> None:
        """Quarantine a volume whose home cannot be read."""
        with self._lock:
            self._reasons[volume] = _reason(self._volumes / volume, error)

    def reasons(self) -> Mapping[str, StorageError]:
        """The volumes that are still quarantined, by their ids, each with the reason."""
        with self._lock:
            for name in tuple(self._reasons):
                if self._try(name) is None:
                    log.info("volume.quarantine-ended", id=_volume_of(name))
            return {_volume_of(name): reason for name, reason in self._reasons.items()}

    def _try(self, name: str) -> StorageError | None:
        try:
            self._tidy(self._volumes / name)
        except Exception as error:  # one bad entry must not make the others unusable
            reason = _reason(self._volumes / name, error)
            if name not in self._reasons:
                log.error("volume.quarantined", id=_volume_of(name), error=reason.message)
            self._reasons[name] = reason
            return reason
        self._reasons.pop(name, None)
        return None


def _volume_of(name: str) -> str:
    return name.removeprefix(DOOMED).removeprefix(DRAFT)


def _reason(entry: Path, error: Exception) -> StorageError:
    volume = _volume_of(entry.name)
    gone = entry.name.startswith((DOOMED, DRAFT))
    what = (
        f"what is left of volume {volume} cannot be removed"
        if gone
        else (f"volume {volume} is quarantined on this node: {entry} cannot be tidied up")
    )
    if isinstance(error, OSError):
        told = storage_error(what, error)
        why, remedy = told.message.removeprefix(f"cannot {what}: "), _remedy(entry, error)
    elif isinstance(error, PannierError):
        why, remedy = error.message, error.remedy
    else:
        why, remedy = str(error), f"look what is in {entry}"
    return StorageError(f"{what}: {why}", remedy=f"{remedy}; it is tried again by itself")


def _remedy(entry: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOTEMPTY:
            return (
                f"save what is needed of the subvolumes that a program made in it, and remove them: "
                f"btrfs subvolume list -o {entry}; btrfs subvolume delete"
            )
        case errno.EPERM | errno.EACCES:
            return f"a subvolume in it may be the default one or in use (btrfs subvolume list -o {entry})"
        case errno.EBUSY:
            return f"something is mounted in it: findmnt -R {entry}; umount"
        case errno.EIO | errno.EUCLEAN | errno.EROFS:
            return "see dmesg for errors of the disk; another node's copy may be whole"
        case errno.ENOTDIR:
            return f"{entry} is no directory of a volume: move it away"
        case _:
            return f"look what is in {entry}"
