"""The directory that holds the volumes of the directory driver, and how we know that it is ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pannier.core.errors import Corrupt, ForeignData, PoolMissing
from pannier.core.record import newer_format
from pannier.host.files import draft_of, sync_directory, write_file
from pannier.storage.blocking import in_thread, told_as_storage_error

MARKER = ".pannier-directory"
_FORMAT = 1


async def create_directory(root: Path) -> None:
    """Make ``root`` a place for volumes; one that is already is left as it is.

    Raises:
        ForeignData: it is a file, or a directory with something in it.
        NewerFormat: it was made by a newer version.
        Corrupt: its marker cannot be read.
        StorageError: it cannot be made.
    """
    await in_thread(_create_directory, root)


def _create_directory(root: Path) -> None:
    with told_as_storage_error(f"make the directory {root}"):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise _foreign(root, "a file") from error
        if (root / MARKER).exists():
            _check_marker(root)
            return
        if set(os.listdir(root)) - {
            draft_of(root / MARKER).name
        }:  # our own draft, from a crash in write_file below
            raise _foreign(root, "a directory with other files in it")
        write_file(root / MARKER, json.dumps({"format": _FORMAT}).encode() + b"\n")
        sync_directory(root.parent)


def verify_directory(root: Path) -> None:
    """Make sure that ``root`` was made by :func:`create_directory`; blocks.

    Raises:
        PoolMissing: it is not there, or empty as a mount point without its mount is.
        ForeignData: it is something else.
        NewerFormat: it was made by a newer version.
        Corrupt: its marker cannot be read.
    """
    if (root / MARKER).exists():
        _check_marker(root)
        return
    if root.exists() and not root.is_dir():
        raise _foreign(root, "a file")
    if root.is_dir() and os.listdir(root):
        raise _foreign(root, "a directory with other files in it")
    raise PoolMissing(
        f"the directory {root} is not there, or what should be mounted there is not",
        remedy="mount it, then restart pannierd; on a new node run `pannier init`",
    )


def _check_marker(root: Path) -> None:
    """Check the format in the marker, which is that of all that the driver keeps under ``root``."""
    try:
        format = json.loads((root / MARKER).read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(root) from error
    if type(format) is not int:
        raise _unreadable(root)
    if format > _FORMAT:
        raise newer_format(f"the directory {root}", format, known=_FORMAT)


def _unreadable(root: Path) -> Corrupt:
    return Corrupt(
        f"{root / MARKER} cannot be read; nothing was touched",
        remedy=f"if the volumes under {root} are whole, write {json.dumps({'format': _FORMAT})} into it",
    )


def _foreign(root: Path, what: str) -> ForeignData:
    return ForeignData(
        f"{root} is {what}; it was not touched", remedy="give the volumes an empty directory"
    )
