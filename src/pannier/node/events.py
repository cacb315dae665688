"""What happened, as users read it: from the volumes' histories, and live from the catalog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from pannier.cluster.catalog import Catalog, Changed
from pannier.contract.views import EventView
from pannier.contract.words import EventKind
from pannier.core.node import Node
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import rfc3339


def history_of(volume: Volume) -> list[EventView]:
    """A volume's own history, oldest first."""
    return [_from_entry(volume, entry) for entry in volume.history]


def recent(catalog: Catalog) -> list[EventView]:
    """The histories of all volumes, the trashed ones included, oldest first."""
    volumes = [*catalog.volumes(), *catalog.trashed()]
    events = [event for volume in volumes for event in history_of(volume)]
    return sorted(events, key=lambda event: event.at)


async def changes(catalog: Catalog) -> AsyncIterator[EventView]:
    """Every change from now on, as it is heard."""
    queue: asyncio.Queue[EventView] = asyncio.Queue(maxsize=10_000)

    def hear(change: Changed) -> None:
        for event in _from_change(change):
            if not queue.full():
                queue.put_nowait(event)

    stop = catalog.listen(hear)
    try:
        while True:
            yield await queue.get()
    finally:
        stop()


def _from_entry(volume: Volume, entry: HistoryEntry) -> EventView:
    return EventView(
        at=rfc3339(entry.at),
        kind=EventKind(f"volume.{entry.what}"),
        subject=volume.name,
        node=entry.node,
        detail=entry.detail,
    )


def _from_change(change: Changed) -> list[EventView]:
    now = rfc3339(time.time())
    match change:
        case Changed("volumes", _, None, Volume() as after):  # new, or back from the trash
            return [_from_entry(after, entry) for entry in after.history[-1:]]
        case Changed("volumes", _, Volume() as before, Volume() as after):
            known = before.history
            return [_from_entry(after, entry) for entry in after.history if entry not in known]
        case Changed("trash", _, None, Volume() as after):
            return [_from_entry(after, entry) for entry in after.history[-1:]]
        case Changed("nodes", name, None, Node()):
            return [EventView(at=now, kind=EventKind.NODE_JOINED, subject=name, node=name)]
        case Changed("nodes", name, Node(), None):
            return [EventView(at=now, kind=EventKind.NODE_LEFT, subject=name, node=name)]
        case Changed("nodes", name, Node() as before, Node() as after):
            if before.drained != after.drained:
                kind = EventKind.NODE_DRAINED if after.drained else EventKind.NODE_UNDRAINED
                return [EventView(at=now, kind=kind, subject=name, node=name)]
        case Changed("alive", name) if change.present:
            return [EventView(at=now, kind=EventKind.NODE_UP, subject=name, node=name)]
        case Changed("alive", name):
            return [EventView(at=now, kind=EventKind.NODE_DOWN, subject=name, node=name)]
    return []
