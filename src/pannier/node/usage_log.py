"""What volumes took of this node's pools, hour by hour.

It is on this node's own disk: the store would be written thousands of times an hour for it. A volume that moves has samples on
each node that held it, and those with copies have theirs; whoever is asked puts them together.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import structlog

from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.usage import (
    UsageSampleView,
    VolumeUsageView,
    sample_views,
    usage_view,
)
from pannier.core.errors import PannierError
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.core.record import Record
from pannier.core.usage import UsageSample, is_due, thinned
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.node.room_use import RoomUse

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSamples(Record):
    """The file: samples by volume id, oldest first."""

    samples: dict[str, tuple[UsageSample, ...]] = field(default_factory=dict)


class UsageLog:
    """Samples what is on this node, and puts together what all nodes have sampled.

    Args:
        file: a power cut may bring an older version of it back: some hours are missing then.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        room_use: RoomUse,
        peers: Peers,
        file: StateFile,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._room_use = room_use
        self._peers = peers
        self._file = file
        self._clock = clock
        self._pace = pace
        self._saved = UsageSamples()
        try:
            self._saved = read_file(file, UsageSamples, remedy="it begins anew") or self._saved
        except PannierError as error:
            log.warning("usage.not-known", error=str(error))
        self._samples = dict(self._saved.samples)

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.usage_look)
            try:
                await self.look()
            except OSError as error:  # the next look tries it again
                log.warning("usage.not-saved", error=str(error))

    async def look(self) -> None:
        """Sample what has no sample of this hour yet, one volume after the other: the disk has others to serve.

        Raises:
            OSError: it cannot be saved.
        """
        catalog, changed = self._cluster.catalog, False
        for volume in catalog.volumes():
            here = self._cluster.node in (volume.grant.node, *volume.replicas)
            if here and is_due(self._samples.get(volume.id, ()), self._clock.unix()):
                changed |= await self._sample(volume)
        known = {each.id for each in (*catalog.volumes(), *catalog.trashed())}
        if changed:
            self._samples = {key: each for key, each in self._samples.items() if key in known}
            saved = replace(self._saved, samples=dict(self._samples))
            await asyncio.to_thread(lambda: self._file.write(encode(saved)))

    async def _sample(self, volume: Volume) -> bool:
        """Returns whether there was anything to measure."""
        try:
            found = await self._room_use.of(volume)
        except PannierError as error:  # the disks of other volumes may be well
            log.info("usage.not-sampled", volume=volume.name, error=str(error))
            return False
        if found is None or found.files_bytes is None:
            return False
        now = self._clock.unix()
        sample = UsageSample(
            at=now,
            holds=found.holds,
            files=found.files_bytes,
            generations=found.generations_bytes,
            snapshots=found.snapshots_bytes,
        )
        self._samples[volume.id] = thinned([*self._samples.get(volume.id, ()), sample], now)
        return True

    def here(self, volume: Volume) -> list[UsageSampleView]:
        """The samples of this node, oldest first."""
        return sample_views(self._cluster.node, self._samples.get(volume.id, ()))

    async def everywhere(self, name: str) -> VolumeUsageView:
        """The samples of all nodes.

        Raises:
            VolumeNotFound; StoreUnavailable.
        """
        volume = self._cluster.catalog.volume(name) or (await self._cluster.fresh(name)).record
        nodes = self._cluster.catalog.nodes()
        found = await asyncio.gather(*(self._on(node, volume) for node in nodes))
        silent = [node.name for node, each in zip(nodes, found, strict=True) if each is None]
        samples = [sample for each in found for sample in each or ()]
        return usage_view(name, samples, size=volume.spec.size, silent=silent)

    async def _on(self, node: Node, volume: Volume) -> list[UsageSampleView] | None:
        """None where it does not answer, as one of an earlier version does not."""
        if node.name == self._cluster.node:
            return self.here(volume)
        try:
            async with asyncio.timeout(self._pace.listing):
                return await self._peers.to(node).peer_usage(volume.name)
        except (PannierError, TimeoutError):
            return None
