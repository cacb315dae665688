"""A store in memory, for tests and simulations, with faults as verbs.

:class:`MemoryData` is what a cluster of servers would hold; each :class:`MemoryStore` is one
node's connection to it and can be cut, or lose requests and answers, independently of the others.
Time is the event loop's, so that leases run out in virtual time under a virtual-time loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pannier.core.errors import OutcomeUnknown, StoreUnavailable
from pannier.store.base import ABSENT, Change, Deleted, Entry, MemberHealth, Put, Store, WatchEvent
from pannier.store.changes import check, lease_gone, lost_race
from pannier.store.feed import Feed, Interrupted, Subscription
from pannier.store.keys import encode
from pannier.store.snapshot import as_events


@dataclass(slots=True)
class _Lease:
    ttl_seconds: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of the entries, as of a revision."""

    entries: tuple[Entry, ...]
    revision: int


class MemoryData:
    """Entries and leases, shared by the stores of all nodes in a test.

    Args:
        clock: seconds, for leases; the running event loop's time by default.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._lease_of: dict[str, str] = {}
        self._leases: dict[str, _Lease] = {}
        self._granted = 0
        self._timer: asyncio.TimerHandle | None = None
        self.revision = 1
        self.feed = Feed()

    def backup(self) -> Backup:
        """What is there now, without what has a lease."""
        kept = (entry for key, entry in self._entries.items() if key not in self._lease_of)
        return Backup(tuple(kept), self.revision)

    def restore(self, backup: Backup, *, goes_on: bool) -> None:
        """Put what there was back. All leases are gone, and watchers must list again.

        Args:
            goes_on: the revision goes on; else it goes back.
        """
        self._entries = {entry.key: entry for entry in backup.entries}
        self._lease_of.clear()
        self._leases.clear()
        self.revision = self.revision if goes_on else backup.revision
        self.feed.cut()

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, or None."""
        self.expire_due()
        return self._entries.get(key)

    def list(self, prefix: str) -> tuple[Entry, ...]:
        """The entries under ``prefix``, sorted by key."""
        self.expire_due()
        found = [entry for key, entry in self._entries.items() if key.startswith(prefix)]
        return tuple(sorted(found, key=lambda entry: encode(entry.key)))

    def commit(self, changes: tuple[Change, ...]) -> int:
        """Apply all changes or raise Stale; returns the revision."""
        self.expire_due()
        for change in changes:
            present = self._entries.get(change.key)
            if (present.revision if present else ABSENT) != change.expect:
                raise lost_race(change.key)
            if change.lease is not None and change.lease not in self._leases:
                raise lease_gone(change.lease)
        self._apply(changes)
        return self.revision

    def grant(self, ttl_seconds: float) -> str:
        """A new lease."""
        self.expire_due()
        self._granted += 1
        lease = f"lease-{self._granted}"
        self._leases[lease] = _Lease(ttl_seconds, self._now() + ttl_seconds)
        self._set_timer()
        return lease

    def renew(self, lease: str) -> None:
        """Start the lease's time again, or raise Stale."""
        self.expire_due()
        if lease not in self._leases:
            raise lease_gone(lease)
        self._leases[lease].deadline = self._now() + self._leases[lease].ttl_seconds
        self._set_timer()

    def revoke(self, lease: str) -> None:
        """End the lease, if it is there, and delete its keys."""
        if self._leases.pop(lease, None) is None:
            return
        keys = sorted(key for key, owner in self._lease_of.items() if owner == lease)
        self._apply(tuple(Change(key, None, self._entries[key].revision) for key in keys))

    def expire_due(self) -> None:
        """End the leases whose time is over. Needed by hand only where a test owns the clock."""
        now = self._now()
        for lease in [name for name, held in self._leases.items() if held.deadline <= now]:
            self.revoke(lease)

    def _apply(self, changes: tuple[Change, ...]) -> None:
        revision = self.revision + 1
        events: list[WatchEvent] = []
        for change in changes:
            self._lease_of.pop(change.key, None)
            if change.value is not None:
                entry = Entry(change.key, bytes(change.value), revision)
                self._entries[change.key] = entry
                if change.lease is not None:
                    self._lease_of[change.key] = change.lease
                events.append(Put(entry))
            elif self._entries.pop(change.key, None) is not None:
                events.append(Deleted(change.key))
        if events:
            self.revision = revision
            self.feed.publish(revision, events)

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leases:
            first = min(lease.deadline for lease in self._leases.values())
            # Never zero: a loop's timer may fire a clock tick early, and would then spin.
            delay = max(first - self._now(), 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self.expire_due()
        self._set_timer()


class MemoryStore(Store):
    """One node's connection to a :class:`MemoryData`.

    Args:
        data: shared with the stores of other nodes; a new one by default.
        name: the address that :meth:`health` shows.
        latency_seconds: how long each request takes.
    """

    def __init__(
        self,
        data: MemoryData | None = None,
        *,
        name: str = "memory",
        latency_seconds: float = 0.0,
    ) -> None:
        self.data = data if data is not None else MemoryData()
        self.latency_seconds = latency_seconds
        self._name = name
        self._sessions = 0
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._subscriptions: set[Subscription] = set()
        self._requests_to_lose = 0
        self._answers_to_lose = 0

    def cut(self) -> None:
        """Cut the connection: requests raise StoreUnavailable, watches wait."""
        self._reachable.clear()
        self._cut_watches()

    def mend(self) -> None:
        """Undo :meth:`cut`; watches begin again."""
        self._reachable.set()

    def lose_requests(self, count: int = 1) -> None:
        """Let the next ``count`` commits end as OutcomeUnknown without being applied."""
        self._requests_to_lose = count

    def lose_answers(self, count: int = 1) -> None:
        """Let the next ``count`` commits end as OutcomeUnknown after they were applied."""
        self._answers_to_lose = count

    async def get(self, key: str) -> Entry | None:
        await self._reach()
        return self.data.get(key)

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        await self._reach()
        return self.data.list(prefix)

    async def commit(self, *changes: Change) -> int:
        check(changes)
        await self._reach()
        if self._requests_to_lose:
            self._requests_to_lose -= 1
            raise self._unknown()
        revision = self.data.commit(changes)
        if self._answers_to_lose:
            self._answers_to_lose -= 1
            raise self._unknown()
        return revision

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        self._need_session()
        while True:
            await self._reachable.wait()
            self._need_session()
            with self.data.feed.subscribe(prefix) as subscription:
                self._subscriptions.add(subscription)
                try:
                    present, revision = self.data.list(prefix), self.data.revision
                    for event in as_events(present):
                        yield event
                    while True:
                        yield await subscription.next(after=revision)
                except Interrupted:
                    continue
                finally:
                    self._subscriptions.discard(subscription)

    async def grant_lease(self, ttl_seconds: float) -> str:
        await self._reach()
        return self.data.grant(ttl_seconds)

    async def renew_lease(self, lease: str) -> None:
        await self._reach()
        self.data.renew(lease)

    async def revoke_lease(self, lease: str) -> None:
        await self._reach()
        self.data.revoke(lease)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[MemoryStore]:
        self._sessions += 1
        try:
            yield self
        finally:
            self._sessions -= 1
            if not self._sessions:
                self._cut_watches()

    async def health(self) -> dict[str, MemberHealth]:
        self._need_session()
        problem = "" if self._reachable.is_set() else "cannot be reached"
        return {self._name: MemberHealth(problem=problem)}

    async def _reach(self) -> None:
        self._need_session()
        await asyncio.sleep(self.latency_seconds)
        if not self._reachable.is_set():
            raise StoreUnavailable(f"the store at {self._name} cannot be reached")

    def _cut_watches(self) -> None:
        for subscription in self._subscriptions:
            subscription.cut()

    def _unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"the store at {self._name} did not answer; the change may have been made",
            remedy="read it again",
        )

    def _need_session(self) -> None:
        if not self._sessions:
            raise RuntimeError("the store is used outside its session() block")
