"""What is shown of the sync path: how sync calls are made durable, and the journal of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pannier.agent.drivers import Drivers
from pannier.contract.views import JournalView, SpreadView, SyncView
from pannier.contract.words import SyncWay
from pannier.copies.replicated import Replicated
from pannier.core.sync_times import LastGroups, SyncTimes
from pannier.core.volume import Volume
from pannier.storage.lines import JournalState, LineDriver

_DIGITS = 6
"""Of times in seconds: microseconds."""


def sync_view(replicated: Replicated) -> SyncView:
    """How sync calls of a volume that is held here are made durable."""
    reason, groups = replicated.without_records(), replicated.groups
    return SyncView(
        way=SyncWay.GENERATIONS if reason else SyncWay.RECORDS,
        reason=reason,
        remedy=replicated.doubt.remedy if replicated.doubt is not None else "",
        groups=len(groups),
        by_generation=groups.by_generation(),
        last_reason=groups.last_reason(),
        total=_spread(groups, lambda each: each.total),
        local=_spread(groups, lambda each: each.local),
        turn=_spread(groups, lambda each: each.turn),
        cut=_spread(groups, lambda each: each.cut),
        copies=_spread(groups, lambda each: each.copies),
    )


def _spread(groups: LastGroups, part: Callable[[SyncTimes], float]) -> SpreadView | None:
    found = groups.spread(part)
    if found is None:
        return None
    return SpreadView(median=round(found.median, _DIGITS), worst=round(found.worst, _DIGITS))


async def journal_of(drivers: Drivers) -> JournalState | None:
    """This node's journal; None where no driver that is open keeps records."""
    for driver in drivers:
        if isinstance(driver, LineDriver):
            return await driver.journal()
    return None


def journal_view(state: JournalState, volumes: Iterable[Volume]) -> JournalView:
    """A journal, with the names of the volumes that the cluster knows, and the ids of others."""
    names = {volume.id: volume.name for volume in volumes}
    return JournalView(
        total_bytes=state.total_bytes,
        live_bytes=state.live_bytes,
        most_bytes=state.most_bytes,
        volumes={names.get(key, key): size for key, size in state.volumes.items() if size},
        trouble=state.trouble.message if state.trouble is not None else "",
        damaged=sorted(f"{names.get(key, key)}: {why}" for key, why in state.damaged.items()),
    )
