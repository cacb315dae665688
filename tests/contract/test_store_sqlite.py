"""What only a store in a file can get wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path

import pytest
from watcher import watching

from pannier.core.errors import (
    Corrupt,
    ForeignData,
    OutcomeUnknown,
    Stale,
    StorageError,
    StoreUnavailable,
)
from pannier.store import sqlite, sqlite_file
from pannier.store.base import ABSENT, Change, Entry
from pannier.store.sqlite import SqliteStore
from pannier.store.sqlite_file import SqliteFile


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def make(file: Path) -> None:
    """A store with one entry and one leased one."""
    async with SqliteStore(file).session() as store:
        lease = await store.grant_lease(60)
        await store.commit(Change("a", b"1", ABSENT), Change("leased", b"1", ABSENT, lease))


async def test_only_the_owner_may_read_the_file_and_its_log(file: Path) -> None:
    file.touch(mode=0o644)
    async with SqliteStore(file).session() as store:
        await store.commit(Change("a", b"1", ABSENT))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()}
    assert modes.keys() >= {"store.db", "store.db-wal"}
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("content", [b"this is not a database\n" * 100, b"x", b"\0" * 5000])
async def test_file_that_is_no_database_is_refused_and_not_touched(
    file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    with pytest.raises(ForeignData, match=r"store\.db"):
        async with SqliteStore(file).session():
            pass
    assert file.read_bytes() == content


async def test_another_programs_database_is_refused_and_not_touched(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    content = file.read_bytes()
    with pytest.raises(ForeignData, match="another program"):
        async with SqliteStore(file).session():
            pass
    assert file.read_bytes() == content


async def test_file_of_a_newer_version_is_refused(file: Path) -> None:
    await make(file)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StorageError, match="newer"):
        async with SqliteStore(file).session():
            pass


async def test_damaged_file_is_corrupt(file: Path) -> None:
    await make(file)
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xaa" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(Corrupt, match=r"store\.db"):
        async with SqliteStore(file).session():
            pass


@pytest.mark.parametrize("where", ["missing/store.db", "."])
async def test_path_that_cannot_be_a_file_is_a_storage_error(tmp_path: Path, where: str) -> None:
    with pytest.raises(StorageError):
        async with SqliteStore(tmp_path / where).session():
            pass


async def test_second_process_is_told_that_the_file_is_in_use(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_BUSY_SECONDS", 0.05)
    async with SqliteStore(file).session() as store:
        with pytest.raises(StoreUnavailable, match="in use"):
            async with SqliteStore(file).session():
                pass
        await store.commit(Change("a", b"1", ABSENT))


async def test_commits_are_in_the_log_when_they_are_answered(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with SqliteStore(file).session() as store:
        revision = await store.commit(Change("a", b"1", ABSENT))
        # What a sudden death leaves: the files as they are now.
        copy.write_bytes(file.read_bytes())
        copy.with_name("copy.db-wal").write_bytes(file.with_name("store.db-wal").read_bytes())
    async with SqliteStore(copy).session() as survivor:
        assert await survivor.get("a") == Entry("a", b"1", revision)


async def test_lease_ends_by_its_clock_and_not_before(file: Path) -> None:
    clock = HandClock()
    async with SqliteStore(file, clock=clock).session() as store:
        lease = await store.grant_lease(10)
        await store.commit(Change("leased", b"1", ABSENT, lease))
        clock.now += 9.9
        await store.renew_lease(lease)
        clock.now += 9.9
        assert await store.get("leased") is not None
        clock.now += 0.1
        assert await store.get("leased") is None
        with pytest.raises(Stale):
            await store.renew_lease(lease)


async def test_lease_has_its_whole_time_again_after_a_restart(file: Path) -> None:
    clock = HandClock()
    async with SqliteStore(file, clock=clock).session() as store:
        lease = await store.grant_lease(10)
        await store.commit(Change("leased", b"1", ABSENT, lease))
    clock.now = 5000.0
    async with SqliteStore(file, clock=clock).session() as store:
        clock.now += 9.9
        await store.renew_lease(lease)
        clock.now += 10
        assert await store.get("leased") is None


async def test_commit_of_a_cancelled_caller_is_still_told_to_watchers(file: Path) -> None:
    async with SqliteStore(file).session() as store, watching(store, "") as watcher:
        commit = asyncio.create_task(store.commit(Change("a", b"1", ABSENT)))
        await asyncio.sleep(0)
        commit.cancel()
        await store.commit(Change("b", b"1", ABSENT))
        await watcher.until(lambda: "b" in watcher.present)
        assert set(watcher.present) == {entry.key for entry in await store.list("")}


async def test_watch_ends_with_its_session(file: Path) -> None:
    async with SqliteStore(file).session() as store:
        watch = store.watch("")
        await anext(watch)
    with pytest.raises(RuntimeError, match="session"):
        await anext(watch)


async def test_watch_waits_while_the_file_cannot_be_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_WATCH_RETRY_SECONDS", 0.01)
    left = 3

    def failing(self: SqliteFile) -> float | None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OutcomeUnknown("the disk is full", remedy="free some room")
        return real(self)

    real = SqliteFile.expire_due
    async with SqliteStore(file).session() as store:
        monkeypatch.setattr(SqliteFile, "expire_due", failing)
        async with watching(store, "") as watcher:
            await store.commit(Change("a", b"1", ABSENT))
            await watcher.until(lambda: "a" in watcher.present)
    assert left < 0


async def test_lease_that_was_revoked_with_an_unknown_outcome_is_gone(file: Path) -> None:
    async with SqliteStore(file).session() as store:
        lease = await store.grant_lease(10)
        now = store._open()  # what the revocation had done when its answer was lost
        await now.run(lambda: now.file._db.execute("DELETE FROM leases"))
        with pytest.raises(Stale):
            await store.renew_lease(lease)
