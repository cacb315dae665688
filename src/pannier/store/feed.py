"""Watches within one process: a store publishes its changes, watchers receive them in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pannier.store.base import Deleted, Put, Synced, WatchEvent


class Interrupted(Exception):
    """The subscription was cut; the watcher must list again."""


class Subscription:
    """The changes under one prefix, oldest first. One task reads it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._waiting: deque[tuple[int, WatchEvent]] = deque()
        self._news = asyncio.Event()
        self._cut = False

    def add(self, revision: int, event: WatchEvent) -> None:
        """Hand in a change made at ``revision``."""
        if _key(event).startswith(self.prefix):
            self._waiting.append((revision, event))
            self._news.set()

    def cut(self) -> None:
        """End the subscription as a lost connection does: what waits is lost too."""
        self._cut = True
        self._news.set()

    async def next(self, *, after: int) -> WatchEvent:
        """The next change with a revision above ``after``.

        Raises:
            Interrupted: the subscription was cut.
        """
        while True:
            if self._cut:
                raise Interrupted
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            revision, event = self._waiting.popleft()
            if revision > after:
                return event


class Feed:
    """All subscriptions of one store. Used from one event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    @contextmanager
    def subscribe(self, prefix: str) -> Iterator[Subscription]:
        """Receive every change that is published within the block."""
        subscription = Subscription(prefix)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def publish(self, revision: int, events: Iterable[WatchEvent]) -> None:
        """Tell all watchers of the changes that one transaction made."""
        for event in events:
            for subscription in self._subscriptions:
                subscription.add(revision, event)

    def cut(self) -> None:
        """Cut all subscriptions."""
        for subscription in self._subscriptions:
            subscription.cut()


def _key(event: WatchEvent) -> str:
    match event:
        case Put(entry):
            return entry.key
        case Deleted(key):
            return key
        case Synced():
            raise AssertionError("only changes are published")
