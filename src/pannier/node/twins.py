"""Docker's local volumes that have the name of one of the cluster's, and hide it on this machine.

Docker makes one, empty, when a container names a volume without its driver while the plugin does not answer, and
takes it for that name from then on. ``pannier-runtime`` starts no container with it. An empty one is removed
here, once no container has it; one with content is a person's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from pannier.cluster.catalog import Catalog
from pannier.core.errors import Conflict, PannierError
from pannier.core.pace import NodePace
from pannier.engine.base import Engine, LocalVolume

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Twin:
    """A local volume with the name of one of ours. ``empty``: it was made without options, and nothing is in it."""

    volume: LocalVolume
    empty: bool


class Twins:
    """Finds them, and removes those that are empty."""

    def __init__(self, *, catalog: Catalog, engine: Engine, pace: NodePace) -> None:
        self._catalog = catalog
        self._engine = engine
        self._pace = pace
        self._removing: set[str] = set()

    async def run(self) -> None:
        """Remove those that are empty, for ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.twins_look)
            try:
                await self.clear()
            except PannierError as error:
                log.info("twins.not-cleared", error=str(error))

    async def find(self) -> list[Twin]:
        """Those that there are.

        Raises:
            EngineUnavailable.
        """
        ours = {volume.name for volume in self._catalog.volumes()}
        if not ours:
            return []
        found = [each for each in await self._engine.local_volumes() if each.name in ours]
        return [
            Twin(each, empty=each.plain and await asyncio.to_thread(_is_empty, each.folder))
            for each in found
        ]

    async def clear(self) -> None:
        """Remove those that are empty and that no container has.

        Raises:
            EngineUnavailable, OutcomeUnknown: the others wait for the next time.
        """
        for twin in await self.find():
            name = twin.volume.name
            if not twin.empty:
                continue
            with self._guarded(name):
                gone = await self._engine.remove_volume(name)
            if gone:
                log.warning("volume.empty-twin-removed", volume=name, path=str(twin.volume.folder))

    def check(self, name: str) -> None:
        """Refuse the engine's wish to remove a volume of ours while we have it remove the twin.

        The twin may have gone a moment before; the name then is ours again.

        Raises:
            Conflict: this is such a moment.
        """
        if name in self._removing:
            raise Conflict(
                f"volume {name} is not removed: Docker was asked to remove its own volume of that name",
                remedy="try again",
            )

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        self._removing.add(name)
        try:
            yield
        finally:
            self._removing.discard(name)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:  # it cannot be told
        return False
