"""Which node of a Swarm this node's engine is: told to the other nodes in this node's record."""

from __future__ import annotations

import asyncio

import structlog

from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.engine.base import Swarm
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


async def keep_swarm_node(swarm: Swarm, membership: Membership, *, pace: NodePace) -> None:
    """Keep the record in line with the engine, for ever: run as a task."""
    while True:
        await report_swarm_node(swarm, membership)
        await asyncio.sleep(pace.swarm_look)


async def report_swarm_node(swarm: Swarm, membership: Membership) -> None:
    """Write this engine's Swarm node id into this node's record, where it says something else.

    What cannot be asked or written now stays as it is.
    """
    try:
        member = await swarm.member()
        await membership.report_swarm(member.node if member else None)
    except PannierError as error:
        log.info("node.swarm-not-reported", error=str(error))
