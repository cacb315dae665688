"""The SQLite file behind :class:`~pannier.store.sqlite.SqliteStore`; used from one thread.

Layout, ``user_version`` 1: ``entries`` by key (UTF-8 bytes), ``leases``, and one row of ``state``
with the newest revision. Deadlines of leases are not stored: a lease starts its time again when
the file is opened, so that a restart of the daemon or the machine never ends one early.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pannier.core.errors import (
    Corrupt,
    ForeignData,
    OutcomeUnknown,
    PannierError,
    StorageError,
    StoreUnavailable,
)
from pannier.store import keys
from pannier.store.base import ABSENT, Change, Deleted, Entry, Put, WatchEvent
from pannier.store.changes import lease_gone, lost_race

APPLICATION_ID: Final = 0x50414E4E
"""``PANN``, in the file's header: tells our file from another program's."""

SCHEMA_VERSION: Final = 1

_MAGIC: Final = b"SQLite format 3\0"

_BUSY_SECONDS: Final = 2.0
"""How long to wait for another process to release the file: a restart overlaps with the old one."""

_SCHEMA: Final = (
    "CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL,"
    " lease TEXT) WITHOUT ROWID",
    "CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL",
    "CREATE TABLE leases (id TEXT PRIMARY KEY, ttl_seconds REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state (revision INTEGER NOT NULL)",
    "INSERT INTO state VALUES (1)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

Events = list[WatchEvent]

Publish = Callable[[int, Sequence[WatchEvent]], None]
"""Called with each transaction's revision and changes, in order, after it is on disk."""


