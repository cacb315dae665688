"""What happened, as users read it: from the volumes' histories, and live from the catalog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Purged, Registry
from pannier.contract.views import EventView
from pannier.contract.words import EventKind
from pannier.core.errors import PannierError, Unavailable
from pannier.core.node import Node
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import rfc3339


def history_of(volume: Volume) -> list[EventView]:
    """A volume's own history, oldest first."""
    return [_from_entry(volume, entry) for entry in volume.history]


async def recent(cluster: Cluster) -> list[EventView]:
    """The histories of all volumes, the removed ones included, oldest first. Of those that left the trash for ever, that
    is all; it is left out while the store cannot be asked."""
    volumes = [*cluster.catalog.volumes(), *cluster.catalog.trashed()]
    events = [event for volume in volumes for event in history_of(volume)]
    with suppress(Unavailable):
        events += await purged_events(cluster.registry)
    return sorted(events, key=lambda event: event.at)


async def purged_events(registry: Registry, name: str | None = None) -> list[EventView]:
    """How volumes left the trash for ever, oldest first: those of a name or id, or all."""
    found = [
        event
        for volume_id, mark in (await registry.purges()).items()
        if name in (None, mark.record.name, volume_id)
        for event in _from_mark(mark.record)
    ]
    return sorted(found, key=lambda event: event.at)


async def changes(cluster: Cluster) -> AsyncIterator[EventView]:
    """Every change from now on, as it is heard."""
    queue: asyncio.Queue[Changed] = asyncio.Queue(maxsize=10_000)

    def hear(change: Changed) -> None:
        if not queue.full():
            queue.put_nowait(change)

    stop = cluster.catalog.listen(hear)
    try:
        while True:
            change = await queue.get()
            for event in _from_change(change) or await _from_purge(change, cluster.registry):
                yield event
    finally:
        stop()


async def _from_purge(change: Changed, registry: Registry) -> list[EventView]:
    """What left the trash was restored, which is told as a change of the volume, or is gone for ever."""
    if change.kind != "trash" or change.present:
        return []
    try:
        mark = await registry.purge_of(change.name)
    except PannierError:  # the store is away: others are told no sooner
        return []
    return _from_mark(mark) if mark is not None else []


def _from_mark(mark: Purged) -> list[EventView]:
    return [] if mark.entry is None else [_entry_view(mark.name, mark.entry)]


def _from_entry(volume: Volume, entry: HistoryEntry) -> EventView:
    return _entry_view(volume.name, entry)


def _entry_view(name: str, entry: HistoryEntry) -> EventView:
    return EventView(
        at=rfc3339(entry.at),
        kind=EventKind(f"volume.{entry.what}"),
        subject=name,
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
