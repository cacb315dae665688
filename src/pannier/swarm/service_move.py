"""One move of a Swarm service with its volumes, from the first byte to the last hook.

Until the service is changed in Swarm, the move can be given up at any moment, and nothing has changed:
the hand-overs end for lack of interest, and the old container's node runs the post-move hook as soon
as nobody reads the pre-move hook's stream any more. After that change the rest happens by itself, even
if this node fails: Swarm ends the old task and starts the new one, whose node asks for the volumes. What
is left to do here (removing the added constraint, the post-move hook) is also done if the same command
is given again.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from pannier.contract.views import HookView, MoveProgress, ServiceMoveProgress, StepView
from pannier.contract.words import MovePhase, ServicePhase
from pannier.core.constraints import matches
from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    EngineUnavailable,
    OutcomeUnknown,
    PannierError,
    Stale,
    Unavailable,
)
from pannier.core.hooks import Moment, hook_ended
from pannier.core.service_arrival import ServiceArrival
from pannier.core.service_move import Placement, is_tied, tied, untied
from pannier.core.size import format_size
from pannier.core.swarm import SwarmService, SwarmTask
from pannier.swarm.service_plan import Plan, Surroundings, Wish

log = structlog.get_logger(__name__)

NEAR = frozenset({MovePhase.WAITING, MovePhase.SWITCHING, MovePhase.DONE})
"""Phases of a volume's move in which at most a small rest is left to be sent."""
FAILURES = 3
"""After this many failed tasks on the target the move has failed. Swarm goes on trying."""


