"""Follows a store's watch in a task, so that a test can wait for what it shall see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from pannier.store.base import Deleted, Entry, Put, Store, Synced, WatchEvent

PATIENCE_SECONDS = 60.0
"""A bound for tests that hang; nothing is concluded from it."""


class Watcher:
    """What one watch said: every event, and the keys that are present by it."""

    def __init__(self) -> None:
        self.events: list[WatchEvent] = []
        self.present: dict[str, Entry] = {}
        self._news = asyncio.Condition()

    async def follow(self, store: Store, prefix: str) -> None:
        """Take in the watch's events for ever."""
        async with aclosing(store.watch(prefix)) as events:  # type: ignore[type-var]
            async for event in events:
                async with self._news:
                    self._take(event)
                    self._news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._news:
            await self._news.wait_for(condition)

    async def until_present(self, *keys: str) -> None:
        """Wait until exactly these keys are present."""
        await self.until(lambda: set(self.present) == set(keys))

    async def until_synced(self, *, times: int = 1) -> None:
        """Wait until the watch has begun so many times."""
        await self.until(lambda: self.begun() >= times)

    def begun(self) -> int:
        """How many times the watch was Synced."""
        return sum(isinstance(event, Synced) for event in self.events)

    def values(self, key: str) -> list[bytes | None]:
        """The key's history as it was told: values, and None where it was deleted."""
        return [
            event.entry.value if isinstance(event, Put) else None
            for event in self.events
            if (isinstance(event, Put) and event.entry.key == key)
            or (isinstance(event, Deleted) and event.key == key)
        ]

    def _take(self, event: WatchEvent) -> None:
        self.events.append(event)
        match event:
            case Put(entry):
                self.present[entry.key] = entry
            case Deleted(key):
                self.present.pop(key, None)
            case Synced(keys):
                assert keys <= self.present.keys()
                self.present = {key: self.present[key] for key in self.present if key in keys}


@asynccontextmanager
async def watching(store: Store, prefix: str) -> AsyncIterator[Watcher]:
    """A watch that is Synced, until the end of the block."""
    watcher = Watcher()
    task = asyncio.create_task(watcher.follow(store, prefix))
    try:
        await watcher.until_synced()
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
