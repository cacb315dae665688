"""The store of a single node: a SQLite file, no server.

Every commit is on disk before it is answered (write-ahead log, ``synchronous=FULL``). One process
at a time has the file open; watches are served within it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from pannier.core.errors import PannierError
from pannier.store.base import Change, Entry, MemberHealth, Store, WatchEvent
from pannier.store.changes import check
from pannier.store.feed import Feed, Interrupted
from pannier.store.snapshot import as_events
from pannier.store.sqlite_file import SqliteFile

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_LONGEST_SLEEP_SECONDS: Final = 5.0
"""Longest pause between checks of the leases: the loop's clock stops in suspend, theirs does not."""
_WATCH_RETRY_SECONDS: Final = 1.0
"""Between two tries to begin a watch while the file cannot be used."""


def boottime() -> float:
    """Seconds since boot, suspend included; nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Open:
    """What exists during a session."""

    file: SqliteFile
    thread: ThreadPoolExecutor
    feed: Feed
    granted: asyncio.Event

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in the file's thread. Not undone when the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)


class SqliteStore(Store):
    """A file that is the whole store.

    Args:
        path: of the file; made at the first session, with mode 0600.
        clock: seconds, for leases; must run on during suspend and never jump.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = boottime) -> None:
        self._path = Path(path)
        self._clock = clock
        self._session: _Open | None = None

    async def get(self, key: str) -> Entry | None:
        now = self._open()
        return await now.run(lambda: now.file.get(key))

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        now = self._open()
        entries, _ = await now.run(lambda: now.file.list(prefix))
        return entries

    async def commit(self, *changes: Change) -> int:
        check(changes)
        now = self._open()
        return await now.run(lambda: now.file.commit(changes))

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        now = self._open()
        with now.feed.subscribe(prefix) as subscription:
            present, revision = await self._first_list(now, prefix)
            for event in as_events(present):
                yield event
            while True:
                try:
                    yield await subscription.next(after=revision)
                except Interrupted as error:
                    raise RuntimeError("the store's session ended during a watch") from error

    async def _first_list(self, now: _Open, prefix: str) -> tuple[tuple[Entry, ...], int]:
        while True:
            try:
                return await now.run(lambda: now.file.list(prefix))
            except PannierError as error:  # such as a full disk: a watch waits
                _log.warning("store.watch-waits", file=str(self._path), error=str(error))
                await asyncio.sleep(_WATCH_RETRY_SECONDS)

    async def grant_lease(self, ttl_seconds: float) -> str:
        now = self._open()
        lease = await now.run(lambda: now.file.grant(ttl_seconds))
        now.granted.set()
        return lease

    async def renew_lease(self, lease: str) -> None:
        now = self._open()
        await now.run(lambda: now.file.renew(lease))

    async def revoke_lease(self, lease: str) -> None:
        now = self._open()
        await now.run(lambda: now.file.revoke(lease))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SqliteStore]:
        """Open the file for the time of the block.

        Raises:
            StoreUnavailable: another process has it open.
            ForeignData: it is something else; Corrupt: it is damaged.
            StorageError: it cannot be opened or made, or a newer Pannier wrote it.
        """
        if self._session is not None:
            raise RuntimeError("the store's session is already open")
        loop = asyncio.get_running_loop()
        feed = Feed()

        def publish(revision: int, events: Sequence[WatchEvent]) -> None:
            # Called in the file's thread before a commit is answered: watchers are never behind it.
            loop.call_soon_threadsafe(feed.publish, revision, events)

        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pannier-store")
        try:
            file = await loop.run_in_executor(
                thread, lambda: SqliteFile(self._path, clock=self._clock, publish=publish)
            )
            self._session = _Open(file, thread, feed, asyncio.Event())
            expiry = asyncio.create_task(_expire(self._session))
            try:
                yield self
            finally:
                self._session = None
                expiry.cancel()
                feed.cut()
                thread.submit(file.close)
        finally:
            # Waits for the work under way, at most one commit, so that the file is closed after it.
            thread.shutdown(wait=True)

    async def health(self) -> dict[str, MemberHealth]:
        try:
            await self.get("health")
        except PannierError as error:
            return {str(self._path): MemberHealth(problem=error.message, remedy=error.remedy)}
        return {str(self._path): MemberHealth()}

    def _open(self) -> _Open:
        if self._session is None:
            raise RuntimeError("the store is used outside its session() block")
        return self._session


async def _expire(now: _Open) -> None:
    """End leases when their time is over, so that watchers hear of it; requests check by themselves."""
    while True:
        now.granted.clear()
        try:
            pause = await now.run(now.file.expire_due)
        except PannierError as error:
            _log.warning("leases cannot be ended", reason=str(error))
            pause = 1.0
        with suppress(TimeoutError):
            async with asyncio.timeout(
                None if pause is None else min(pause, _LONGEST_SLEEP_SECONDS)
            ):
                await now.granted.wait()
