"""Telling the others how much free space this node's pool has, for the placement of copies."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.custody import Custody
from pannier.core.errors import PannierError
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0


async def keep_free_space(custody: Custody, membership: Membership) -> None:
    """Keep the node's record in line with the pool, for ever: run as a task."""
    await self._drivers.tried.wait()
    while True:
        await report_free_space(custody, membership)
        await asyncio.sleep(LOOK_SECONDS)


async def report_free_space(custody: Custody, membership: Membership) -> None:
    """Write into this node's record how many tenths of its pool are free.

    What cannot be asked or written now stays as it is.
    """
    try:
        capacity = await self._drivers[self._drivers.default].capacity()
        await membership.report_free_space(capacity.free_bytes * 10 // max(capacity.total_bytes, 1))
    except PannierError as error:
        log.info("node.free-space-not-reported", error=str(error))