class SqliteFile:
    """An open store file. Create, use and close it in one thread.

    Args:
        path: made with mode 0600 where it does not exist; its directory must exist.
        clock: seconds, for leases; must run on during suspend and never jump.
        publish: see :data:`Publish`.

    Raises:
        ForeignData: the file is something else; it was not touched.
        Corrupt: it is damaged.
        StoreUnavailable: another process has it open.
        StorageError: it cannot be opened or made, or a newer Pannier wrote it.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], publish: Publish) -> None:
        self._path = path
        self._clock = clock
        self._publish = publish
        _make_private(path)
        with self._translated():
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self._translated():
                self._prepare()
                self._deadlines = {
                    lease: clock() + ttl
                    for lease, ttl in self._db.execute("SELECT id, ttl_seconds FROM leases")
                }
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Write the log back and close the file."""
        self._db.close()

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``."""
        self.expire_due()
        with self._translated():
            row = self._db.execute(
                "SELECT key, value, revision FROM entries WHERE key = ?", (keys.encode(key),)
            ).fetchone()
        return _entry(row) if row else None

    def list(self, prefix: str) -> tuple[tuple[Entry, ...], int]:
        """The entries under ``prefix``, sorted, and the store's revision."""
        self.expire_due()
        start = keys.encode(prefix)
        end = keys.prefix_end(start)
        with self._translated():
            rows = self._db.execute(
                "SELECT key, value, revision FROM entries"
                " WHERE key >= ? AND (? IS NULL OR key < ?) ORDER BY key",
                (start, end, end),
            ).fetchall()
            return tuple(_entry(row) for row in rows), self._revision()

    def commit(self, changes: tuple[Change, ...]) -> int:
        """Apply all changes or none; returns the revision.

        Raises:
            Stale: a key is not at its expected revision, or a lease is gone.
            OutcomeUnknown: the disk failed while committing.
        """
        self.expire_due()
        with self._transaction() as events:
            for change in changes:
                self._check(change)
            return self._apply(changes, events)

    def grant(self, ttl_seconds: float) -> str:
        """A new lease."""
        lease = secrets.token_hex(8)
        with self._transaction():
            self._db.execute("INSERT INTO leases VALUES (?, ?)", (lease, ttl_seconds))
        self._deadlines[lease] = self._clock() + ttl_seconds
        return lease

    def renew(self, lease: str) -> None:
        """Start the lease's time again; raises Stale where it is gone."""
        self.expire_due()
        if lease not in self._deadlines:
            raise lease_gone(lease)
        with self._translated():
            row = self._db.execute(
                "SELECT ttl_seconds FROM leases WHERE id = ?", (lease,)
            ).fetchone()
        if row is None:  # a revocation with an unknown outcome did happen
            del self._deadlines[lease]
            raise lease_gone(lease)
        self._deadlines[lease] = self._clock() + row[0]

    def revoke(self, lease: str) -> None:
        """End the lease, if it is there, and delete its keys."""
        if lease not in self._deadlines:
            return
        with self._transaction() as events:
            rows = self._db.execute(
                "SELECT key, revision FROM entries WHERE lease = ? ORDER BY key", (lease,)
            ).fetchall()
            gone = tuple(Change(keys.decode(key), None, revision) for key, revision in rows)
            self._apply(gone, events)
            self._db.execute("DELETE FROM leases WHERE id = ?", (lease,))
        del self._deadlines[lease]

    def expire_due(self) -> float | None:
        """End the leases whose time is over; returns the seconds until the next one's end."""
        now = self._clock()
        for lease in [name for name, deadline in self._deadlines.items() if deadline <= now]:
            self.revoke(lease)
        return min(self._deadlines.values()) - now if self._deadlines else None

    def _check(self, change: Change) -> None:
        row = self._db.execute(
            "SELECT revision FROM entries WHERE key = ?", (keys.encode(change.key),)
        ).fetchone()
        if (row[0] if row else ABSENT) != change.expect:
            raise lost_race(change.key)
        if change.lease is not None and change.lease not in self._deadlines:
            raise lease_gone(change.lease)

    def _apply(self, changes: tuple[Change, ...], events: Events) -> int:
        revision = self._revision() + 1
        for change in changes:
            key = keys.encode(change.key)
            if change.value is None:
                if self._db.execute("DELETE FROM entries WHERE key = ?", (key,)).rowcount:
                    events.append(Deleted(change.key))
                continue
            value = bytes(change.value)
            self._db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
                (key, value, revision, change.lease),
            )
            events.append(Put(Entry(change.key, value, revision)))
        if not events:
            return revision - 1
        self._db.execute("UPDATE state SET revision = ?", (revision,))
        return revision

    def _revision(self) -> int:
        (revision,) = self._db.execute("SELECT revision FROM state").fetchone()
        return int(revision)

    def _prepare(self) -> None:
        # Exclusive: a second process would not see our leases and watches, and could end our
        # leases. It gets "locked" instead.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application = self._pragma("application_id")
        if application != APPLICATION_ID and (application or self._has_tables()):
            raise ForeignData(
                f"{self._path} is another program's database; it was not touched",
                remedy="give the store a file of its own",
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} was written by a newer Pannier (layout {version})",
                remedy="install that version again; layouts are not converted back",
            )
        with self._transaction():
            if version == 0:
                for statement in _SCHEMA:
                    self._db.execute(statement)
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _corrupt(self._path, str(verdict))

    def _pragma(self, name: str) -> int:
        (value,) = self._db.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _has_tables(self) -> bool:
        return self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None

    @contextmanager
    def _transaction(self) -> Iterator[Events]:
        """All statements of the block or none; then publishes the events that it collected."""
        events: Events = []
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield events
            except BaseException:
                self._roll_back()
                raise
        with self._translated(committing=True):
            try:
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        if events:
            with self._translated():
                revision = self._revision()
            self._publish(revision, events)

    def _roll_back(self) -> None:
        # After some errors SQLite has already rolled back.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    @contextmanager
    def _translated(self, *, committing: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translation(error, self._path, committing=committing) from error


def _entry(row: tuple[bytes, bytes, int]) -> Entry:
    key, value, revision = row
    return Entry(keys.decode(key), value, revision)


def _make_private(path: Path) -> None:
    """Make the file, readable by its owner only: SQLite gives its log the same mode."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ForeignData(
                    f"{path} is not a file", remedy="give the store a file of its own"
                )
            # SQLite itself takes a file shorter than its header for an empty one.
            if os.pread(fd, len(_MAGIC), 0) not in (b"", _MAGIC):
                raise _no_database(path)
            if stat.S_IMODE(mode) & 0o077:
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"the store's file {path} cannot be opened: {error.strerror}",
            remedy="see that its directory exists and that pannierd may write there",
        ) from error


def _no_database(path: Path) -> ForeignData:
    return ForeignData(
        f"{path} is not a database; it was not touched",
        remedy="give the store a file of its own",
    )


def _corrupt(path: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"the store's file {path} is damaged ({reason})",
        remedy="stop pannierd, keep a copy of the file, and bring back a backup",
    )


def _translation(error: sqlite3.Error, path: Path, *, committing: bool) -> PannierError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreUnavailable(
                f"the store's file {path} is in use by another process",
                remedy="stop the other pannierd; `fuser` names it",
            )
        case sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"no room for the store's file {path}", remedy="free some room")
        case sqlite3.SQLITE_NOTADB:
            return _no_database(path)
        case sqlite3.SQLITE_CORRUPT:
            return _corrupt(path, str(error))
    if committing:
        # The log may or may not have reached the disk, and only a restart would tell.
        return OutcomeUnknown(
            f"the disk of {path} failed while a change was written ({error})",
            remedy="see the kernel's log, then read the state again",
        )
    return StorageError(
        f"the store's file {path} cannot be used: {error}", remedy="see the kernel's log"
    )
