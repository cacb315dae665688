"""An engine in memory, for tests. It passes the same contract suite as the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pannier.core.errors import EngineUnavailable
from pannier.engine.base import Container


class FakeEngine:
    """Implements :class:`~pannier.engine.base.Engine`.

    Attributes:
        plugin_answers: whether an activation finds our plugin.
        activations: how often the plugin was activated, over all starts.
        foreign: names of volumes of other drivers.
    """

    def __init__(self, *, version: str = "20.10.24") -> None:
        self.plugin_answers = True
        self.activations = 0
        self._version = version
        self._active = False
        self._up = True
        self._changed = asyncio.Condition()
        self._starts = 1
        self._containers: dict[str, tuple[Container, frozenset[str]]] = {}
        self.foreign: list[str] = []

    # --- what a test does to it ------------------------------------------------------------------

    def put(self, container: Container, *, volumes: tuple[str, ...] = ()) -> None:
        """Add a container, or replace the one of the same id."""
        self._containers[container.id] = (container, frozenset(volumes))

    def take(self, container_id: str) -> None:
        """Remove a container."""
        del self._containers[container_id]

    async def stop(self) -> None:
        """The engine goes down; like the real one, it forgets that the plugin was active."""
        self._up = self._active = False
        async with self._changed:
            self._changed.notify_all()

    async def start(self) -> None:
        """The engine comes up again."""
        if not self._up:
            self._up = True
            self._starts += 1
        async with self._changed:
            self._changed.notify_all()

    # --- the protocol ----------------------------------------------------------------------------

    async def activate_plugin(self) -> None:
        self._check()
        if not self.plugin_answers:
            raise EngineUnavailable("the fake engine found no plugin", remedy="let it answer")
        self.activations += 1
        self._active = True

    async def plugin_active(self) -> bool:
        self._check()
        return self._active

    async def containers_using(self, volume: str) -> list[Container]:
        self._check()
        return [item for item, volumes in self._containers.values() if volume in volumes]

    async def container(self, container_id: str) -> Container | None:
        self._check()
        found = self._containers.get(container_id)
        return found[0] if found else None

    async def other_volumes(self) -> list[str]:
        self._check()
        return sorted(self.foreign)

    async def version(self) -> str:
        self._check()
        return self._version

    async def starts(self) -> AsyncIterator[None]:
        seen = 0
        while True:
            async with self._changed:
                while not self._up or self._starts == seen:
                    await self._changed.wait()
                seen = self._starts
            yield

    def _check(self) -> None:
        if not self._up:
            raise EngineUnavailable("the fake engine is down", remedy="start it")
