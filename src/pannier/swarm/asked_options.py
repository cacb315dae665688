"""Services that ask for a volume with other options than it has: what can be is taken over, and the rest is told.

Docker asks for the creation of a volume only if there is none of that name, so ``copies=2`` in a stack file that was
changed reaches nobody. Only Swarm's managers know what the spec says. What is decided:
:mod:`pannier.core.declarations`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.copies.option_changes import OptionChanges, means_for
from pannier.core.declarations import Declaration, Settlement, settle
from pannier.core.errors import Conflict, PannierError, Stale
from pannier.core.pace import SwarmPace
from pannier.core.service_volumes import volumes_of
from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask
from pannier.core.volume import Volume
from pannier.engine.base import Swarm

log = structlog.get_logger(__name__)

ASKED = "asked for otherwise"
"""What a volume's history calls it."""


@dataclass(frozen=True, slots=True)
class DeclaredVolume:
    """A volume with all that the Swarm's services declare of it."""

    volume: Volume
    declarations: tuple[Declaration, ...]

    def settled(self, cluster: Cluster) -> Settlement:
        """What the volume is to be, as far as ``cluster`` is known here."""
        return settle(self.volume, self.declarations, means_for(self.volume, cluster))

    def findings(self, cluster: Cluster) -> list[FindingView]:
        """The warnings of doctor."""
        settled, subject = self.settled(cluster), f"volume {self.volume.name}"
        found = [
            FindingView(
                level=Level.WARNING,
                subject=subject,
                what=f"service {left.service} asks for it with other options: {left.what}. The volume stays as "
                "it is, and Docker says nothing",
                remedy="write the volume's own options into the stack file; or see pannier volume set, or use a volume with "
                "another name",
            )
            for left in settled.left
        ]
        if settled.taken:
            what = f"its options are being changed {settled.by}: {', '.join(settled.taken)}"
            remedy = "this takes some seconds; if it stays, see journalctl -u pannierd beside the Swarm's leader"
            found.append(
                FindingView(level=Level.WARNING, subject=subject, what=what, remedy=remedy)
            )
        return found


def declared_volumes(
    services: Sequence[SwarmService],
    tasks: Sequence[SwarmTask],
    nodes: Sequence[SwarmNode],
    cluster: Cluster,
) -> list[DeclaredVolume]:
    """Each volume of which any service declares an option, by name."""
    catalog, found = cluster.catalog, dict[str, list[Declaration]]()
    for service in services:
        for mounted in volumes_of(service, tasks, nodes, is_ours=catalog.has_volume):
            if mounted.options:
                fixed = mounted.options == mounted.mount.options
                declaration = Declaration(service.name, mounted.options, fixed)
                found.setdefault(mounted.name, []).append(declaration)
    return [
        DeclaredVolume(volume, tuple(sorted(found[name], key=lambda each: each.service)))
        for name in sorted(found)
        if (volume := catalog.volume(name)) is not None
    ]


async def declared_now(swarm: Swarm, cluster: Cluster) -> list[DeclaredVolume]:
    """All of them now; empty where this engine is no Swarm manager.

    Raises:
        EngineUnavailable: it does not answer, or the Swarm has no leader.
    """
    try:
        services = await swarm.services()
        return declared_volumes(services, await swarm.tasks(), await swarm.nodes(), cluster)
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
        custody: Custody,
        swarm: Swarm,
        changes: OptionChanges,
        pace: SwarmPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._swarm = swarm
        self._changes = changes
        self._pace = pace
        self._logged: set[tuple[str, str]] = set()
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
            await self._tell(found.volume, left.service, left.what)

    def _decide(self, found: DeclaredVolume, record: Volume) -> Settlement:
        if record.id != found.volume.id:
            raise Stale(f"volume {record.name} is another one now", remedy="look again")
        return replace(found, volume=record).settled(self._cluster)

    async def _tell(self, volume: Volume, service: str, what: str) -> None:
        told = f"by service {service}: {what}"
        if (volume.id, told) not in self._logged:
            self._logged.add((volume.id, told))
            log.warning(
                "volume.asked-otherwise", volume=volume.name, service=service, difference=what
            )
        if all((line.what, line.detail) != (ASKED, told) for line in volume.history):
            await self._custody.note(volume, ASKED, told, of=volume.grant.node)
