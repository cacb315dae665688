"""The pre-snapshot and post-snapshot hooks of the containers that use the volumes of a snapshot.

They run on the volumes' holder, as the containers' own labels give them. The post-snapshot hook always runs where the
pre-snapshot hook was begun: also if that one failed, if no snapshot was made, if nobody waits for the command any more, or
after a restart of the daemon. An engine that does not answer, or a container that stands still, only delays it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import structlog

from pannier.agent.hooks import HookNotes, run_hook
from pannier.agent.use import Use
from pannier.core.errors import Conflict, EngineUnavailable, OutcomeUnknown, PannierError
from pannier.core.hooks import Hook, SnapshotMoment, hook_ended, read_hooks
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.engine.base import Container, Engine
from pannier.host.clock import Clock
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class HooksRun:
    """What became of the hooks around a snapshot. Complete when the block has ended.

    Attributes:
        failures: of hooks that may fail, each a sentence.
        failed: of post-snapshot hooks that may not.
    """

    failures: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def check(self, made: str) -> None:
        """Raise Conflict if a post-snapshot hook failed that may not. ``made`` says what there is all the same."""
        if self.failed:
            raise Conflict(
                f"{made}, but {'; '.join(self.failed)}",
                remedy="see to what it says; the snapshot is whole, and stays",
            )


@dataclass(frozen=True, slots=True)
class _Hooked:
    """A container that has at least one of the hooks."""

    container: Container
    before: Hook | None
    after: Hook | None


class SnapshotHooks:
    """Runs the hooks around snapshots in this node's containers.

    Args:
        file: keeps the ids of containers whose pre-snapshot hook was begun.
    """

    def __init__(
        self,
        *,
        node: str,
        engine: Engine,
        use: Use,
        file: StateFile,
        clock: Clock,
        pace: HoldingPace,
    ) -> None:
        self._node = node
        self._engine = engine
        self._use = use
        self._clock = clock
        self._pace = pace
        self._notes = HookNotes(file)
        self._left = self._notes.all()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By container; one that nobody has or waits for goes by itself."""
        self._ends: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run the post-snapshot hooks that an earlier run of the daemon left, for ever: run as a task."""
        for container in self._left:
            self._end_later(container, HooksRun())
        await asyncio.Event().wait()

    @asynccontextmanager
    async def around(self, volumes: Sequence[Volume]) -> AsyncIterator[HooksRun]:
        """Run the pre-snapshot hooks of all containers here that use any of the volumes; after the block, the post-snapshot hooks.

        Where nobody uses them, the engine is not asked.

        Raises:
            Conflict: a pre-snapshot hook failed that may not, or hooks of another snapshot last too long.
            InvalidInput: a container's labels ask for a hook that cannot be read.
            EngineUnavailable: the engine does not answer.
        """
        told = HooksRun()
        hooked = await self._hooked(volumes)
        async with AsyncExitStack() as turns:
            hooked = await self._take_turns(hooked, turns, told)
            ends: list[str] = []
            try:
                await self._begin(hooked, ends, told)
                yield told
            finally:
                ended = [self._end_later(container, told) for container in ends]
                for each in ended:
                    await each.wait()

    async def _hooked(self, volumes: Sequence[Volume]) -> list[_Hooked]:
        found: dict[str, Container] = {}
        for volume in volumes:
            if await self._use.in_use(volume):
                using = await self._engine.containers_using(volume.name)
                found |= {each.id: each for each in using if each.running}
        hooked = []
        for _, container in sorted(found.items()):
            hooks = read_hooks(container.labels)
            before, after = hooks.get(SnapshotMoment.BEFORE), hooks.get(SnapshotMoment.AFTER)
            if before is not None or after is not None:
                hooked.append(_Hooked(container, before, after))
        return hooked

    async def _take_turns(
        self, hooked: Sequence[_Hooked], turns: AsyncExitStack, told: HooksRun
    ) -> list[_Hooked]:
        """One snapshot after the other has its hooks run in a container; all take the containers in the same order.

        Returns the containers whose turn it is. One in which nothing can be run now, as while it is paused, is left out where its
        hooks may fail.
        """
        ready = []
        for each in hooked:
            turn = self._turns.setdefault(each.container.id, asyncio.Lock())
            try:
                async with asyncio.timeout(self._pace.hook_turn):
                    await turns.enter_async_context(turn)
                    while each.container.id in self._notes:
                        await asyncio.sleep(self._pace.snapshot_look)
            except TimeoutError as error:
                why = f"the hooks of another snapshot are run {self._where(each.container)}"
                if _may_not_fail(each):
                    raise Conflict(why, remedy="ask again when they have ended") from error
                told.failures.append(f"{why}, and those of this one were left out")
            else:
                ready.append(each)
        return ready

    async def _begin(self, hooked: Sequence[_Hooked], ends: list[str], told: HooksRun) -> None:
        """Run all pre-snapshot hooks at the same time. Those that were begun are in ``ends`` whatever happens."""
        for each in hooked:
            ends.append(each.container.id)
            self._notes.begin(each.container.id)
        begun = [each for each in hooked if each.before is not None]
        found = await asyncio.gather(*map(self._run_first, begun))
        failures = [(each, failure) for each, failure in zip(begun, found, strict=True) if failure]
        told.failures += [failure for each, failure in failures if not _may_not_fail(each)]
        if fatal := [failure for each, failure in failures if _may_not_fail(each)]:
            raise Conflict(
                f"no snapshot was made: {'; '.join(fatal)}",
                remedy="see to what it says and do it again, or give the container the label "
                "pannier.hook.pre-snapshot.on-failure=continue",
            )

    async def _run_first(self, hooked: _Hooked) -> str:
        assert hooked.before is not None
        try:
            return await self._failure(hooked.container, hooked.before)
        except (EngineUnavailable, OutcomeUnknown) as error:
            return f"the {hooked.before.moment} hook could not be run {self._where(hooked.container)}: {error.message}"

    async def _failure(self, container: Container, hook: Hook) -> str:
        end = await run_hook(self._engine, container, hook)
        if not end.failure:
            return ""
        return f"{hook_ended(hook.moment, end.failure, end.output)} {self._where(container)}"

    def _where(self, container: Container) -> str:
        return f"in {container} on node {self._node}"

    # -- the second hook ------------------------------------------------------------------------

    def _end_later(self, container: str, told: HooksRun) -> asyncio.Event:
        """Run its post-snapshot hook, whoever waits for that or does not. The event is set when it has ended, or is delayed."""
        ended = asyncio.Event()
        task = asyncio.create_task(self._end(container, told, ended), name="post-snapshot")
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return ended

    async def _end(self, container: str, told: HooksRun, ended: asyncio.Event) -> None:
        until, tries = self._clock.now() + self._pace.hook_give_up, 0
        try:
            while self._clock.now() < until:
                try:
                    await self._run_second(container, told)
                    break
                except (EngineUnavailable, OutcomeUnknown) as error:
                    log.info("hook.again", container=container[:12], why=error.message)
                    tries += 1
                    if tries == self._pace.hook_tries:
                        told.failures.append(
                            f"the {SnapshotMoment.AFTER} hook could not be run yet in container {container[:12]} on node "
                            f"{self._node}, and is tried again: {error.message}"
                        )
                        ended.set()
                    pause = self._pace.hook_retry * 2 ** min(tries - 1, self._pace.hook_tries)
                    await asyncio.sleep(pause)
            else:
                log.error("hook.given-up", container=container[:12])
        except PannierError as error:
            log.warning("hook.failed", container=container[:12], error=str(error))
        finally:
            ended.set()
        self._notes.end(container)

    async def _run_second(self, ident: str, told: HooksRun) -> None:
        container = await self._engine.container(ident)
        if container is None or not container.running:
            return
        hook = read_hooks(container.labels).get(SnapshotMoment.AFTER)
        if hook is None:
            return
        if failure := await self._failure(container, hook):
            log.warning("hook.failed", container=container.name, error=failure)
            (told.failed if hook.abort else told.failures).append(failure)


def _may_not_fail(hooked: _Hooked) -> bool:
    return hooked.before is not None and hooked.before.abort
