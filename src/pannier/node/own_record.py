"""Keeps this node's record, and the engine's view of our plugin, up to date while the daemon runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from pannier.agent.lease import Lease
from pannier.core.errors import EngineUnavailable, PannierError
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.engine.base import Engine, Swarm
from pannier.node.membership import Membership

log = structlog.get_logger(__name__)


async def keep_introduced(
    membership: Membership, me: Node, *, lease: Lease, pace: NodePace
) -> None:
    """Write this node's record once, as soon as the store answers.

    That takes back that its daemon stops. So the lease comes first: without both, the node would be lost to the others.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(pace.introduction_lease):
            while not lease.is_current:
                await asyncio.sleep(pace.introduction_look)
    while True:
        try:
            await membership.introduce(me)
        except PannierError as error:
            log.warning("node.not-introduced", error=str(error))
            await asyncio.sleep(pace.start_retry)
        else:
            return


async def keep_activated(engine: Engine) -> None:
    """Activate our plugin each time the engine comes up: else Swarm schedules no service of ours here."""
    async for _ in engine.starts():
        try:
            await engine.activate_plugin()
        except EngineUnavailable as error:
            log.warning("engine.not-activated", error=str(error))


async def keep_swarm_node(swarm: Swarm, membership: Membership, *, pace: NodePace) -> None:
    """Keep the Swarm node id in this node's record up to date, for ever: run as a task."""
    while True:
        await report_swarm_node(swarm, membership)
        await asyncio.sleep(pace.swarm_look)


async def report_swarm_node(swarm: Swarm, membership: Membership) -> None:
    """Write this engine's Swarm node id into this node's record, if it has changed.

    If the engine or the store does not answer, the record stays as it is.
    """
    try:
        member = await swarm.member()
        await membership.report_swarm(member.node if member else None)
    except PannierError as error:
        log.info("node.swarm-not-reported", error=str(error))
