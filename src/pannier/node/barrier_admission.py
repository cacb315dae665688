"""Checks before each Mount that this node's engine can hold sync calls, if the volume asks for that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Protocol

import structlog

from pannier.core.errors import Conflict, EngineUnavailable, PannierError
from pannier.core.pace import NodePace
from pannier.core.volume import Durability, UnheldWrites, Volume
from pannier.engine.base import Engine, EngineFacts

log = structlog.get_logger(__name__)

RUNTIME = "pannier"
"""What pannier-runtime is called in Docker's daemon.json."""
OLDEST = {"kernel": (5, 9), "runc": (1, 1), "libseccomp": (2, 5)}
"""The first versions whose seccomp notifications can let a call continue, and report when no process that
could make one is left."""


class Marks(Protocol):
    """Tells pannier-runtime which volumes' containers get the barrier."""

    def hold(self, volume: str, unheld_writes: UnheldWrites) -> None:
        """Give new containers with this volume the barrier, and refuse them what it cannot hold if that is asked.

        Raises:
            OSError: the mark cannot be written.
        """
        ...

    def release(self, volume: str) -> None:
        """Give new containers with this volume no barrier any more. An unmarked volume is no error.

        Raises:
            OSError: the mark cannot be removed.
        """
        ...


class BarrierAdmission:
    """Admits a volume to this node's engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        marks: Marks,
        configured: Callable[[], str],
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` asks the engine ahead of time.

        Args:
            configured: the default runtime that the engine's configuration file names.
        """
        self._engine = engine
        self._marks = marks
        self._configured = configured
        self._pace = pace
        self._known: str | None = None
        """The obstacle as of the engine's last answer; None before any."""

    async def admit(self, volume: Volume) -> None:
        """Prepare for containers with this volume; called before Docker is told where it is mounted.

        Raises:
            Conflict: the volume asks for durability=fsync, and its containers' sync calls would not be
                held; or the engine does not answer, and its configuration file cannot be read.
            OSError: as :class:`Marks`.
        """
        if volume.spec.durability is not Durability.FSYNC:
            self._marks.release(volume.name)
            return
        # A starting engine calls us before it answers anybody, and a Swarm manager without a leader
        # may not answer either. So if there is an earlier answer, it is used after a short wait.
        problem = await self._look(
            seconds=self._pace.admission_first
            if self._known is None
            else self._pace.admission_answer
        )
        if problem:
            raise Conflict(
                f"volume {volume.name} asks for durability=fsync, and {problem}",
                remedy="pannier runtime register; or use a volume with durability=interval",
            )
        self._marks.hold(volume.name, volume.spec.unheld_writes)

    async def run(self) -> None:
        """Ask each engine that comes up, before a Mount needs the answer, for ever: run as a task."""
        async for _ in self._engine.starts():
            self._known = None
            while await self._look(seconds=self._pace.admission_patience) and self._known is None:
                await asyncio.sleep(self._pace.admission_patience)

    async def _look(self, *, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                self._known = obstacle(await self._engine.facts())
        except (EngineUnavailable, TimeoutError) as error:
            log.info("engine.not-asked", error=str(error) or f"no answer within {seconds:g} s")
            if self._known is not None:
                return self._known
            # A starting engine mounts its containers' volumes before it answers anybody.
            return self._configured_obstacle()
        return self._known

    def _configured_obstacle(self) -> str:
        try:
            return _obstacle_of(self._configured())
        except (PannierError, OSError) as error:
            return f"the configuration of the engine cannot be read: {error}"


def obstacle(facts: EngineFacts) -> str:
    """Why this engine's containers could get past the barrier; empty where they cannot."""
    if problem := _obstacle_of(facts.default_runtime):
        return problem
    found = {"kernel": facts.kernel, "runc": facts.runc, "libseccomp": facts.libseccomp}
    for name, version in found.items():
        if version is None:
            continue  # older engines do not report it; there runc refuses the container itself
        numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:2])
        if numbers < OLDEST[name]:
            oldest = ".".join(map(str, OLDEST[name]))
            return f"{name} {version} here is too old for holding sync calls (needs {oldest})"
    return ""


def _obstacle_of(default_runtime: str) -> str:
    if default_runtime == RUNTIME:
        return ""
    return (
        f"Docker's default runtime here is {default_runtime}, not pannier-runtime, so that sync calls "
        f"would not be held"
    )
