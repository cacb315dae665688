"""Swarm moves a lost node's tasks away when the node's lease is gone, and not only when Swarm notices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.contract.peers import Peers
from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, Stale
from pannier.core.evacuation import (
    Drain,
    Evacuated,
    Forget,
    Phase,
    Remember,
    Restore,
    Step,
    Strip,
    Subject,
    plan,
    seconds_until_due,
)
from pannier.core.node import Node
from pannier.core.pace import SwarmPace
from pannier.core.swarm import Availability, SwarmNode, without_volume_labels
from pannier.engine.base import Swarm
from pannier.host.clock import Clock
from pannier.store.base import ABSENT

log = structlog.get_logger(__name__)


class Evacuation:
    """One manager's part in evacuations. All managers do this at the same time: see :mod:`core.evacuation`.

    A node whose lease ran out, although its daemon announced no stop, is drained in Swarm. It is given
    back when its lease is there again. Before it is drained, its volumes' labels are removed: tasks
    that are constrained to them start elsewhere at once. The other tasks start elsewhere when Swarm
    believes that the node is down; draining only spares them the restart delay then.

    Back-off: an evacuated node is given back after its lease was there for 15 s without a break, the
    second time after 30 s, then 60 s, up to 15 minutes. After 15 quiet minutes it begins with 15 s again.
    So a node that loses its lease every few seconds is evacuated once, and its tasks move once.

    Nothing is changed on the strength of memory: if the store does not answer, nothing is done. A node
    whose own lease is gone changes nothing.

    A node that a person drains while it is evacuated is given back all the same. To keep it drained, it
    must be drained again after that.

    Args:
        enabled: whether to begin evacuations. Without it, those that were begun are still finished.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        swarm: Swarm,
        peers: Peers,
        enabled: bool,
        clock: Clock,
        pace: SwarmPace,
    ) -> None:
        self._cluster = cluster
        self._swarm = swarm
        self._peers = peers
        self._enabled = enabled
        self._clock = clock
        self._pace = pace
        self._alive_since: dict[str, float] = {}
        self._versions: dict[str, tuple[int, float]] = {}
        self._heard = asyncio.Event()
        self._failure = ""

    async def run(self) -> None:
        """For ever: run as a task."""
        stop = self._cluster.catalog.listen(self._hear)
        try:
            while True:
                self._heard.clear()
                seconds = await self._turn()
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._heard.wait()
        finally:
            stop()

    def _hear(self, change: Changed) -> None:
        if change.kind == "alive" and not change.present:
            self._alive_since.pop(change.name, None)
        if change.kind in ("alive", "nodes"):
            self._heard.set()

    async def _turn(self) -> float:
        """Look once and act on it. Returns the seconds until the next look."""
        try:
            seconds = await self._look_and_act()
        except Conflict:
            return self._pace.evacuation_look  # not a manager, but it may be promoted
        except PannierError as error:
            if error.message != self._failure:
                log.warning("evacuation.not-possible", error=str(error))
            self._failure = error.message
            return self._pace.evacuation_retry
        self._failure = ""
        return seconds

    async def _look_and_act(self) -> float:
        if not await self._needed():
            return self._pace.evacuation_idle
        # Swarm must be read before the records: core.evacuation says why.
        swarm = await self._swarm.nodes()
        alive = await self._cluster.registry.alive()
        nodes = await self._cluster.registry.nodes()
        records = await self._cluster.registry.evacuations()
        if self._cluster.node not in alive:
            return self._pace.evacuation_retry
        self._note(alive, swarm)
        subjects = self._subjects(nodes, swarm, records)
        by_name = {node.name: node for node in nodes}
        steps = [
            step
            for step in plan(subjects, swarm)
            if not _begins(step) or await self._may_begin(by_name.get(step.record.node))
        ]
        for step in steps:
            await self._attempt(step, records)
        if steps:
            return self._pace.evacuation_turn
        due = seconds_until_due(subjects)
        waiting = any(s.lost and not (s.record and s.record.away) for s in subjects)
        return max(
            min(due, self._pace.evacuation_look if waiting else self._pace.evacuation_idle),
            self._pace.evacuation_shortest,
        )

    async def _may_begin(self, node: Node | None) -> bool:
        return self._enabled and node is not None and not await self._answers(node)

    async def _answers(self, node: Node) -> bool:
        """Whether its daemon answers, and its disk works.

        A node that has only lost the store keeps its volumes, since the others promise not to take
        them over. So its containers are best left where they are.
        """
        try:
            async with asyncio.timeout(self._pace.evacuation_answer):
                view = await self._peers.to(node).peer_node()
        except (PannierError, TimeoutError):
            return False
        return not view.disk_error

    async def _needed(self) -> bool:
        """Whether any node is down or has an evacuation record. If not, Swarm need not be asked."""
        if any(
            node.swarm and not self._cluster.catalog.is_up(node.name)
            for node in self._cluster.catalog.nodes()
        ):
            return True
        return bool(await self._cluster.registry.evacuations())

    def _note(self, alive: frozenset[str], swarm: list[SwarmNode]) -> None:
        """Note since when each lease has been there, and each node in Swarm has been unchanged."""
        now = self._clock.now()
        self._alive_since = {name: self._alive_since.get(name, now) for name in alive}
        known = self._versions
        self._versions = {
            node.id: known[node.id]
            if known.get(node.id, (0, 0.0))[0] == node.version
            else (node.version, now)
            for node in swarm
        }

    def _subjects(
        self,
        nodes: list[Node],
        swarm: list[SwarmNode],
        records: Mapping[str, Versioned[Evacuated]],
    ) -> list[Subject]:
        now = self._clock.now()
        in_swarm = {node.id: node for node in swarm}
        by_name = {node.name: node for node in nodes}
        subjects = []
        for name in sorted(by_name.keys() | records.keys()):
            node, found = by_name.get(name), records.get(name)
            # The record has the id that was drained: a node that joined the Swarm again has a new one.
            swarm_id = found.record.swarm if found else node.swarm if node else None
            since = self._alive_since.get(name)
            _, changed_at = self._versions.get(swarm_id or "", (0, now))
            subject = Subject(
                name=name,
                steady_seconds=None if since is None else now - since,
                stopping=node is not None and node.stopping,
                removed=node is None,
                swarm=in_swarm.get(swarm_id or ""),
                quiet_seconds=now - changed_at,
                record=found.record if found else None,
            )
            if subject.swarm or subject.record:
                subjects.append(subject)
        return subjects

    async def _attempt(self, step: Step, records: Mapping[str, Versioned[Evacuated]]) -> None:
        try:
            await self._do(step, records)
        except (Stale, OutcomeUnknown) as error:  # the next look shows how it is
            log.info("evacuation.again", node=step.record.node, why=error.message)

    async def _do(self, step: Step, records: Mapping[str, Versioned[Evacuated]]) -> None:
        record = step.record
        found = records.get(record.node)
        expect = found.revision if found else ABSENT
        match step:
            case Remember():
                await self._cluster.registry.put_evacuation(
                    record, expect=expect, lost=_begins(step)
                )
            case Strip(node=node):
                labels = without_volume_labels(node.labels)
                await self._swarm.update_node(node, labels=labels)
            case Drain(node=node):
                await self._swarm.update_node(node, availability=Availability.DRAIN)
                await self._write(record, Phase.DRAINED, expect=expect)
            case Restore(node=node):
                drained = node.availability is Availability.DRAIN
                await self._swarm.update_node(node, availability=record.former if drained else None)
                await self._write(record, Phase.RETURNED, expect=expect)
            case Forget():
                await self._cluster.registry.remove_evacuation(record.node, expect=expect)
        what = type(step).__name__.lower()
        log.info(
            "evacuation.step", node=record.node, step=what, phase=record.phase, times=record.times
        )

    async def _write(self, record: Evacuated, phase: Phase, *, expect: int) -> None:
        await self._cluster.registry.put_evacuation(replace(record, phase=phase), expect=expect)


def _begins(step: Step) -> bool:
    return isinstance(step, Remember) and step.record.phase is Phase.DRAINING
