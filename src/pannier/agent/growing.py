"""Volumes that were given a larger size while they are in use."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)


class Growing:
    """Has the volumes that this node holds grow when their records say so.

    What is missed, since the daemon or the store was not there, grows when the volume is attached next.
    """

    def __init__(self, *, cluster: Cluster, custody: Custody) -> None:
        self._cluster = cluster
        self._custody = custody
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def hear(self, change: Changed) -> None:
        """A listener for the catalog."""
        before, after = change.before, change.after
        if (
            isinstance(before, Volume)
            and isinstance(after, Volume)
            and before.id == after.id
            and before.spec.size != after.spec.size
        ):
            self._due.put_nowait(after.name)

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            volume = self._cluster.catalog.volume(await self._due.get())
            if volume is None or volume.grant.node != self._cluster.node:
                continue
            try:
                await self._custody.grow(volume)
            except PannierError as error:
                log.warning("volume.not-grown", volume=volume.name, error=str(error))
