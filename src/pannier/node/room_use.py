"""What each volume takes of the pools: its files, and what generations and snapshots keep besides."""

from __future__ import annotations

import asyncio

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.views import RoomUseView
from pannier.core.errors import PannierError
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.storage.base import Driver, MeasuredDriver


class RoomUse:
    """Measures what is on this node, and asks the others."""

    def __init__(self, *, cluster: Cluster, drivers: Drivers, peers: Peers) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers
        self._measuring = asyncio.Lock()

    async def here(self) -> list[RoomUseView]:
        """What this node has, one volume after the other: the disk has others to serve."""
        catalog, found = self._cluster.catalog, []
        async with self._measuring:
            for driver in self._drivers:
                there = set(await driver.volumes())
                for volume in (*catalog.volumes(), *catalog.trashed()):
                    if volume.id in there and volume.spec.driver == driver.name:
                        found.append(await self._measure(volume, driver))
        return sorted(found, key=lambda view: (view.volume, view.removed))

    async def of(self, volume: Volume) -> RoomUseView | None:
        """What this node has of a volume; None where it has nothing."""
        driver = self._drivers.get(volume.spec.driver)
        if driver is None or volume.id not in await driver.volumes():
            return None
        async with self._measuring:
            return await self._measure(volume, driver)

    async def _measure(self, volume: Volume, driver: Driver) -> RoomUseView:
        view = RoomUseView(
            node=self._cluster.node,
            volume=volume.name,
            holds=volume.grant.node == self._cluster.node,
            removed=volume.removed_at is not None,
        )
        try:
            if isinstance(driver, MeasuredDriver):
                shares = await driver.shares(volume.id, named=volume.named)
                return view.measured(
                    shares.files_bytes, shares.generations_bytes, shares.snapshots_bytes
                )
            return view.measured(await driver.used_bytes(volume.id), None, None)
        except PannierError as error:
            return view.failed(error.message)

    async def everywhere(self) -> list[RoomUseView]:
        """What all nodes have, by volume, the holder's first. Those that do not answer are in it with an error."""
        nodes = self._cluster.catalog.nodes()
        found = await asyncio.gather(*map(self._on, nodes))
        views = [view for on_node in found for view in on_node]
        return sorted(views, key=lambda v: (v.volume, v.removed, not v.holds, v.node))

    async def _on(self, node: Node) -> list[RoomUseView]:
        try:
            if node.name == self._cluster.node:
                return await self.here()
            return await self._peers.to(node).peer_room_use()
        except PannierError as error:
            silent = RoomUseView(node=node.name, volume="", holds=False)
            return [silent.failed(error.message)]
