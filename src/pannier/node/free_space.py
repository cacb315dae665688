"""Telling the others how much free space this node's pool has, for the placement of copies."""

from __future__ import annotations

import asyncio

import structlog

from pannier.agent.drivers import Drivers
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


async def keep_free_space(drivers: Drivers, membership: Membership, *, pace: NodePace) -> None:
    """Keep the node's record in line with the pool, for ever: run as a task."""
    await drivers.tried.wait()
    while True:
        await report_free_space(drivers, membership)
        await asyncio.sleep(pace.free_space)


async def report_free_space(drivers: Drivers, membership: Membership) -> None:
    """Write into this node's record how many tenths of its pool are free.

    If the pool or the store does not answer, the record stays as it is.
    """
    try:
        capacity = await drivers.named(drivers.default).capacity()
        await membership.report_free_space(capacity.free_bytes * 10 // max(capacity.total_bytes, 1))
    except PannierError as error:
        log.info("node.free-space-not-reported", error=str(error))
