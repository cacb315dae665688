"""Checking the file systems in the copies of a volume: what e2fsck would mend, where nothing is mended.

Each node checks a snapshot of its own copy, so containers go on, and the copy stays as it is.
"""

from __future__ import annotations

import asyncio

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.peers import Peers
from pannier.contract.views import FileSystemView
from pannier.contract.words import FileSystemState
from pannier.core.errors import Conflict, PannierError
from pannier.core.volume import Volume
from pannier.storage.base import FileSystemDriver


class FileSystems:
    """Checks this node's copies, and asks the other nodes for theirs."""

    def __init__(self, *, cluster: Cluster, drivers: Drivers, peers: Peers) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers
        self._checking = asyncio.Lock()

    async def here(self, name: str) -> FileSystemView:
        """Check this node's copy: what is used where it is held, else the newest generation.

        Raises:
            VolumeNotFound; Conflict: it has no file system of its own; StorageError, NotHolder.
        """
        volume, me = self._volume(name), self._cluster.node
        driver = self._driver(volume)
        copy = await driver.inspect(volume.id)
        held = volume.grant.node == me and any(
            tree.epoch == volume.grant.epoch for tree in copy.live
        )
        newest = None if held else await self._drivers.newest(volume)
        if newest is None and not held:
            return FileSystemView(node=me, state=FileSystemState.NOTHING)
        async with self._checking:  # one at a time: the disk has others to serve
            found = await driver.check_file_system(volume.id, newest)
        return FileSystemView(
            node=me,
            state=FileSystemState.DAMAGED if found else FileSystemState.SOUND,
            generation=str(newest) if newest else None,
            findings=list(found),
        )

    async def everywhere(self, name: str) -> list[FileSystemView]:
        """Have every copy of a volume checked, at the same time; the holder's first."""
        volume = self._volume(name)
        names = (volume.grant.node, *volume.replicas)
        return list(await asyncio.gather(*(self._on(node, volume) for node in names)))

    async def _on(self, name: str, volume: Volume) -> FileSystemView:
        if name == self._cluster.node:
            return await self.here(volume.name)
        node = self._cluster.catalog.node(name)
        unknown = FileSystemView(
            node=name, state=FileSystemState.UNKNOWN, error=f"node {name} is down"
        )
        if node is None or not self._cluster.catalog.is_up(name):
            return unknown
        try:
            return await self._peers.to(node).peer_check(volume.name)
        except Conflict:
            raise
        except PannierError as error:
            return FileSystemView(
                node=name,
                state=FileSystemState.UNKNOWN,
                error=error.message,
                remedy=error.remedy or "",
            )

    def _driver(self, volume: Volume) -> FileSystemDriver:
        driver = self._drivers.of(volume)
        if not isinstance(driver, FileSystemDriver):
            raise Conflict(
                f"volume {volume.name} is a tree of files in the pool and has no file system of its own",
                remedy=f"pannier volume verify {volume.name} reads all of it",
            )
        return driver

    def _volume(self, name: str) -> Volume:
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return volume
