"""Ending in good order: the copies get what was written, and the others are told that it is no loss."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from pannier.agent.custody import Custody
from pannier.agent.lease import Lease
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.copies.acknowledging import Acknowledging
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.volume import Volume
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


class Leaving:
    """How the daemon ends. Where nothing is in use here, others may take over at once.

    Else this is taken for a restart: what runs goes on without the daemon, to the lease's end. What
    stands still is ended: without the daemon, nobody would let it go on, and nobody could stop it.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        use: Use,
        lease: Lease,
        acknowledging: Acknowledging,
        membership: Membership,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._use = use
        self._lease = lease
        self._acknowledging = acknowledging
        self._membership = membership
        self._pace = pace
        self._unused = False

    async def prepare(self) -> None:
        """While all else still runs: bring everything to the copies, if nothing is in use."""
        try:
            async with asyncio.timeout(self._pace.leave_within):
                await self._end_what_stands_still()
                for volume in self._mine():
                    if await self._use.in_use(volume):
                        return
                    await self._acknowledging.make_durable(volume.name)
        except (PannierError, TimeoutError) as error:
            log.warning("lease.kept", error=str(error) or "no answer in time")
        else:
            self._unused = True

    async def _end_what_stands_still(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.leave_doubt):
                while self._standing_still():
                    await asyncio.sleep(self._pace.leave_look)
        # All at once: by the time that one's lock is free, another could have been let go on.
        await asyncio.gather(*map(self._fence, self._standing_still()))

    async def _fence(self, volume: Volume) -> None:
        try:
            await self._custody.fence(volume)
        except (PannierError, OSError) as error:
            log.error("volume.not-fenced", volume=volume.name, error=str(error))

    def _standing_still(self) -> list[Volume]:
        return [v for v in self._cluster.catalog.volumes() if self._use.suspended(v)]

    async def announce(self) -> None:
        """When nothing else runs any more: say that this is no loss, and only then end the lease."""
        try:
            async with asyncio.timeout(self._pace.leave_within):
                await self._membership.announce_stop()
                if self._unused:
                    await self._end_lease()
        except (PannierError, TimeoutError) as error:
            log.warning("node.stop-not-announced", error=str(error) or "no answer in time")

    async def _end_lease(self) -> None:
        """Unless a Mount came meanwhile: one that had its proof has ended before this gets the lock."""
        lease = self._lease
        lease.renounce()
        for volume in self._mine():
            async with self._custody.lock(volume):
                if await self._use.in_use(volume):
                    return
        await lease.end()

    def _mine(self) -> list[Volume]:
        """Those that others could take over."""
        catalog, me = self._cluster.catalog, self._cluster.node
        return [v for v in catalog.volumes() if v.grant.node == me and v.in_sync]
