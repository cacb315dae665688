"""Looking into states of a volume, and taking files out of them, without touching the volume.

A state is an epoch, a generation, a snapshot, or what the volume is now. It is mounted read-only from a snapshot of its own.
To take files out, it is mounted nowhere: it ends with the daemon's descriptor of it, also when the daemon is killed.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster, no_such_volume
from pannier.contract.views import TakeOutProgress
from pannier.core.errors import Conflict, InvalidInput, NotFound, NotHolder, PannierError
from pannier.core.generation import GENERATION_PATTERN, Generation
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.holding.snapshots import Snapshots
from pannier.host.threads import in_own_thread
from pannier.storage.base import FileSystemDriver
from pannier.storage.blocking import in_thread
from pannier.storage.tree.take_out import PartOfTree, take_out

log = structlog.get_logger(__name__)


class Looking:
    """Shows states of volumes of which this node has a copy."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        snapshots: Snapshots,
        tidy: Callable[[Volume], Awaitable[None]],
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._snapshots = snapshots
        self._tidy = tidy
        self._pace = pace

    async def show(self, name: str, *, tree: str, at: str) -> None:
        """Mount a state of a volume, read-only, on this node.

        Args:
            tree: an epoch, a generation or a snapshot's name. at: an empty directory.

        Raises:
            VolumeNotFound; NotFound: there is no such state, or not here; Conflict: the volume has no file system
            of its own, or the directory is not empty, or has something mounted; InvalidInput; StorageError; StoreUnavailable: a snapshot is looked up there.
        """
        volume = self._volume(name)
        driver = self._driver(volume)
        wanted = await self._find(volume, tree, driver)
        await in_thread(_check_directory, Path(at))
        await driver.show(volume.id, tree=wanted, at=Path(at))

    async def take_out(
        self, name: str, *, tree: str | None, path: str, to: str
    ) -> AsyncGenerator[TakeOutProgress, None]:
        """Copy a file or a directory of a volume to a new place on this node; progress as it goes.

        When the caller goes away, what is not complete is removed.

        Args:
            tree: as in :meth:`show`; None is what the volume is now: all that was written before the call.
            path: in the volume. to: an absolute path of a directory.

        Raises:
            As :meth:`show`, and :func:`~pannier.storage.tree.take_out.take_out`.
            NotHolder: what a volume is now is asked of a node that does not hold it.
        """
        copied, stop = [0], threading.Event()

        def note(count: int) -> None:
            copied[0] += count

        async with self._opened(name, tree) as root:
            source = PartOfTree(root=root, path=path, name=name)
            work = in_own_thread(partial(take_out, source, Path(to), note=note, stop=stop))
            try:
                await asyncio.wait([work], timeout=self._pace.take_out_look)
                while not work.done():
                    yield TakeOutProgress(volume=name, path=path, copied_bytes=copied[0])
                    await asyncio.wait([work], timeout=self._pace.take_out_look)
                place = work.result()
            finally:
                stop.set()
                await asyncio.wait([work])
                work.exception()  # retrieved, so that asyncio does not log it
        log.info("volume.taken-out", volume=name, path=path, to=str(place))
        yield TakeOutProgress(volume=name, path=path, copied_bytes=copied[0], to=str(place))

    @asynccontextmanager
    async def _opened(self, name: str, tree: str | None) -> AsyncIterator[int]:
        """A descriptor of a state's root, for as long as the block lasts."""
        volume = self._volume(name)
        driver = self._driver(volume)
        async with AsyncExitStack() as stack:
            if tree is None:
                yield await self._open_now(volume, driver, stack)
            else:
                wanted = await self._find(volume, tree, driver)
                yield await stack.enter_async_context(driver.opened(volume.id, tree=wanted))

    async def _open_now(
        self, volume: Volume, driver: FileSystemDriver, stack: AsyncExitStack
    ) -> int:
        """A generation is made for it. What is opened needs it no more, so it is tidied away as any other."""
        volume = (await self._cluster.fresh(volume.name)).record
        if volume.grant.node != self._cluster.node:
            raise NotHolder(
                f"volume {volume.name} is held by node {volume.grant.node}, and only there is what it is now",
                remedy=f"type this on node {volume.grant.node}, or name a snapshot: {volume.name}@SNAPSHOT",
            )
        async with self._custody.lock(volume):
            volume = (await self._custody.take_up(volume)).record
            generation = await self._snapshots.make_generation(volume)
            root = await stack.enter_async_context(driver.opened(volume.id, tree=generation))
        try:
            await self._tidy(volume)
        except PannierError as error:
            log.info("volume.not-tidied", volume=volume.name, error=str(error))
        return root

    async def _find(self, volume: Volume, tree: str, driver: FileSystemDriver) -> int | Generation:
        """The state that a person means. What looks like an epoch or a generation is one; all else is a snapshot's name."""
        wanted = parse_tree(tree)
        if wanted is None:
            return await self._find_snapshot(volume, tree, driver)
        copy = await driver.inspect(volume.id)
        here = {each.epoch for each in copy.live} | set(copy.generations)
        if isinstance(wanted, int) and wanted not in here:  # only its generations may be left
            wanted = max((g for g in copy.generations if g.epoch == wanted), default=wanted)
        if wanted not in here:
            raise NotFound(
                f"node {self._cluster.node} has nothing of volume {volume.name} by the name {tree}",
                remedy=f"it has: {', '.join(map(str, sorted(here, key=str))) or 'nothing'}",
            )
        return wanted

    async def _find_snapshot(
        self, volume: Volume, name: str, driver: FileSystemDriver
    ) -> Generation:
        volume = (await self._cluster.fresh(volume.name)).record
        wanted = volume.snapshot(name).generation
        if wanted in (await driver.inspect(volume.id)).generations:
            return wanted
        found = await self._snapshots.show(volume.name, name)
        there = [node for node in found.on or [] if node != self._cluster.node]
        remedy = f"type this on node {' or '.join(there)}" if there else "ask again"
        if found.silent:
            remedy += f"; {', '.join(found.silent)} did not say whether it is there"
        raise NotFound(
            f"node {self._cluster.node} does not have snapshot {name} of volume {volume.name}",
            remedy=remedy,
        )

    def _driver(self, volume: Volume) -> FileSystemDriver:
        driver = self._drivers.of(volume)
        if not isinstance(driver, FileSystemDriver):
            raise Conflict(
                f"volume {volume.name} is a tree of files in the pool, and has no states to look into",
                remedy="see its files where it is mounted",
            )
        return driver

    def _volume(self, name: str) -> Volume:
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        return volume


_GENERATION = re.compile(GENERATION_PATTERN, re.ASCII)


def parse_tree(text: str) -> int | Generation | None:
    """An epoch such as 3, or a generation such as 3.17; None for anything else."""
    if text.isascii() and text.isdecimal():
        return int(text)
    return Generation.parse(text) if _GENERATION.fullmatch(text) else None


def _check_directory(at: Path) -> None:
    """Make sure that something can be mounted there.

    Raises:
        InvalidInput: it is no absolute path of a directory; Conflict: something is mounted there, or it is not empty.
    """
    if not at.is_absolute() or not at.is_dir() or at.is_symlink():
        raise InvalidInput(
            f"{at} is not the absolute path of a directory", remedy=f"mkdir -p {at} on that node"
        )
    if at.is_mount():  # what is mounted may be empty, and would be hidden
        raise Conflict(
            f"something is mounted at {at} already",
            remedy=f"umount {at}, or name another directory",
        )
    if os.listdir(at):
        raise Conflict(f"{at} is not empty", remedy="name an empty directory")
