"""An engine in memory, for tests. It passes the same contract suite as the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pannier.core.errors import Conflict, EngineUnavailable, Stale
from pannier.core.service_spec import Spec
from pannier.core.swarm import (
    Availability,
    ServiceMount,
    SwarmMember,
    SwarmNode,
    SwarmService,
    SwarmTask,
)
from pannier.engine.base import Container, EngineFacts, Executed, LocalVolume


class FakeSwarmData:
    """A Swarm, shared by the engines of all its nodes.

    Attributes:
        has_leader: without one no manager answers.
        nodes: by id.
        tasks: of all services; what happens to them is a test's affair.
        writes: every node that was changed through an engine, as it was then, in order.
        deployed: notified when a test has changed ``services`` through :meth:`deploy`.
    """

    def __init__(self) -> None:
        self.has_leader = True
        self.nodes: dict[str, SwarmNode] = {}
        self.services: list[SwarmService] = []
        self.tasks: list[SwarmTask] = []
        self.writes: list[SwarmNode] = []
        self.deployed = asyncio.Condition()

    def put(self, node: SwarmNode) -> None:
        """Add a node, or change one as Swarm itself or a person does: with a new version."""
        last = max((one.version for one in self.nodes.values()), default=0)
        self.nodes[node.id] = replace(node, version=last + 1)

    async def deploy(self, *services: SwarmService) -> None:
        """Make these all the services that there are, and tell it."""
        async with self.deployed:
            self.services = list(services)
            self.deployed.notify_all()


class FakeSwarm:
    """Implements :class:`~pannier.engine.base.Swarm` for the engine whose Swarm node id is ``node``.

    Attributes:
        data: the Swarm; None while the engine is in none.
    """

    def __init__(self, data: FakeSwarmData | None = None, *, node: str = "") -> None:
        self.data = data
        self.node = node
        self.up = True

    async def member(self) -> SwarmMember | None:
        self._check()
        if self.data is None:
            return None
        managers = tuple(n.id for n in self.data.nodes.values() if n.role == "manager")
        return SwarmMember(self.node, self.node in managers, managers)

    async def nodes(self) -> list[SwarmNode]:
        return list(self._swarm().nodes.values())

    async def update_node(
        self,
        node: SwarmNode,
        *,
        availability: Availability | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        swarm = self._swarm()
        present = swarm.nodes.get(node.id)
        if present is None or present.version != node.version:
            raise Stale("the fake node was changed", remedy="look again")
        changed = replace(
            present,
            availability=present.availability if availability is None else availability,
            labels=present.labels if labels is None else dict(labels),
        )
        swarm.put(changed)
        swarm.writes.append(swarm.nodes[node.id])

    async def services(self) -> list[SwarmService]:
        return list(self._swarm().services)

    async def update_service(
        self,
        service: SwarmService,
        *,
        constraints: Sequence[str],
        labels: Mapping[str, str],
    ) -> None:
        self._change(service, constraints=tuple(constraints), labels=dict(labels))

    async def scale_service(
        self, service: SwarmService, *, replicas: int, labels: Mapping[str, str]
    ) -> None:
        self._change(service, replicas=replicas, labels=dict(labels))

    def _change(self, service: SwarmService, **fields: Any) -> None:
        present, services = self._present(service), self._swarm().services
        changed = replace(present, version=present.version + 1, **fields)
        services[services.index(present)] = changed

    async def spec(self, service: SwarmService) -> Spec:
        """Its tasks and mounts, as far as a SwarmService has them."""
        present = self._present(service)
        mounts = [_spec_mount(each) for each in present.mounts]
        return {
            "Name": present.name,
            "Mode": {"Replicated": {"Replicas": present.replicas}},
            "TaskTemplate": {"ContainerSpec": {"Mounts": mounts}},
        }

    async def replace_service(self, service: SwarmService, spec: Spec) -> None:
        self._change(
            service,
            replicas=spec["Mode"]["Replicated"]["Replicas"],
            mounts=tuple(map(_mount, spec["TaskTemplate"]["ContainerSpec"]["Mounts"])),
        )

    def _present(self, service: SwarmService) -> SwarmService:
        found = next((one for one in self._swarm().services if one.id == service.id), None)
        if found is None or found.version != service.version:
            raise Stale("the fake service was changed", remedy="look again")
        return found

    async def tasks(self, *, service: str | None = None) -> list[SwarmTask]:
        return [one for one in self._swarm().tasks if service in (None, one.service)]

    async def service_changes(self) -> AsyncIterator[None]:
        yield
        while True:
            if self.data is None:
                await asyncio.sleep(1.0)
                continue
            async with self.data.deployed:
                await self.data.deployed.wait()
            yield

    def _check(self) -> None:
        if not self.up:
            raise EngineUnavailable("the fake engine is down", remedy="start it")

    def _swarm(self) -> FakeSwarmData:
        self._check()
        if self.data is None or self.data.nodes[self.node].role != "manager":
            raise Conflict("the fake engine is no Swarm manager", remedy="make it one")
        if not self.data.has_leader:
            raise EngineUnavailable("the fake Swarm has no leader", remedy="wait")
        return self.data


def _spec_mount(mount: ServiceMount) -> dict[str, Any]:
    config: dict[str, Any] = {} if mount.driverless else {"Name": "pannier"}
    if mount.options:
        config["Options"] = dict(mount.options)
    return {"Type": "volume", "Source": mount.source, "VolumeOptions": {"DriverConfig": config}}


def _mount(found: dict[str, Any]) -> ServiceMount:
    config = found["VolumeOptions"]["DriverConfig"]
    return ServiceMount(
        source=found["Source"],
        driverless=not config.get("Name"),
        options=config.get("Options", {}),
    )


class FakeEngine:
    """Implements :class:`~pannier.engine.base.Engine`.

    Attributes:
        plugin_answers: whether an activation finds our plugin.
        activations: how often the plugin was activated, over all starts.
        local: volumes of its own driver, by name.
        commands: how each command ends, for all containers; one that is not in it never ends.
        executed: container and command of each execution that was begun.
        declared: what its containers say of volumes.
        swarm: its place in a Swarm; none at first.
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
        self.local: dict[str, LocalVolume] = {}
        self.commands: dict[str, Executed] = {}
        self.executed: list[tuple[str, str]] = []
        self.declared: list[ServiceMount] = []
        self.swarm = FakeSwarm()

    # --- what a test does to it ------------------------------------------------------------------

    def put(self, container: Container, *, volumes: tuple[str, ...] = ()) -> None:
        """Add a container, or replace the one of the same id."""
        self._containers[container.id] = (container, frozenset(volumes))

    def take(self, container_id: str) -> None:
        """Remove a container."""
        del self._containers[container_id]

    async def stop(self) -> None:
        """The engine goes down; like the real one, it forgets that the plugin was active."""
        self._up = self._active = self.swarm.up = False
        async with self._changed:
            self._changed.notify_all()

    async def start(self) -> None:
        """The engine comes up again."""
        if not self._up:
            self._up = self.swarm.up = True
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

    async def declared_mounts(self) -> list[ServiceMount]:
        self._check()
        return list(self.declared)

    async def containers_of(self, service: str) -> list[Container]:
        self._check()
        found = [item for item, _ in self._containers.values()]
        return [item for item in found if item.service == service]

    async def execute(self, container_id: str, command: str, *, timeout_seconds: float) -> Executed:
        found = await self.container(container_id)
        if found is None or not found.running:
            raise EngineUnavailable("the fake container does not run", remedy="start it")
        self.executed.append((container_id, command))
        if command in self.commands:
            return self.commands[command]
        await asyncio.sleep(timeout_seconds)
        return Executed(None, "")

    async def other_volumes(self) -> list[str]:
        self._check()
        return sorted(self.local)

    async def local_volumes(self) -> list[LocalVolume]:
        self._check()
        return [self.local[name] for name in sorted(self.local)]

    async def remove_volume(self, name: str) -> bool:
        if await self.containers_using(name):
            return False
        self.local.pop(name, None)
        return True

    async def version(self) -> str:
        self._check()
        return self._version

    async def facts(self) -> EngineFacts:
        self._check()
        return EngineFacts(
            version=self._version,
            kernel="6.1.0",
            default_runtime="runc",
            runtimes={"runc": "runc"},
            runc="1.1.5",
            libseccomp=None,
        )

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
