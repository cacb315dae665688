"""The Engine protocol, and that of the Swarm which the engine may belong to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pannier.core.service_spec import Spec
from pannier.core.swarm import (
    Availability,
    ServiceMount,
    SwarmMember,
    SwarmNode,
    SwarmService,
    SwarmTask,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container. Messages name it by ``str()``; ``service`` is the Swarm service's name, if any."""

    id: str
    name: str
    service: str | None
    running: bool
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.name} (service {self.service})" if self.service else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine runs containers with.

    Attributes:
        runtimes: path or name of each registered runtime, by the name that Docker has for it.
        runc, libseccomp: versions; None where the engine does not report them. Engines before 25.0
            do not report libseccomp's.
    """

    version: str
    kernel: str
    default_runtime: str
    runtimes: Mapping[str, str]
    runc: str | None
    libseccomp: str | None


@dataclass(frozen=True, slots=True)
class LocalVolume:
    """A volume of the engine's own driver.

    Attributes:
        folder: the directory with its content, on this machine.
        plain: it was made without options. One with options may be a mount of something else.
    """

    name: str
    folder: Path
    plain: bool


@dataclass(frozen=True, slots=True)
class Executed:
    """How a command in a container ended.

    Attributes:
        status: its exit status; None where it was ended at its time limit.
        output: the end of what it printed, on both streams.
    """

    status: int | None
    output: str


class Swarm(Protocol):
    """The Swarm that an engine belongs to, as that engine reports it.

    Raises:
        EngineUnavailable: every method, if the engine does not answer or refuses the call; all but
            ``member`` also, after some seconds, while the Swarm has no leader.
        Conflict: every method but ``member``, if the engine is no Swarm manager.
    """

    async def member(self) -> SwarmMember | None:
        """This engine's own place in a Swarm; None where it is in none.

        Raises:
            EngineUnavailable: also if the engine cannot tell its place, such as before the key of a
                locked Swarm is given.
        """
        ...

    async def nodes(self) -> list[SwarmNode]:
        """All nodes of the Swarm, as its leader knows them."""
        ...

    async def update_node(
        self,
        node: SwarmNode,
        *,
        availability: Availability | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Change a node; what is not given stays. ``labels`` are all that it is to have.

        With nothing to change it still gets a new version: changes that were decided before fail then.

        Raises:
            Stale: it was changed since it was read, or is gone; nothing was changed.
            OutcomeUnknown: it was asked for and no answer came; it may have been done.
        """
        ...

    async def services(self) -> list[SwarmService]:
        """All services of the Swarm."""
        ...

    async def update_service(
        self,
        service: SwarmService,
        *,
        constraints: Sequence[str],
        labels: Mapping[str, str],
    ) -> None:
        """Give a service these constraints and labels of its own, and no others.

        A task on a node that the constraints forbid is ended, and another one is started on a node that
        they allow. A task on a node that they allow goes on.

        Raises:
            Stale: it was changed since it was read, or is gone; nothing was changed.
            OutcomeUnknown: it was asked for and no answer came; it may have been done.
        """
        ...

    async def scale_service(
        self, service: SwarmService, *, replicas: int, labels: Mapping[str, str]
    ) -> None:
        """Give a replicated service so many tasks, and these labels of its own, and no others.

        Raises:
            Stale: it was changed since it was read, or is gone; nothing was changed.
            OutcomeUnknown: it was asked for and no answer came; it may have been done.
        """
        ...

    async def spec(self, service: SwarmService) -> Spec:
        """All that a service was asked to be, as the engine's API has it.

        Raises:
            Stale: it was changed since it was read, or is gone.
        """
        ...

    async def replace_service(self, service: SwarmService, spec: Spec) -> None:
        """Make a service what a spec says, all of it. Tasks that no longer fit are ended.

        Raises:
            Stale: it was changed since it was read, or is gone; nothing was changed.
            OutcomeUnknown: it was asked for and no answer came; it may have been done.
        """
        ...

    async def tasks(self, *, service: str | None = None) -> list[SwarmTask]:
        """The tasks of all services, or of the one of that id; some that have ended are among them."""
        ...

    def service_changes(self) -> AsyncIterator[None]:
        """Yields when a service was made, changed or removed, and each time this engine has come up.

        Never ends, and raises nothing. Some changes may be missed, also all of them where this engine is no Swarm manager.
        """
        ...


class Engine(Protocol):
    """One node's container engine.

    Raises:
        EngineUnavailable: every method but ``starts``, if the engine does not answer or refuses the
            call. ``swarm`` and ``starts`` raise nothing.
    """

    @property
    def swarm(self) -> Swarm:
        """The Swarm that it may belong to."""
        ...

    async def activate_plugin(self) -> None:
        """Make the engine look at our plugin socket, so that Swarm schedules onto this node.

        Raises:
            EngineUnavailable: also if the engine does not list the plugin afterwards.
        """
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

    async def declared_mounts(self) -> list[ServiceMount]:
        """What this engine's containers, running or not, say of volumes that they name with our driver.

        Those of Swarm services are left out: their services say it. So is one that just starts or ends, and does not
        answer within the time of a call.
        """
        ...

    async def containers_of(self, service: str) -> list[Container]:
        """Containers, running or not, of this engine that belong to a Swarm service of that name."""
        ...

    async def execute(self, container_id: str, command: str, *, timeout_seconds: float) -> Executed:
        """Run ``command`` with the container's own ``sh``, as the container's user.

        At the time limit the command is killed with its children, and so it is if the caller is
        cancelled.

        Raises:
            EngineUnavailable: also if the container does not run or has no ``sh``, or if the connection
                breaks while the command runs.
            OutcomeUnknown: the engine did not answer when the command was prepared; it was not begun.
        """
        ...

    async def other_volumes(self) -> list[str]:
        """Names of the engine's volumes of other drivers.

        One of these hides ours of the same name: ``docker run -v NAME:/path`` takes the other.
        """
        ...

    async def local_volumes(self) -> list[LocalVolume]:
        """The volumes of the engine's own driver, by name. No plugin is asked for this."""
        ...

    async def remove_volume(self, name: str) -> bool:
        """Remove the volume that the engine takes for this name, of whatever driver.

        Returns:
            Whether it is gone; False where a container, running or not, has it.

        Raises:
            EngineUnavailable: also if the volume's driver refuses.
            OutcomeUnknown: no answer came; it may be gone.
        """
        ...

    async def version(self) -> str:
        """The engine's version, such as ``20.10.24``."""
        ...

    async def facts(self) -> EngineFacts:
        """What the engine runs containers with."""
        ...

    def starts(self) -> AsyncIterator[None]:
        """Yields at once if the engine is up, and again each time it has come back up.

        Never ends. It is how the agent learns when to activate the plugin again.
        """
        ...
