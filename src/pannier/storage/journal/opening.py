"""Opening the journal of a pool, and a note beside it of which journal that is.

A person may move a journal away, or put another one in its place. A journal cannot tell that by itself, so the pool
remembers on which one its copies count. Another one notes for each of them that it may lack records, before it
is remembered.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import structlog

from pannier.core.errors import InvalidInput, PoolFull, StorageError
from pannier.host.files import write_file
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.journal.file import open_file
from pannier.storage.journal.journal import Journal

log = structlog.get_logger(__name__)

NOTE = "known-journal"
"""Beside the journal, and not named after it: who moves the journal away must not take the note along."""


def open_journal(path: Path, *, size_bytes: int, volumes: Collection[str]) -> Journal:
    """Open a node's journal for this process alone; make it where there is none.

    All of it is read. What is damaged is told by :meth:`Journal.damaged`, and so is what may be in another journal. If the
    disk takes no writes, it opens too, and what it has can be read.

    Args:
        path: in a pool, outside of what is snapshotted.
        size_bytes: of a new one; one that exists keeps its size.
        volumes: of which this node has copies. Damage that cannot be told apart may concern each of them.

    Raises:
        NewerFormat: a newer version wrote it. Corrupt: nothing of it can be read. Conflict: another process has it open.
        InvalidInput: there never was one, and the size is too small. PoolFull: there never was one, and it cannot be made.
        StorageError: the disk refused, or the one that was here is gone and no other one can be made.
    """
    what, note = f"the journal {path}", path.with_name(NOTE)
    with told_as_storage_error(f"read which journal {path} is"):
        known = _noted(note)
    try:
        medium, geometry = open_file(path, size_bytes=size_bytes)
    except (InvalidInput, PoolFull) as error:
        if known is None:
            raise
        raise StorageError(
            f"{what} is gone, and no other one can be made: {error.message}", remedy=error.remedy
        ) from error
    identity = geometry.identity.hex().encode() + b"\n"
    # A pool that never had a journal has no note, and no record of its copies was ever confirmed.
    stranger = known not in (None, identity)
    try:
        with told_as_storage_error(f"read {what}"):
            journal = Journal(medium, geometry, volumes=volumes, what=what, stranger=stranger)
    except BaseException:
        medium.close()
        raise
    if stranger:
        log.warning("journal.another-one", path=str(path), volumes=len(volumes))
    if known != identity and journal.tells_all:
        try:
            write_file(note, identity)
        except OSError as error:  # as on a full pool: done at the next opening
            log.warning("journal.not-noted", path=str(path), error=str(error))
    return journal


def _noted(note: Path) -> bytes | None:
    try:
        return note.read_bytes()
    except FileNotFoundError:
        return None
