"""Stopping the Swarm service that uses a volume, doing something to the volume, and starting the service again.

The service is started again whatever happens: where the work fails, and where this node dies meanwhile, by its next start of
the daemon (:mod:`pannier.core.service_stop`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import structlog

from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    EngineUnavailable,
    NotFound,
    OutcomeUnknown,
    PannierError,
    Stale,
    Unavailable,
    VolumeInUse,
)
from pannier.core.pace import SwarmPace
from pannier.core.service_move import find_service
from pannier.core.service_stop import STOPPED, Stop, labels_with, noted_stop, stop_by, stop_of
from pannier.core.swarm import SwarmService
from pannier.engine.base import Swarm
from pannier.host.clock import Clock
from pannier.swarm.services import Services

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ServiceStops:
    """The services that this node has stopped for a while."""

    def __init__(
        self, *, node: str, swarm: Swarm, services: Services, clock: Clock, pace: SwarmPace
    ) -> None:
        self._node = node
        self._swarm = swarm
        self._services = services
        self._clock = clock
        self._pace = pace
        self._under_way: set[str] = set()
        """Ids of services."""

    async def run(self) -> None:
        """Start again what an earlier run of the daemon has stopped: run as a task, which ends when all of it runs."""
        until = self._clock.now() + self._pace.stop_again
        while True:
            try:
                found = await self._swarm.services()
                if all([await self._runs_again(each) for each in found]):
                    return
            except Conflict as error:  # it is no manager, or its engine does not know that yet
                if self._clock.now() > until:
                    log.info("services.not-looked-at", why=error.message)
                    return
            except PannierError as error:
                log.info("services.not-looked-at", why=error.message)
            await asyncio.sleep(self._pace.options_look)

    async def _runs_again(self, service: SwarmService) -> bool:
        """Start a service if an earlier run has stopped it. Returns False if it is to be tried again: others do not wait for that."""
        try:
            stop = noted_stop(service)
            if stop is None or stop.node != self._node or service.id in self._under_way:
                return True
            await self._start(service.id)
        except PannierError as error:
            log.warning("service.not-started-again", service=service.name, why=error.message)
            return False
        if not service.replicas:
            log.warning("service.started-again", service=service.name)
        return True

    async def check(self, volume: str) -> None:
        """Check, before much is done for it, that the service that uses a volume can be stopped.

        Raises:
            Conflict: this node is no Swarm manager; no service uses the volume, or several do; or it cannot be stopped.
            EngineUnavailable: the engine does not answer.
        """
        await self._service_of(volume)

    async def around(
        self,
        volume: str,
        work: Callable[[], Awaitable[T]],
        *,
        actor: str,
        what: str = "rolled back",
    ) -> T:
        """Stop the service that uses a volume, do ``work``, and start the service again, also where the work fails.

        Args:
            work: may raise VolumeInUse; it is done again while the service ends.
            what: it does to the volume, as in "it was ...".

        Raises:
            Conflict: this node is no Swarm manager; no service uses the volume, or several do; or it cannot be stopped.
            DeadlineExceeded: it has not ended in time. VolumeInUse: somebody else uses the volume.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader; the work was not done.
            Unavailable: it could not be started again; the message says whether the work was done, or that nobody knows.
            PannierError: what the work raised.
        """
        service = await self._service_of(volume)
        if service.id in self._under_way:
            raise Conflict(
                f"service {service.name} is stopped for something else just now",
                remedy="wait until that has ended",
            )
        self._under_way.add(service.id)
        done: bool | None = False
        try:
            log.warning("service.stops", service=service.name, volume=volume, by=actor)
            await self._stop(service.id)
            done = None  # who is interrupted from here on does not know
            result = await self._when_unused(service, work)
            done = True
            return result
        except OutcomeUnknown:
            raise
        except PannierError:
            done = False
            raise
        finally:
            try:
                await self._start_or_tell(service, volume, what, done=done)
            finally:
                self._under_way.discard(service.id)

    async def _service_of(self, volume: str) -> SwarmService:
        found = await self._services.mounting(volume)
        if not found:
            raise Conflict(
                f"no service of this Swarm uses volume {volume}",
                remedy="do it without --stop-service, when nobody uses it",
            )
        if len(found) > 1:
            raise Conflict(
                f"several services use volume {volume}: {', '.join(each.name for each in found)}",
                remedy="stop all of them but one: docker service scale NAME=0, and remove their mount of it or do it without "
                "--stop-service",
            )
        stop_by(found[0], self._node)
        return found[0]

    async def _when_unused(self, service: SwarmService, work: Callable[[], Awaitable[T]]) -> T:
        deadline = self._clock.now() + self._pace.stop
        ended_at: float | None = None
        while True:
            try:
                return await work()
            except VolumeInUse as error:
                now = self._clock.now()
                if not await self._has_ended(service):
                    ended_at = None
                    if now > deadline:
                        raise DeadlineExceeded(
                            f"service {service.name} has not ended within {self._pace.stop:g} s: {error.message}",
                            remedy="see what keeps it: docker service ps; it is started again, and nothing was changed",
                        ) from error
                else:
                    ended_at = now if ended_at is None else ended_at
                    if now > ended_at + self._pace.stop_rest:
                        raise
                await asyncio.sleep(self._pace.move_poll)

    async def _has_ended(self, service: SwarmService) -> bool:
        try:
            return all(task.ended for task in await self._swarm.tasks(service=service.id))
        except EngineUnavailable:
            return False

    # -- changes in Swarm -----------------------------------------------------------------------

    async def _stop(self, service: str) -> None:
        def decide(found: SwarmService) -> tuple[int, Stop] | None:
            stop = stop_by(found, self._node)
            if stop is None or stop == stop_of(found):
                return None
            return 0, stop

        await self._change(service, decide)

    async def _start(self, service: str) -> None:
        def decide(found: SwarmService) -> tuple[int, None] | None:
            if STOPPED not in found.labels:
                return None
            # Where a person has started it, the label must go, too: it would be taken for one of a later stop.
            stop = stop_of(found)
            return (found.replicas or 0) if stop is None else stop.replicas, None

        await self._change(service, decide)

    async def _change(
        self, service: str, decide: Callable[[SwarmService], tuple[int, Stop | None] | None]
    ) -> None:
        """Change a service until ``decide`` wants nothing more of it. If no answer comes, it is read again: a change that
        arrives late was made for an older version, and Swarm refuses it."""
        deadline = self._clock.now() + self._pace.move_leader
        while True:
            try:
                found = find_service(service, await self._swarm.services())
                wanted = decide(found)
                if wanted is None:
                    return
                replicas, stop = wanted
                await self._swarm.scale_service(
                    found, replicas=replicas, labels=labels_with(found, stop)
                )
            except (Stale, OutcomeUnknown, EngineUnavailable):
                if self._clock.now() > deadline:
                    raise
                await asyncio.sleep(self._pace.move_poll)

    async def _start_or_tell(
        self, service: SwarmService, volume: str, what: str, *, done: bool | None
    ) -> None:
        """Start it. ``done``: whether ``what`` was done to the volume; None: that is not known."""
        try:
            await self._start(service.id)
        except NotFound:  # somebody has removed it
            log.warning("service.gone", service=service.name)
        except PannierError as error:
            stop = stop_by(service, self._node)
            replicas = stop.replicas if stop is not None else service.replicas
            start = f"start it: docker service scale {service.name}={replicas}"
            if done is None:
                raise Unavailable(
                    f"it is not known whether volume {volume} was {what}, and service {service.name} could not be started "
                    f"again: {error.message}",
                    remedy=f"look for the last line '{what}': pannier volume history {volume}; then {start}",
                ) from error
            was = f"was {what}" if done else f"was not {what}"
            raise Unavailable(
                f"volume {volume} {was}, and service {service.name} could not be started again: {error.message}",
                remedy=start,
            ) from error


async def stopped_services(swarm: Swarm) -> AsyncIterator[FindingView]:
    """A finding for each service that is stopped for a while. Nothing if this engine is no Swarm manager. Raises EngineUnavailable."""
    try:
        services = await swarm.services()
    except Conflict:
        return
    for service in services:
        if stop := stop_of(service):
            yield FindingView(
                level=Level.WARNING,
                subject=f"service {service.name}",
                what=f"it is stopped for a rollback or a conversion that node {stop.node} leads, and had {stop.replicas} replicas",
                remedy="if that does not go on: the same command with --stop-service once more, or "
                f"docker service scale {service.name}={stop.replicas}",
            )
