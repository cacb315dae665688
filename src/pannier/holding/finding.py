"""What the nodes of the cluster have of a volume whose holder is gone."""

from __future__ import annotations

import asyncio

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.volumes import LiveVolumeView, VolumeCopyView
from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.recovery import FoundCopy, found_copy
from pannier.core.volume import Volume


class CopyFinder:
    """Asks this node's disk, and other nodes."""

    def __init__(self, *, cluster: Cluster, drivers: Drivers, peers: Peers) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers

    async def on(self, name: str, volume: Volume, *, within: float) -> FoundCopy | None:
        """What a node has; None where it has nothing, or does not answer.

        Args:
            within: seconds that another node has for its answer.

        Raises:
            StorageError: this node's disk cannot be read.
        """
        if name == self._cluster.node:
            there = volume.spec.driver in self._drivers
            return await self._drivers.found(volume) if there else None
        node = self._cluster.catalog.node(name)
        if node is None:
            return None
        try:
            async with asyncio.timeout(within):
                view = await self._peers.to(node).peer_volume(volume.name)
        except (PannierError, TimeoutError):
            return None
        if view.id != volume.id:
            return None  # it remembers an earlier volume of that name
        return _copy_in(view, volume, node=name)


def _copy_in(
    view: LiveVolumeView | VolumeCopyView, volume: Volume, *, node: str
) -> FoundCopy | None:
    generations = map(Generation.parse, view.generations or [])
    if isinstance(view, LiveVolumeView):
        return found_copy(volume, generations)
    last = None
    if view.record is not None:
        last = Generation.parse(view.record.generation), view.record.number
    # An earlier version does not say why.
    lacks = view.lacks or ("" if node in view.copies_on else "its journal was damaged")
    return found_copy(volume, generations, last=last, lacks=lacks)