@dataclass(slots=True)
class Relocation:
    """A move that is under way.

    Attributes:
        committed: Swarm was told, or may have been: the move cannot be given up any more.
        changed: set when :meth:`progress` says something new.
    """

    plan: Plan
    wish: Wish
    around: Surroundings
    phase: ServicePhase = ServicePhase.COPYING
    committed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _began: float = 0.0
    _steps: list[StepView] = field(default_factory=list)
    _volumes: dict[str, MoveProgress] = field(default_factory=dict)
    _pause_seconds: float | None = None
    _copies: list[asyncio.Task[None]] = field(default_factory=list)
    _hold: asyncio.Task[None] | None = None
    _prepared: HookView | None = None

    @property
    def name(self) -> str:
        """The service's name."""
        return self.plan.service.name

    @property
    def target(self) -> str:
        """The node that it is moved to."""
        return self.plan.target.node.name

    def progress(self) -> ServiceMoveProgress:
        """How far it is."""
        return ServiceMoveProgress(
            phase=self.phase,
            service=self.name,
            source=self.plan.source,
            target=self.target,
            volumes=list(self._volumes.values()),
            steps=list(self._steps),
            pause_seconds=self._pause_seconds,
        )

    async def run(self) -> None:
        """Do the move. Raises the error that ended it; its message says whether anything was changed."""
        self._began = self.around.clock.now()
        try:
            await self._copy()
            await self._prepare()
            known = await self._commit()
            await self._arrive(known)
            await self._untie()
            await self._finish()
        finally:
            await self._end()
        self._to(ServicePhase.DONE)

    def _to(self, phase: ServicePhase) -> None:
        self.phase = phase
        self.changed.set()

    def _step(self, what: str) -> None:
        self._steps.append(StepView(seconds=self.around.clock.now() - self._began, what=what))
        self.changed.set()

    async def _end(self) -> None:
        """Stop waiting for the volumes and the hook."""
        tasks = [*self._copies, *([self._hold] if self._hold else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- before the change in Swarm -------------------------------------------------------------

    async def _copy(self) -> None:
        """Copy all volumes, at the same time, while the service runs, until only small rests are left."""
        where = f"runs on {self.plan.source}" if self.plan.source else "runs on no node"
        self._step(f"{self.name} {where}; its volumes are copied to {self.target}")
        self._copies = [
            asyncio.create_task(self._send(name), name=f"service-move {name}")
            for name in self.plan.volumes
        ]
        if not await self._until_near(seconds=self.wish.timeout_seconds):
            raise DeadlineExceeded(
                f"service {self.name} was not moved: its volumes were not copied to {self.target} "
                f"within {self.wish.timeout_seconds:.0f} s",
                remedy="what was copied is kept: do it again, with a longer --timeout",
            )
        sent = sum(volume.sent_bytes for volume in self._volumes.values())
        self._step(f"copied: {', '.join(self._volumes)} ({format_size(sent)} sent)")

    async def _send(self, volume: str) -> None:
        steps = self.around.move_volume(
            volume, self.target, wait_seconds=self.around.pace.move_volume, actor=self.wish.actor
        )
        try:
            async with aclosing(steps):
                async for step in steps:
                    self._volumes[volume] = step
                    self.changed.set()
        except PannierError as error:
            if not self.committed:
                raise
            # The new container's node asks for the volume as well, and is told what is wrong.
            log.info("service-move.volume", volume=volume, error=str(error))

    async def _until_near(self, *, seconds: float) -> bool:
        """Wait until only small rests are left; returns False if that takes longer than ``seconds``."""
        deadline = self.around.clock.now() + seconds
        while not self._near():
            if self.around.clock.now() > deadline:
                return False
            await asyncio.sleep(self.around.pace.move_poll)
        return True

    def _near(self) -> bool:
        """Whether only small rests are left. Raises what ended a volume's move, or the hook's stream."""
        for task in (*self._copies, *([self._hold] if self._hold else [])):
            if task.done() and (error := task.exception()):
                raise error
        moves = self._volumes.values()
        return len(moves) == len(self._copies) and all(move.phase in NEAR for move in moves)

    async def _prepare(self) -> None:
        """Run the pre-move hook, if there is one."""
        source = self.plan.source
        if self.wish.now or source is None or source == self.target:
            return
        self._hold = asyncio.create_task(self._keep_prepared(source), name="service-move hook")
        while not (self._hold.done() or (self._prepared and self._prepared.ended)):
            self._near()
            await asyncio.sleep(self.around.pace.move_poll)
        self._near()
        if self._prepared is None:
            return
        self._step(_ended(self._prepared))
        if self._prepared.failure and self._prepared.abort:
            raise Conflict(
                f"service {self.name} was not moved: {_ended(self._prepared)}",
                remedy="nothing was changed; see to what it says and do it again, or leave the hook "
                "out: --now",
            )
        await self._until_near(seconds=self.around.pace.move_rest)

    async def _keep_prepared(self, source: str) -> None:
        """Run the hook, and read on: as long as this reads, the old container's node expects the move."""
        views = self.around.hook(Moment.BEFORE, self.name, node=source)
        async with aclosing(views):
            async for view in views:
                if not view.ended:
                    self._to(ServicePhase.PRE_MOVE)
                    self._step(f"{view.hook} hook in {view.container} on {source}")
                self._prepared = view
        if self._prepared is not None and not self.committed:
            raise Unavailable(
                f"service {self.name} was not moved: node {source} lost sight of the move",
                remedy="nothing was changed; do it again",
            )

    # -- the change -----------------------------------------------------------------------------

    async def _commit(self) -> frozenset[str]:
        """Tie the service to the target. Returns the ids of the tasks that it had before.

        If no answer comes, the service is read again. A change that arrives late was made for an
        older version, and Swarm refuses it.
        """
        known: frozenset[str] | None = None
        deadline = self.around.clock.now() + self.around.pace.move_leader
        while True:
            if not self.committed:
                self._near()
            try:
                plan = await self.around.plan(self.name, self.target)
                wanted = tied(plan.service, plan.target.swarm, plan.nodes)
                if _has(plan.service, wanted):
                    self.committed = True
                    return known or frozenset()
                if not self.committed:
                    self._check_same(plan)
                    await self.around.check_capacity(plan)  # others may have come meanwhile
                known = known or frozenset(task.id for task in plan.tasks)
                await self._tell(plan, wanted)
            except (Stale, OutcomeUnknown, EngineUnavailable):
                if self.around.clock.now() > deadline:
                    raise
                await asyncio.sleep(self.around.pace.move_poll)
            else:
                self._step(f"Swarm is told to run it on {self.target}")
                return known

    def _check_same(self, plan: Plan) -> None:
        """Refuse if its volumes, or the container that the hook was run in, are others now."""
        before, now = self.plan, plan
        other = before.service.id != now.service.id
        if other or set(before.volumes) != set(now.volumes):
            what = "it has other volumes now"
        elif self._prepared is not None and _id(before.task) != _id(now.task):
            what = "its container is another one now"
        else:
            return
        raise Conflict(
            f"service {self.name} was not moved: somebody has changed it, and {what}",
            remedy="nothing was changed; do it again",
        )

    async def _tell(self, plan: Plan, wanted: Placement) -> None:
        self._to(ServicePhase.SWITCHING)
        self.committed = True
        try:
            await self.around.swarm.update_service(
                plan.service, constraints=wanted.constraints, labels=wanted.labels
            )
        except Stale:
            self.committed = False
            raise

    # -- after it -------------------------------------------------------------------------------

    async def _arrive(self, known: frozenset[str]) -> None:
        """Wait until the new container runs, and is healthy where it has a health check."""
        here = self.plan.target.swarm.id
        arrival = ServiceArrival(known=known, target=here)
        silent_since = pending_since = self.around.clock.now()
        deadline = silent_since + self.wish.timeout_seconds
        while True:
            now = self.around.clock.now()
            try:
                tasks = await self.around.swarm.tasks(service=self.plan.service.id)
                silent_since = now
            except EngineUnavailable as error:
                if now > silent_since + self.around.pace.move_leader:
                    raise self._not_up(str(error)) from error
                pending_since = now  # without a leader, no place is looked for
                await asyncio.sleep(self.around.pace.move_poll)
                continue
            arrival.look(tasks, now=now)
            self._report(arrival, now=now)
            if arrival.running:
                return
            if not arrival.pending:
                pending_since = now
            if (
                arrival.failed >= FAILURES
                or now > min(deadline, pending_since + self.around.pace.move_place)
                or (arrival.failed and await self._rolled_back())
            ):
                raise self._not_up(arrival.message)
            await asyncio.sleep(self.around.pace.move_poll)

    def _report(self, arrival: ServiceArrival, *, now: float) -> None:
        """Say what has happened since the last look."""
        if arrival.ended_at is not None and self.phase is ServicePhase.SWITCHING:
            self._to(ServicePhase.STARTING)
            if self.plan.source not in (None, self.target):
                self._step(f"the container on {self.plan.source} has ended")
        if arrival.running:
            if arrival.ended_at is not None and self.plan.source not in (None, self.target):
                self._pause_seconds = now - arrival.ended_at
            self._step(f"{self.name} runs on {self.target}")

    async def _rolled_back(self) -> bool:
        services = await self.around.swarm.services()
        found = next((each for each in services if each.id == self.plan.service.id), None)
        return found is None or found.update.startswith("rollback")

    def _not_up(self, why: str) -> Unavailable:
        back = f"pannier service move {self.name} {self.plan.source} --now"
        return Unavailable(
            f"service {self.name} was moved to {self.target} and does not run there"
            + (f"; Swarm says: {why}" if why else ""),
            remedy=f"docker service ps --no-trunc {self.name} shows more; do it again once that is "
            "mended" + (f", or go back: {back}" if self.plan.source else ""),
        )

    async def _untie(self) -> None:
        """Give the service its own constraints back. It stays, and may start elsewhere if it must.

        Swarm leaves a task alone if the new constraints allow its node. So this waits until the node
        has the labels of the volumes that came with the service.
        """
        if self.wish.stay:
            return
        deadline = self.around.clock.now() + self.around.pace.move_untie
        while self.around.clock.now() < deadline:
            try:
                if await self._is_untied():
                    return
            except (Stale, OutcomeUnknown, EngineUnavailable) as error:
                log.info("service-move.again", service=self.name, why=error.message)
            await asyncio.sleep(self.around.pace.move_poll)
        self._step(
            f"it stays tied to {self.target}, since its own constraints do not allow that node yet; "
            "the same command, given again, takes that back"
        )

    async def _is_untied(self) -> bool:
        services, nodes = await self.around.swarm.services(), await self.around.swarm.nodes()
        service = next((each for each in services if each.id == self.plan.service.id), None)
        if service is None or not is_tied(service):
            return True
        free = untied(service)
        here = [node for node in nodes if node.id == self.plan.target.swarm.id]
        if not any(matches(node, free.constraints) for node in here):
            return False
        await self.around.swarm.update_service(
            service, constraints=free.constraints, labels=free.labels
        )
        self._step("its constraints are as before")
        return True

    async def _finish(self) -> None:
        """Run the post-move hook, if there is one."""
        failed: HookView | None = None
        try:
            views = self.around.hook(Moment.AFTER, self.name, node=self.target)
            async with aclosing(views):
                async for view in views:
                    if view.ended:
                        self._step(_ended(view))
                        failed = view if view.failure and view.abort else None
                    else:
                        self._to(ServicePhase.POST_MOVE)
                        self._step(f"{view.hook} hook in {view.container} on {self.target}")
        except PannierError as error:
            self._step(f"the post-move hook could not be run: {error}")
        if failed is not None:
            raise Conflict(
                f"service {self.name} runs on {self.target}, but {_ended(failed)}",
                remedy="see to what it says; the same command runs the hook again",
            )


def _id(task: SwarmTask | None) -> str:
    return task.id if task else ""


def _has(service: SwarmService, wanted: Placement) -> bool:
    same = (service.constraints, dict(service.labels))
    return same == (wanted.constraints, dict(wanted.labels))


def _ended(view: HookView) -> str:
    """How a hook ended, as part of a sentence."""
    return hook_ended(view.hook, view.failure, view.output)
