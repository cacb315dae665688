"""Stopping in good order: the copies get the last writes, and the others hear that it is no failure."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from pannier.agent.custody import Custody
from pannier.agent.lease import Lease
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.copies.acknowledging import Acknowledging
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.volume import Volume
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


class Leaving:
    """How the daemon stops. If nothing is in use here, it ends the lease: others may take over at once.

    Otherwise this is treated as a restart. Containers that run go on without the daemon, until the
    lease runs out. Frozen ones are ended: without the daemon nobody could thaw or stop them.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        use: Use,
        room: RoomGuard,
        lease: Lease,
        acknowledging: Acknowledging,
        membership: Membership,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._use = use
        self._room = room
        self._lease = lease
        self._acknowledging = acknowledging
        self._membership = membership
        self._pace = pace
        self._unused = False

    async def prepare(self) -> None:
        """Bring everything to the copies, unless something is in use. Called while all else still runs."""
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
        # All at once: while one waits for its lock, another could be thawed.
        await asyncio.gather(*map(self._fence, self._standing_still()))
        await self._room.leave()

    async def _fence(self, volume: Volume) -> None:
        try:
            await self._custody.fence(volume)
        except (PannierError, OSError) as error:
            log.error("volume.not-fenced", volume=volume.name, error=str(error))

    def _standing_still(self) -> list[Volume]:
        return [v for v in self._cluster.catalog.volumes() if self._use.suspended(v)]

    async def announce(self) -> None:
        """Announce the stop, and only then end the lease. Called when nothing else runs any more."""
        try:
            async with asyncio.timeout(self._pace.leave_within):
                await self._membership.announce_stop()
                if self._unused:
                    await self._end_lease()
        except (PannierError, TimeoutError) as error:
            log.warning("node.stop-not-announced", error=str(error) or "no answer in time")

    async def _end_lease(self) -> None:
        """End the lease, unless a Mount came meanwhile.

        A Mount that was served on the lease has ended before this gets the volume's lock.
        """
        lease = self._lease
        lease.renounce()
        for volume in self._mine():
            async with self._custody.lock(volume):
                if await self._use.in_use(volume):
                    return
        await lease.end()

    def _mine(self) -> list[Volume]:
        """The volumes held here that others could take over."""
        catalog, me = self._cluster.catalog, self._cluster.node
        return [v for v in catalog.volumes() if v.grant.node == me and v.in_sync]
