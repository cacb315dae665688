"""A node whose disk has failed lets its lease run out: to the others it is lost, and they take over."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.core.errors import DiskFailed, PannierError
from pannier.core.pace import AgentPace

log = structlog.get_logger(__name__)


class Disks:
    """Watches over the disks of this node's volumes.

    When the lease is over, containers here are ended at once. A node that is only cut off freezes them
    first (:attr:`AgentPace.doubt`), but a failed disk does not come back by itself. Containers whose
    volumes no other node could take over go on, and get the disk's errors.
    """

    def __init__(
        self,
        *,
        drivers: Drivers,
        lease: Lease,
        pace: AgentPace,
    ) -> None:
        self._drivers = drivers
        self._lease = lease
        self._pace = pace

    async def run(self) -> None:
        """For ever: run as a task. A disk that does not answer has not failed: it may be slow."""
        lease = self._lease
        while True:
            failed = await self._failed()
            if failed and not lease.withheld:
                log.error("disk.failed", error=failed)
            elif lease.withheld and not failed:
                log.info("disk.mended")
            lease.withheld = failed
            await asyncio.sleep(self._pace.disk_look)

    async def _failed(self) -> str:
        if self._drivers.broken:
            return next(iter(self._drivers.broken.values())).message
        for driver in self._drivers:
            try:
                await driver.check_disk()
            except DiskFailed as error:
                return error.message
            except PannierError as error:
                log.warning("disk.not-checked", driver=driver.name, error=str(error))
        return ""
