"""Services that ask for a volume with other options than it has, which nobody else would say.

Docker asks for the creation of a volume only if there is none of that name: ``copies=2`` in a stack file that was
changed means nothing. Only Swarm's managers know what the spec says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.errors import Conflict, InvalidInput, PannierError
from pannier.core.options import differing_options
from pannier.core.pace import SwarmPace
from pannier.core.service_volumes import volumes_of
from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask
from pannier.core.volume import Volume
from pannier.engine.base import Swarm

log = structlog.get_logger(__name__)

ASKED = "asked for otherwise"
"""What a volume's history calls it."""


@dataclass(frozen=True, slots=True)
class OtherOptions:
    """A service asks for a volume that is another one. ``what`` says in which way."""

    service: str
    volume: Volume
    what: str

    @property
    def told(self) -> str:
        """The same with the service, as the volume's history has it."""
        return f"by service {self.service}: {self.what}"

    def finding(self) -> FindingView:
        """The warning of doctor."""
        return FindingView(
            level=Level.WARNING,
            subject=f"volume {self.volume.name}",
            what=f"service {self.service} asks for it with other options: {self.what}. The volume stays as "
            "it is, and Docker says nothing",
            remedy="write the volume's own options into the stack file, or use a volume with another name",
        )


def other_options(
    services: Sequence[SwarmService],
    tasks: Sequence[SwarmTask],
    nodes: Sequence[SwarmNode],
    catalog: Catalog,
) -> Iterator[OtherOptions]:
    """Each service with each of its volumes that it asks for otherwise."""
    for service in services:
        for mounted in volumes_of(service, tasks, nodes, is_ours=catalog.has_volume):
            volume = catalog.volume(mounted.name)
            if volume is None or mounted.options is None:
                continue
            try:
                differing = differing_options(volume, mounted.options)
            except InvalidInput as error:
                differing = [error.message]
            if differing:
                yield OtherOptions(service.name, volume, ", ".join(differing))


async def asked_otherwise(swarm: Swarm, catalog: Catalog) -> list[OtherOptions]:
    """All of them now; empty where this engine is no Swarm manager.

    Raises:
        EngineUnavailable: it does not answer, or the Swarm has no leader.
    """
    try:
        services = await swarm.services()
        return list(other_options(services, await swarm.tasks(), await swarm.nodes(), catalog))
    except Conflict:
        return []


class AskedOptions:
    """Writes each difference into the log and into the volume's history, once.

    Only the daemon beside the Swarm's leader does this. Once it was written, the history is what remembers it,
    also for the next leader.
    """

    def __init__(
        self, *, cluster: Cluster, custody: Custody, swarm: Swarm, pace: SwarmPace
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._swarm = swarm
        self._pace = pace
        self._logged: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        while True:
            try:
                await self._look()
            except PannierError as error:  # the engine starts, or the Swarm has no leader
                log.debug("options.not-compared", error=str(error))
            await asyncio.sleep(self._pace.options_look)

    async def _look(self) -> None:
        member = await self._swarm.member()
        if member is None or not member.manager:
            return
        if not any(node.leader and node.id == member.node for node in await self._swarm.nodes()):
            return
        for found in await asked_otherwise(self._swarm, self._cluster.catalog):
            await self._tell(found)

    async def _tell(self, found: OtherOptions) -> None:
        volume, told = found.volume, found.told
        if (volume.id, told) not in self._logged:
            self._logged.add((volume.id, told))
            log.warning(
                "volume.asked-otherwise",
                volume=volume.name,
                service=found.service,
                difference=found.what,
            )
        if all((line.what, line.detail) != (ASKED, told) for line in volume.history):
            await self._custody.note(volume, ASKED, told, of=volume.grant.node)
