"""Services that ask for a volume with other options than it has: what can be is taken over, and the rest is told.

Docker asks for the creation of a volume only if there is none of that name, so ``copies=2`` in a stack file that was
changed reaches nobody. Only Swarm's managers know what the spec says. What is decided:
:mod:`pannier.core.declarations`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog

from pannier.cluster.cluster import Cluster
from pannier.copies.option_changes import DeclaredVolume, OptionChanges, declared_volumes
from pannier.core.declarations import Declaration, Settlement
from pannier.core.errors import Conflict, PannierError, Stale
from pannier.core.pace import SwarmPace
from pannier.core.service_volumes import volumes_of
from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask
from pannier.core.volume import Volume
from pannier.engine.base import Swarm

log = structlog.get_logger(__name__)

_TEMPLATE = "its template may say something else for the next task"


def declared_by_services(
    services: Sequence[SwarmService],
    tasks: Sequence[SwarmTask],
    nodes: Sequence[SwarmNode],
    cluster: Cluster,
) -> list[DeclaredVolume]:
    """Each volume of which any service declares an option."""
    return declared_volumes(
        (
            (
                mounted.name,
                Declaration(
                    f"service {service.name}",
                    mounted.options,
                    "" if mounted.options == mounted.mount.options else _TEMPLATE,
                ),
            )
            for service in services
            for mounted in volumes_of(service, tasks, nodes, is_ours=cluster.catalog.has_volume)
            if mounted.options
        ),
        cluster,
    )


async def declared_now(swarm: Swarm, cluster: Cluster) -> list[DeclaredVolume]:
    """All of them now; empty where this engine is no Swarm manager.

    Raises:
        EngineUnavailable: it does not answer, or the Swarm has no leader.
    """
    try:
        services = await swarm.services()
        return declared_by_services(services, await swarm.tasks(), await swarm.nodes(), cluster)
    except Conflict:
        return []


class AskedOptions:
    """Takes over what can be, and writes what cannot into the log and into the volume's history, once.

    Only the daemon beside the Swarm's leader does this. The volume's record remembers what was decided, also for
    the next leader.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        swarm: Swarm,
        changes: OptionChanges,
        pace: SwarmPace,
    ) -> None:
        self._cluster = cluster
        self._swarm = swarm
        self._changes = changes
        self._pace = pace
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="service changes")
            while True:
                self._changed.clear()
                try:
                    await self._look()
                except PannierError as error:  # the engine starts, or the Swarm has no leader
                    log.debug("options.not-compared", error=str(error))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.options_look):
                        await self._changed.wait()

    async def _listen(self) -> None:
        """Who has just deployed shall have it before the containers start, where that can be."""
        async for _ in self._swarm.service_changes():
            self._changed.set()

    async def _look(self) -> None:
        member = await self._swarm.member()
        if member is None or not member.manager:
            return
        if not any(node.leader and node.id == member.node for node in await self._swarm.nodes()):
            return
        for found in await declared_now(self._swarm, self._cluster):
            try:
                await self._settle(found)
            except PannierError as error:
                log.info("options.not-settled", volume=found.volume.name, error=str(error))

    async def _settle(self, found: DeclaredVolume) -> None:
        settled = found.settled(self._cluster)
        if (settled.spec, settled.declared) != (found.volume.spec, found.volume.declared):
            _, settled = await self._changes.settle(found.volume.name, partial(self._decide, found))
        for left in settled.left:
            await self._changes.tell(found.volume, left)

    def _decide(self, found: DeclaredVolume, record: Volume) -> Settlement:
        if record.id != found.volume.id:
            raise Stale(f"volume {record.name} is another one now", remedy="look again")
        return replace(found, volume=record).settled(self._cluster)
