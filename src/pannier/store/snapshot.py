"""How a watch begins, in every store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pannier.store.base import Entry, Put, Synced, WatchEvent


def as_events(present: Sequence[Entry]) -> Iterator[WatchEvent]:
    """A Put for each present entry, then Synced, which tells a watcher what is gone."""
    yield from (Put(entry) for entry in present)
    yield Synced(frozenset(entry.key for entry in present))
