"""Changing the options of a volume that is there, in its record. Its holder acts on that wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import structlog

from pannier.cluster.cluster import Cluster
from pannier.copies.replication import candidates_of
from pannier.core.declarations import Means, Settlement, settle_for
from pannier.core.placement import repair_replicas
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

CHANGED = "options changed"
"""What a volume's history calls it."""


def means_for(volume: Volume, cluster: Cluster) -> Means:
    """What there is for its copies. A node that is down may come back."""
    fit = [
        node
        for node in cluster.catalog.nodes()
        if volume.spec.driver in node.drivers and not node.drained
    ]
    return Means(nodes=len(fit), in_sync=1 + len(volume.in_sync))


class OptionChanges:
    """Changes options by compare-and-swap, from any node."""

    def __init__(self, *, cluster: Cluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock

    async def set(self, name: str, options: Mapping[str, str], *, actor: str) -> Volume:
        """What a person sets.

        Raises:
            VolumeNotFound; InvalidInput: an option cannot be read; Conflict: it cannot be changed, or not now;
            StoreUnavailable, Stale: nothing was changed; OutcomeUnknown: it may have been.
        """

        def decide(record: Volume) -> Settlement:
            means = means_for(record, self._cluster)
            return settle_for(f"by {actor}", record, options, means)

        volume, _ = await self.settle(name, decide)
        return volume

    async def settle(
        self, name: str, decide: Callable[[Volume], Settlement]
    ) -> tuple[Volume, Settlement]:
        """Make a volume what ``decide`` says, by its record in the store.

        If the answer is lost, the same call finds later what became of it.

        Raises:
            As :meth:`set`; and what ``decide`` raises.
        """
        candidates, settled = candidates_of(self._cluster), list[Settlement]()

        def change(record: Volume) -> Volume | None:
            settled.append(decide(record))
            changed = replace(record, spec=settled[-1].spec, declared=dict(settled[-1].declared))
            if changed == record:
                return None
            if not settled[-1].taken:
                return changed
            if len(changed.replicas) < changed.spec.copies - 1:
                replicas = repair_replicas(changed, candidates, gone=frozenset())
                changed = replace(changed, replicas=replicas)
            return changed.with_entry(self._entry(changed, settled[-1]))

        read = partial(self._cluster.fresh, name)
        now = await self._cluster.registry.change(read, change)
        self._cluster.catalog.remember(now.record, revision=now.revision)
        if settled[-1].taken:
            changes = ", ".join(settled[-1].taken)
            log.info("volume.options-changed", volume=name, by=settled[-1].by, changes=changes)
        return now.record, settled[-1]

    def _entry(self, volume: Volume, settled: Settlement) -> HistoryEntry:
        return HistoryEntry(
            at=self._clock.unix(),
            what=CHANGED,
            node=volume.grant.node,
            epoch=volume.grant.epoch,
            detail=f"{settled.by}: {', '.join(settled.taken)}",
        )
