"""Checking the file systems in the copies of a volume: what e2fsck would mend, where nothing is mended.

Each node checks a snapshot of its own copy, so containers go on, and the copy stays as it is.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.peers import Peers
from pannier.contract.views import FileSystemView
from pannier.contract.words import FileSystemState
from pannier.core.errors import Conflict, InvalidInput, NotFound, PannierError
from pannier.core.generation import Generation
from pannier.core.volume import Volume
from pannier.storage.base import FileSystemDriver
from pannier.storage.blocking import in_thread


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

    async def show(self, name: str, *, tree: str, at: str) -> None:
        """Mount a former state of a volume, read-only, on this node.

        Args:
            tree: an epoch or a generation. at: an empty directory.

        Raises:
            VolumeNotFound; NotFound: no such epoch or generation is here; Conflict: it has no file system
            of its own, or the directory is not empty; InvalidInput; StorageError.
        """
        volume, wanted = self._volume(name), _parse_tree(tree)
        driver = self._driver(volume)
        copy = await driver.inspect(volume.id)
        here = {each.epoch for each in copy.live} | set(copy.generations)
        if isinstance(wanted, int) and wanted not in here:  # only its generations may be left
            wanted = max((g for g in copy.generations if g.epoch == wanted), default=wanted)
        if wanted not in here:
            raise NotFound(
                f"node {self._cluster.node} has nothing of volume {name} by the name {tree}",
                remedy=f"it has: {', '.join(map(str, sorted(here, key=str))) or 'nothing'}",
            )
        await in_thread(_check_directory, Path(at))
        await driver.show(volume.id, tree=wanted, at=Path(at))

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


def _parse_tree(text: str) -> int | Generation:
    """An epoch such as 3, or a generation such as 3.17.

    Raises:
        InvalidInput: it is neither.
    """
    return int(text) if text.isascii() and text.isdecimal() else Generation.parse(text)


def _check_directory(at: Path) -> None:
    """Make sure that something can be mounted there.

    Raises:
        InvalidInput: it is no absolute path of a directory; Conflict: it is not empty.
    """
    if not at.is_absolute() or not at.is_dir() or at.is_symlink():
        raise InvalidInput(
            f"{at} is not the absolute path of a directory", remedy=f"mkdir -p {at} on that node"
        )
    if os.listdir(at):
        raise Conflict(f"{at} is not empty", remedy="name an empty directory")
