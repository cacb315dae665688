"""Giving a Swarm service a volume of ours in place of what was imported: stopped, switched, and back if it does not come up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    EngineUnavailable,
    OutcomeUnknown,
    Stale,
)
from pannier.core.importing import SourceKind
from pannier.core.pace import SwarmPace
from pannier.core.service_move import check_kind, find_service
from pannier.core.service_spec import MountOf, Spec, with_mounts_of, with_replicas, with_volume
from pannier.core.swarm import SwarmService, SwarmTask
from pannier.engine.base import Swarm
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

FAILURES = 3
"""After so many tasks that failed, the service does not come up. Swarm goes on trying."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A service that may be given another volume.

    Attributes:
        former: its spec before anything was changed.
    """

    service: SwarmService
    former: Spec
    old: MountOf


class ServiceSwitches:
    """Changes services by compare-and-swap. All calls may be repeated.

    Each raises, beyond what it says:
        Conflict: this node is no Swarm manager.
        EngineUnavailable: the engine does not answer, or the Swarm has no leader, for a while.
        Stale: somebody keeps changing the service. OutcomeUnknown: it may have been changed.
    """

    def __init__(self, *, swarm: Swarm, clock: Clock, pace: SwarmPace) -> None:
        self._swarm = swarm
        self._clock = clock
        self._pace = pace

    async def find(self, name: str, old: MountOf) -> Switch:
        """A service that mounts what is imported, and can be stopped and started for it.

        Raises:
            NotFound: there is none of that name.
            Conflict: it does not mount it, is of another kind, or runs elsewhere with a local volume of that node's.
        """
        service = find_service(name, await self._swarm.services())
        check_kind(service)
        spec = await self._swarm.spec(service)
        with_volume(spec, old, "NAME")
        member = await self._swarm.member()
        tasks = await self._swarm.tasks(service=service.id)
        away = [each for each in tasks if not each.ended and member and each.node != member.node]
        if away and old.source.kind is SourceKind.LOCAL:
            raise Conflict(
                f"service {service.name} runs on another node, whose volume {old.source.place} is another one",
                remedy="import it on the node on which the service runs",
            )
        return Switch(service, spec, old)

    async def stop(self, switch: Switch, *, within: float) -> None:
        """Let the service have no tasks, and wait until those that it has have ended.

        Raises:
            DeadlineExceeded: they did not within so many seconds.
        """
        await self._change(switch.service, partial(with_replicas, replicas=0))
        until = self._clock.now() + within
        while any(not each.ended for each in await self._tasks(switch.service)):
            if self._clock.now() > until:
                raise DeadlineExceeded(
                    f"service {switch.service.name} did not stop within {within:.0f} s",
                    remedy="see docker service ps; give it more time with --wait",
                )
            await asyncio.sleep(self._pace.move_poll)

    async def switch(self, switch: Switch, volume: str) -> frozenset[str]:
        """Start the service again with a volume in place of what it had. Returns the ids of the tasks that it had before."""
        known = frozenset(each.id for each in await self._tasks(switch.service))

        def changed(spec: Spec) -> Spec:
            moved = with_volume(with_mounts_of(spec, switch.former), switch.old, volume)
            return with_replicas(moved, switch.service.replicas)

        await self._change(switch.service, changed)
        return known

    async def why_down(self, service: SwarmService, known: frozenset[str]) -> str:
        """Wait until a service that was switched runs, and goes on running. Returns why it does not; empty if it does.

        Args:
            known: the tasks that it had before.

        Raises:
            EngineUnavailable: it cannot be seen.
        """
        began = self._clock.now()
        since: dict[str, float] = {}
        while True:
            now = self._clock.now()
            new = [each for each in await self._tasks(service) if each.id not in known]
            running = {each.id for each in new if each.state == "running" and each.wanted}
            since = {each: since.get(each, now) for each in running}
            if any(now - at >= self._pace.switch_settled for at in since.values()):
                return ""
            failed = [each for each in new if each.state in ("failed", "rejected")]
            if len(failed) >= FAILURES or now - began > self._pace.switch_starts:
                said = dict.fromkeys(each.message for each in new if each.message)
                return "; ".join(said) or "no task runs"
            await asyncio.sleep(self._pace.move_poll)

    async def put_back(self, switch: Switch) -> None:
        """Give the service the mounts and the tasks that it had."""

        def former(spec: Spec) -> Spec:
            return with_replicas(with_mounts_of(spec, switch.former), switch.service.replicas)

        await self._change(switch.service, former)
        log.info("service.put-back", service=switch.service.name)

    async def start_again(self, service_id: str, replicas: int) -> None:
        """Give a service that was left without tasks so many again; one that is gone, or has some, is left as it is."""
        found = [each for each in await self._swarm.services() if each.id == service_id]
        if found and found[0].replicas == 0:
            await self._change(found[0], partial(with_replicas, replicas=replicas))
            log.info("service.started-again", service=found[0].name)

    async def _change(self, service: SwarmService, change: Callable[[Spec], Spec]) -> None:
        """If the answer is lost, the service is read again; a change that comes late was made for an older version."""
        until = self._clock.now() + self._pace.move_leader
        while True:
            try:
                present = find_service(service.id, await self._swarm.services())
                spec = await self._swarm.spec(present)
                wanted = change(spec)
                if wanted != spec:
                    await self._swarm.replace_service(present, wanted)
            except (Stale, OutcomeUnknown, EngineUnavailable):
                if self._clock.now() > until:
                    raise
                await asyncio.sleep(self._pace.move_poll)
            else:
                return

    async def _tasks(self, service: SwarmService) -> list[SwarmTask]:
        """The Swarm may be without a leader for a while."""
        until = self._clock.now() + self._pace.move_leader
        while True:
            try:
                return await self._swarm.tasks(service=service.id)
            except EngineUnavailable:
                if self._clock.now() > until:
                    raise
                await asyncio.sleep(self._pace.move_poll)
