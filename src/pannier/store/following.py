"""What a watcher has been told, so that a watch can begin again without leaving ghosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pannier.store.base import Deleted, Entry, Put, Synced, WatchEvent


class Following:
    """The keys that one watcher believes to be present."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def saw(self, event: WatchEvent) -> WatchEvent:
        """Remember what this event tells the watcher; returns it."""
        match event:
            case Put(entry):
                self._known.add(entry.key)
            case Deleted(key):
                self._known.discard(key)
            case Synced():
                pass
        return event

    def begin_again(self, present: Sequence[Entry]) -> Iterator[WatchEvent]:
        """A Deleted for every known key that went unseen, a Put for each present one, Synced."""
        gone = self._known - {entry.key for entry in present}
        self._known = {entry.key for entry in present}
        yield from (Deleted(key) for key in sorted(gone))
        yield from (Put(entry) for entry in present)
        yield Synced()
