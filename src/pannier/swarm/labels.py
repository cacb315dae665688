"""Swarm's node labels that say where a volume can start, and services that cannot start there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress

import structlog

from pannier.cluster.catalog import Catalog, Changed
from pannier.cluster.cluster import Cluster
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.constraints import matches
from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, Stale
from pannier.core.node import Node
from pannier.core.pace import SwarmPace
from pannier.core.service_volumes import volumes_of
from pannier.core.swarm import (
    VOLUME_LABEL_PREFIX,
    VOLUME_LABEL_VALUE,
    SwarmNode,
    SwarmService,
    volume_label,
    without_volume_labels,
)
from pannier.core.volume import Volume
from pannier.engine.base import Swarm
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


class Labels:
    """Keeps ``pannier.volume.NAME=copy`` on each Swarm node from whose copy a service could start.

    Those are the holder and the nodes in sync, except nodes that are evacuated. Other labels are not
    touched. Only the daemon beside the Swarm's leader does this; the others look from time to time
    whether their engine has become the leader.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        swarm: Swarm,
        clock: Clock,
        pace: SwarmPace,
    ) -> None:
        self._cluster = cluster
        self._swarm = swarm
        self._clock = clock
        self._pace = pace
        self._wrong_since: dict[tuple[str, str], float] = {}
        self._heard = asyncio.Event()
        self._trouble = ""

    async def run(self) -> None:
        """For ever: run as a task."""
        await (
            self._cluster.catalog.synced.wait()
        )  # from an empty memory all labels would look wrong
        stop = self._cluster.catalog.listen(self._hear)
        try:
            while True:
                self._heard.clear()
                seconds = await self._turn()
                await asyncio.sleep(self._pace.labels_turn)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(seconds - self._pace.labels_turn, 0.0)):
                        await self._heard.wait()
        finally:
            stop()

    def _hear(self, change: Changed) -> None:
        if change.kind in ("volumes", "nodes"):
            self._heard.set()

    async def _turn(self) -> float:
        """Correct the labels. Returns the seconds until the next look, if no change is heard before."""
        try:
            wait = await self._bring_in_line()
        except Conflict:
            wait = self._pace.labels_check  # not a manager
        except PannierError as error:
            if str(error) != self._trouble:
                log.info("labels.not-set", error=str(error))
            self._trouble = str(error)
            return self._pace.labels_turn
        self._trouble = ""
        return wait

    async def _bring_in_line(self) -> float:
        swarm = await self._swarm.nodes()
        me = self._cluster.catalog.node(self._cluster.node)
        if not any(node.leader and me and node.id == me.swarm for node in swarm):
            self._wrong_since.clear()
            return self._pace.labels_check
        # Read after the Swarm: if Evacuation has changed a node since, our change of that node fails.
        evacuations = await self._cluster.registry.evacuations()
        away = frozenset(name for name, found in evacuations.items() if found.record.away)
        wanted = wanted_labels(
            self._cluster.catalog.volumes(), self._cluster.catalog.nodes(), away=away
        )
        changes = self._changes(swarm, wanted)
        for node, labels in changes:
            try:
                await self._swarm.update_node(node, labels=labels)
            except (Stale, OutcomeUnknown) as error:  # the next turn sees how it is
                log.info("labels.again", node=node.hostname, why=error.message)
            else:
                log.info("labels.set", node=node.hostname, volumes=_ours(labels))
        return self._pace.labels_turn if changes or self._wrong_since else self._pace.labels_check

    def _changes(
        self, swarm: Iterable[SwarmNode], wanted: Mapping[str, frozenset[str]]
    ) -> list[tuple[SwarmNode, dict[str, str]]]:
        """The nodes whose labels must change now, each with all labels that it is to have."""
        now = self._clock.now()
        wrong: dict[tuple[str, str], float] = {}
        changes = []
        for node in swarm:
            labels = without_volume_labels(node.labels)
            labels |= dict.fromkeys(wanted.get(node.id, frozenset()), VOLUME_LABEL_VALUE)
            for key in node.labels.keys() - labels.keys():
                since = wrong[node.id, key] = self._wrong_since.get((node.id, key), now)
                if now - since < self._pace.labels_stale:
                    labels[key] = node.labels[key]
            if labels != node.labels:
                changes.append((node, labels))
        self._wrong_since = wrong
        return changes


def wanted_labels(
    volumes: Iterable[Volume], nodes: Iterable[Node], *, away: frozenset[str]
) -> dict[str, frozenset[str]]:
    """The keys of the labels that each Swarm node is to have, by its id there.

    Args:
        away: names of nodes that are evacuated. They get no labels, so that nothing starts there.
    """
    on: dict[str, set[str]] = defaultdict(set)
    for volume in volumes:
        for name in {volume.grant.node, *volume.in_sync} - away:
            on[name].add(volume_label(volume.name))
    return {node.swarm: frozenset(on[node.name]) for node in nodes if node.swarm}


async def excluded_services(swarm: Swarm, catalog: Catalog) -> AsyncIterator[FindingView]:
    """A finding for each service of the Swarm that may run on no node with a copy of its volume.

    Nothing if this engine is no Swarm manager. Raises EngineUnavailable.
    """
    try:
        services, nodes, tasks = await swarm.services(), await swarm.nodes(), await swarm.tasks()
    except Conflict:
        return
    names = {node.swarm: node.name for node in catalog.nodes() if node.swarm}
    for service in services:
        mounted = volumes_of(service, tasks, nodes, is_ours=catalog.has_volume)
        for volume in filter(None, (catalog.volume(each.name) for each in mounted)):
            holders = (volume.grant.node, *volume.replicas)
            copies = [node for node in nodes if names.get(node.id) in holders]
            finding = excluded(service, volume, copies)
            if finding is not None:
                yield finding


def excluded(
    service: SwarmService, volume: Volume, copies: Iterable[SwarmNode]
) -> FindingView | None:
    """The warning for a service whose constraints exclude every one of ``copies``; None without any.

    Args:
        copies: the Swarm nodes that have a copy of the volume.
    """
    nodes = list(copies)
    if not nodes or any(matches(node, service.constraints) for node in nodes):
        return None
    shown = ", ".join(sorted(node.hostname for node in nodes))
    return FindingView(
        level=Level.WARNING,
        subject=f"service {service.name}",
        what=f"its constraints ({', '.join(service.constraints)}) exclude every node that has a copy of "
        f"volume {volume.name} ({shown}): wherever it starts, all data must come over first",
        remedy=f"use the constraint node.labels.{volume_label(volume.name)}=={VOLUME_LABEL_VALUE}, "
        "or move the volume to where the service may run",
    )


def _ours(labels: Mapping[str, str]) -> list[str]:
    prefix = VOLUME_LABEL_PREFIX
    return sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))
