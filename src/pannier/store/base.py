"""The Store protocol: a small, linearizable key-value memory with compare-and-swap and leases.

Every implementation passes the same contract suite (tests/contract/test_store.py).

"I lost the race", "the store is unreachable" and "I do not know whether it happened" are three
different answers: :class:`Stale`, :class:`StoreUnavailable` and :class:`OutcomeUnknown`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

ABSENT: Final = 0
"""As an expected revision: the key must not exist."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value. ``revision`` is at least 1 and rises with every change of the key."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """A watched key has this entry now."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Deleted:
    """A watched key is gone: deleted, or its lease ran out."""

    key: str


@dataclass(frozen=True, slots=True)
class Synced:
    """All present entries were given as Puts since the watch began or resumed.

    ``keys`` are the keys that exist under the prefix at this moment: any other key that the
    watcher knew is gone.
    """

    keys: frozenset[str]


WatchEvent = Put | Deleted | Synced


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a transaction: set ``key`` to ``value`` (None deletes) if it is at ``expect``.

    ``expect`` is a revision, or :data:`ABSENT`. ``lease`` ties the key's life to a lease.
    """

    key: str
    value: bytes | None
    expect: int
    lease: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHealth:
    """How one member of the store is; all empty where nothing is to be said.

    Attributes:
        problem: why nobody can rely on it now.
        warning: what becomes a problem if nobody does anything.
        remedy: what to do about it.
    """

    problem: str = ""
    warning: str = ""
    remedy: str = ""

    @property
    def in_short(self) -> str:
        """For a line of a table: ``ok`` or what is wrong."""
        return self.problem or (f"ok, but {self.warning}" if self.warning else "ok")


class Store(Protocol):
    """What Pannier needs of a store.

    All methods but ``watch``, ``session`` and ``health`` may raise the errors listed here. ``Raises:``
    of a method adds what is particular to it.

    Raises:
        StoreUnavailable: the store cannot be reached, or has no room. Nothing was changed, except
            that a lease may have been granted or renewed.
        OutcomeUnknown: a change may have been applied. A read may raise it too, from a store in a
            file: leases that have run out are ended first, and the disk may fail while they are.
        StorageError: the store refuses the request, or its file is damaged or cannot be used.
    """

    async def get(self, key: str) -> Entry | None:
        """The newest committed entry of ``key``, linearizable; None where there is none."""
        ...

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        """All entries whose key begins with ``prefix``, sorted by key, at one moment."""
        ...

    async def commit(self, *changes: Change) -> int:
        """Apply all changes or none, and return the revision that the changed keys now have.

        Raises:
            Stale: a key was not at its expected revision, or a lease is gone; nothing was changed.
            OutcomeUnknown: the request was sent and no answer came; it may have been applied.
                Read the keys again before deciding anything.
            InvalidInput: the transaction is too large; nothing was changed.
            ValueError: no store can do this transaction: see :func:`pannier.store.changes.check`.
        """
        ...

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """Follow all keys that begin with ``prefix``, for ever.

        Yields a Put for each present key, Synced, then every change in order. Where the
        connection is lost, the watch resumes by itself; where it cannot tell every change since,
        it begins again with Puts and a Synced. Where the store cannot be reached or read, it waits.
        """
        ...

    async def grant_lease(self, ttl_seconds: float) -> str:
        """A new lease that runs out ``ttl_seconds`` after its last renewal. Returns its id.

        After an error a lease may remain whose id nobody knows; it runs out by itself.
        """
        ...

    async def renew_lease(self, lease: str) -> None:
        """Start the lease's time again.

        Raises:
            Stale: it has run out or was revoked.
        """
        ...

    async def revoke_lease(self, lease: str) -> None:
        """End the lease now and delete its keys. An unknown lease is no error."""
        ...

    def session(self) -> AbstractAsyncContextManager[Store]:
        """Open connections for the time of the block. The other methods are used within one.

        Raises:
            StoreUnavailable: another process has the store's file open, or the disk is full.
            StorageError: the file cannot be opened or made, or a newer Pannier wrote it; ForeignData
                where it is something else, Corrupt where it is damaged.
            OutcomeUnknown: the disk failed while a new file was set up.
        """
        ...

    async def health(self) -> dict[str, MemberHealth]:
        """Each member's address and how it is, for ``status`` and ``doctor``.

        It raises nothing: errors are part of the answer.
        """
        ...
