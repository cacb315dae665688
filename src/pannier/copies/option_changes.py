"""Changing the options of a volume that is there, in its record. Its holder acts on that wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.copies.replication import candidates_of
from pannier.core.declarations import Declaration, Left, Means, Settlement, settle, settle_for
from pannier.core.placement import repair_replicas
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

CHANGED = "options changed"
ASKED = "asked for otherwise"
"""What a volume's history calls them."""


@dataclass(frozen=True, slots=True)
class DeclaredVolume:
    """A volume with all that is declared of it."""

    volume: Volume
    declarations: tuple[Declaration, ...]

    def settled(self, cluster: Cluster) -> Settlement:
        """What the volume is to be, as far as ``cluster`` is known here."""
        return settle(self.volume, self.declarations, means_for(self.volume, cluster))

    def findings(self, cluster: Cluster) -> list[FindingView]:
        """The warnings of doctor."""
        settled = self.settled(cluster)
        found = [
            self._warning(
                f"{left.who} asks for it with other options: {left.what}. The volume stays as it is, and Docker "
                "says nothing",
                "name the volume's own options there; or see pannier volume set, or use a volume with another name",
            )
            for left in settled.left
        ]
        if settled.taken:
            found.append(
                self._warning(
                    f"its options are being changed {settled.by}: {', '.join(settled.taken)}",
                    "this takes some seconds; if it stays, see journalctl -u pannierd beside the Swarm's leader",
                )
            )
        return found

    def _warning(self, what: str, remedy: str) -> FindingView:
        subject = f"volume {self.volume.name}"
        return FindingView(level=Level.WARNING, subject=subject, what=what, remedy=remedy)


def declared_volumes(
    said: Iterable[tuple[str, Declaration]], cluster: Cluster
) -> list[DeclaredVolume]:
    """The volumes that there are, by name, each with what is said of it."""
    found = dict[str, list[Declaration]]()
    for name, declaration in said:
        found.setdefault(name, []).append(declaration)
    return [
        DeclaredVolume(volume, tuple(sorted(found[name], key=lambda each: each.who)))
        for name in sorted(found)
        if (volume := cluster.catalog.volume(name)) is not None
    ]


def means_for(volume: Volume, cluster: Cluster) -> Means:
    """What there is for its copies. A node that is down may come back."""
    fit = [
        node
        for node in cluster.catalog.nodes()
        if volume.spec.driver in node.drivers and not node.drained
    ]
    return Means(nodes=len(fit), in_sync=1 + len(volume.in_sync))


class OptionChanges:
    """Changes options by compare-and-swap, from any node, and tells what stays."""

    def __init__(self, *, cluster: Cluster, custody: Custody, clock: Clock) -> None:
        self._cluster = cluster
        self._custody = custody
        self._clock = clock
        self._logged: set[tuple[str, Left]] = set()

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

    async def tell(self, volume: Volume, left: Left) -> None:
        """Write what somebody asks for in vain into the log and into the volume's history, once.

        Once it was written, the history is what remembers it, also for other nodes.
        """
        if (volume.id, left) not in self._logged:
            self._logged.add((volume.id, left))
            log.warning(
                "volume.asked-otherwise", volume=volume.name, by=left.who, difference=left.what
            )
        told = f"by {left.who}: {left.what}"
        if all((line.what, line.detail) != (ASKED, told) for line in volume.history):
            await self._custody.note(volume, ASKED, told, of=volume.grant.node)

    def _entry(self, volume: Volume, settled: Settlement) -> HistoryEntry:
        return HistoryEntry(
            at=self._clock.unix(),
            what=CHANGED,
            node=volume.grant.node,
            epoch=volume.grant.epoch,
            detail=f"{settled.by}: {', '.join(settled.taken)}",
        )
