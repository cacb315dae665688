"""Copies of a clone begin with what this node has already: the same generation of the volume that it is a clone of.

Then only what was written since is sent. A copy whose node has not got that generation is sent everything, as any other.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.volume import Volume
from pannier.storage.base import CloningDriver

log = structlog.get_logger(__name__)


class ClonedCopies:
    """Begins this node's copies of clones: when the clone is heard of, and when its holder first offers something.

    At once, since the holder of the other volume keeps what has no name, as what it was at some moment, only for a while.
    """

    def __init__(self, *, cluster: Cluster, custody: Custody, drivers: Drivers) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._due: asyncio.Queue[Volume] = asyncio.Queue()

    def hear(self, change: Changed) -> None:
        """A listener for the catalog."""
        new = change.after
        if (
            change.kind == "volumes"
            and change.before is None
            and isinstance(new, Volume)
            and new.origin is not None
            and self._cluster.node in new.replicas
        ):
            self._due.put_nowait(new)

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            volume = await self._due.get()
            try:
                await self.begin(volume)
            except PannierError as error:
                log.info("clone.not-begun", volume=volume.name, error=str(error))

    async def begin(self, volume: Volume) -> None:
        """Begin this node's copy of a volume, if it is a clone, nothing is here of it, and what it was made of is. Nothing is asked
        of the store.

        Raises:
            NotHolder, StorageError: this node has no driver for it, or what is here cannot be read.
        """
        origin = volume.origin
        # Without an identity, only a number would say that it is the same. In later epochs the holder may have other bytes.
        if origin is None or not origin.generation.identity or volume.base != origin.base:
            return
        driver = self._drivers.of(volume)
        if not isinstance(driver, CloningDriver) or volume.grant.node == self._cluster.node:
            return
        async with self._custody.lock(volume):
            here = await driver.inspect(volume.id)
            if here.generations or here.live:
                return
            try:
                if origin.generation not in (await driver.inspect(origin.volume_id)).generations:
                    log.info("clone.sent-whole", volume=volume.name, origin=origin.described)
                    return
                await driver.clone(
                    origin.volume_id,
                    origin.generation,
                    volume=volume.id,
                    base=origin.base,
                    unborn=False,
                )
            except PannierError as error:  # it is sent everything then
                log.info("clone.sent-whole", volume=volume.name, error=str(error))
