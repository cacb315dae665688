"""The Engine protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container, as messages name it. ``service`` is the Swarm service's name, if any."""

    id: str
    name: str
    service: str | None
    running: bool

    def __str__(self) -> str:
        return f"{self.name} (service {self.service})" if self.service else self.name


class Engine(Protocol):
    """One node's container engine. Raises EngineUnavailable where it does not answer."""

    async def activate_plugin(self) -> None:
        """Make the engine look at our plugin socket, so that Swarm schedules onto this node."""
        ...

    async def plugin_active(self) -> bool:
        """Whether the engine lists our volume plugin."""
        ...

    async def containers_using(self, volume: str) -> list[Container]:
        """Containers, running or not, of this engine that have the volume among their mounts."""
        ...

    async def container(self, container_id: str) -> Container | None:
        """One container; None where the engine does not know it."""
        ...

    async def other_volumes(self) -> list[str]:
        """Names of the engine's volumes of other drivers.

        One of these hides ours of the same name: ``docker run -v NAME:/path`` takes the other.
        """
        ...

    async def version(self) -> str:
        """The engine's version, such as ``20.10.24``."""
        ...

    def starts(self) -> AsyncIterator[None]:
        """Yields at once if the engine is up, and again each time it has come back up.

        Never ends and raises nothing: it is how the agent learns when to activate the plugin anew.
        """
        ...
