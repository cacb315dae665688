"""Docker Swarm through the engine's API: what its managers know, and changes of nodes and services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from pannier.core.errors import Conflict, EngineUnavailable, Stale
from pannier.core.service_spec import Spec
from pannier.core.swarm import (
    Availability,
    Resources,
    ServiceMount,
    SwarmMember,
    SwarmNode,
    SwarmService,
    SwarmTask,
)
from pannier.engine.connection import EngineConnection, as_filters

T = TypeVar("T")
# The engine gives these two errors no status and no code of their own: only the message tells.
_NO_MANAGER = "is not a swarm manager"
_OUT_OF_DATE = "out of sequence"


class _Peer(msgspec.Struct, frozen=True, rename="pascal"):
    node_id: str = msgspec.field(name="NodeID", default="")


class _Own(msgspec.Struct, frozen=True, rename="pascal"):
    """``Swarm`` of ``GET /info``."""

    node_id: str = msgspec.field(name="NodeID", default="")
    local_node_state: str = "inactive"
    control_available: bool = False
    remote_managers: list[_Peer] | None = None


class _SwarmInfo(msgspec.Struct, frozen=True, rename="pascal"):
    swarm: _Own = _Own()


class _ObjectVersion(msgspec.Struct, frozen=True, rename="pascal"):
    index: int


class _NodeSpec(msgspec.Struct, frozen=True, rename="pascal"):
    availability: Availability
    role: str
    labels: dict[str, str] | None = None


class _Platform(msgspec.Struct, frozen=True, rename="pascal"):
    architecture: str = ""
    os: str = msgspec.field(name="OS", default="")


class _EngineDescription(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class _Resources(msgspec.Struct, frozen=True, rename="pascal"):
    nano_cpus: int = msgspec.field(name="NanoCPUs", default=0)
    memory_bytes: int = 0

    def counted(self) -> Resources:
        return Resources(self.nano_cpus, self.memory_bytes)


class _Description(msgspec.Struct, frozen=True, rename="pascal"):
    hostname: str = ""
    resources: _Resources | None = None
    platform: _Platform = _Platform()
    engine: _EngineDescription = _EngineDescription()


class _Status(msgspec.Struct, frozen=True, rename="pascal"):
    state: str


class _ManagerStatus(msgspec.Struct, frozen=True, rename="pascal"):
    leader: bool = False


class _Node(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /nodes``."""

    id: str = msgspec.field(name="ID")
    version: _ObjectVersion
    spec: _NodeSpec
    status: _Status
    description: _Description = _Description()
    manager_status: _ManagerStatus | None = None


class _Raw(msgspec.Struct, frozen=True, rename="pascal"):
    """A node or service with its whole spec: a change must send all of it back."""

    version: _ObjectVersion
    spec: dict[str, Any]


class _Driver(msgspec.Struct, frozen=True, rename="pascal"):
    name: str = ""
    options: dict[str, str] | None = None


class _VolumeOptions(msgspec.Struct, frozen=True, rename="pascal"):
    driver_config: _Driver | None = None


class SpecMount(msgspec.Struct, frozen=True, rename="pascal"):
    """A mount as ``--mount`` says it, in a service's spec and in a container's ``HostConfig``."""

    type: str = ""
    source: str = ""
    volume_options: _VolumeOptions | None = None

    @property
    def driver(self) -> _Driver:
        """The volume's, as far as it is named."""
        found = self.volume_options.driver_config if self.volume_options else None
        return found or _Driver()

    def told(self) -> ServiceMount:
        """What it says of a volume."""
        return ServiceMount(
            source=self.source,
            driverless=not self.driver.name,
            options=self.driver.options or {},
        )


class _ContainerSpec(msgspec.Struct, frozen=True, rename="pascal"):
    mounts: list[SpecMount] | None = None
    labels: dict[str, str] | None = None


class _Placement(msgspec.Struct, frozen=True, rename="pascal"):
    constraints: list[str] | None = None


class _Requirements(msgspec.Struct, frozen=True, rename="pascal"):
    reservations: _Resources | None = None


class _TaskTemplate(msgspec.Struct, frozen=True, rename="pascal"):
    resources: _Requirements | None = None
    container_spec: _ContainerSpec | None = None
    placement: _Placement | None = None

    def reserved(self) -> Resources:
        found = self.resources.reservations if self.resources else None
        return found.counted() if found else Resources()


class _Port(msgspec.Struct, frozen=True, rename="pascal"):
    protocol: str = "tcp"
    published_port: int = 0
    publish_mode: str = "ingress"


class _EndpointSpec(msgspec.Struct, frozen=True, rename="pascal"):
    ports: list[_Port] | None = None


class _Replicated(msgspec.Struct, frozen=True, rename="pascal"):
    replicas: int | None = None


class _Mode(msgspec.Struct, frozen=True, rename="pascal"):
    """Exactly one of them is set."""

    replicated: _Replicated | None = None
    global_: dict[str, Any] | None = msgspec.field(name="Global", default=None)
    replicated_job: dict[str, Any] | None = None
    global_job: dict[str, Any] | None = None

    @property
    def word(self) -> str:
        for mode, word in (
            (self.global_, "global"),
            (self.replicated_job, "replicated job"),
            (self.global_job, "global job"),
        ):
            if mode is not None:
                return word
        return "replicated"

    @property
    def replicas(self) -> int:
        found = self.replicated.replicas if self.replicated else None
        return 1 if found is None else found


class _UpdateConfig(msgspec.Struct, frozen=True, rename="pascal"):
    order: str = "stop-first"


class _ServiceSpec(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    task_template: _TaskTemplate
    labels: dict[str, str] | None = None
    mode: _Mode = _Mode()
    update_config: _UpdateConfig | None = None
    endpoint_spec: _EndpointSpec | None = None


class _UpdateStatus(msgspec.Struct, frozen=True, rename="pascal"):
    state: str = ""


class _Service(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /services``."""

    id: str = msgspec.field(name="ID")
    version: _ObjectVersion
    spec: _ServiceSpec
    update_status: _UpdateStatus | None = None


class _ContainerStatus(msgspec.Struct, frozen=True, rename="pascal"):
    container_id: str = msgspec.field(name="ContainerID", default="")


class _TaskStatus(msgspec.Struct, frozen=True, rename="pascal"):
    state: str = ""
    message: str = ""
    err: str = ""
    container_status: _ContainerStatus | None = None


class _Task(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /tasks``."""

    id: str = msgspec.field(name="ID")
    service_id: str = msgspec.field(name="ServiceID", default="")
    slot: int = 0
    node_id: str = msgspec.field(name="NodeID", default="")
    status: _TaskStatus = _TaskStatus()
    desired_state: str = ""
    spec: _TaskTemplate = _TaskTemplate()


class DockerSwarm:
    """Implements :class:`~pannier.engine.base.Swarm`.

    Args:
        plugin: the name of our volume plugin.
        timeout_seconds: for each call. Without a leader of the Swarm the engine does not answer.
        retry_seconds: between two attempts to reach the engine again.
    """

    def __init__(
        self,
        connection: EngineConnection,
        *,
        plugin: str,
        timeout_seconds: float,
        retry_seconds: float,
    ) -> None:
        self._connection = connection
        self._plugin = plugin
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds

    async def member(self) -> SwarmMember | None:
        """See :class:`~pannier.engine.base.Swarm`."""
        info = await self._get("/info", _SwarmInfo)
        own = info.swarm if info else _Own()
        if own.local_node_state == "inactive":
            return None
        if not own.node_id:
            raise self._connection.unavailable(f"has a Swarm that is {own.local_node_state}")
        managers = tuple(peer.node_id for peer in own.remote_managers or [])
        return SwarmMember(own.node_id, own.control_available, managers)

    async def nodes(self) -> list[SwarmNode]:
        """See :class:`~pannier.engine.base.Swarm`."""
        return [_swarm_node(node) for node in await self._get("/nodes", list[_Node]) or []]

    async def services(self) -> list[SwarmService]:
        """See :class:`~pannier.engine.base.Swarm`."""
        return [self._service(one) for one in await self._get("/services", list[_Service]) or []]

    async def tasks(self, *, service: str | None = None) -> list[SwarmTask]:
        """See :class:`~pannier.engine.base.Swarm`."""
        query = {} if service is None else {"filters": as_filters({"service": [service]})}
        return [_swarm_task(one) for one in await self._get("/tasks", list[_Task], **query) or []]

    async def update_node(
        self,
        node: SwarmNode,
        *,
        availability: Availability | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See :class:`~pannier.engine.base.Swarm`."""
        stale = _stale(f"node {node.hostname}")
        path = f"/nodes/{quote(node.id, safe='')}"
        spec = await self._spec(path, node.version, stale)
        if availability is not None:
            spec["Availability"] = str(availability)
        if labels is not None:
            spec["Labels"] = dict(labels)
        await self._update(path, spec, node.version, stale)

    async def update_service(
        self,
        service: SwarmService,
        *,
        constraints: Sequence[str],
        labels: Mapping[str, str],
    ) -> None:
        """See :class:`~pannier.engine.base.Swarm`."""
        spec = dict(await self.spec(service))
        task = dict(spec["TaskTemplate"])
        task["Placement"] = {**(task.get("Placement") or {}), "Constraints": list(constraints)}
        spec |= {"TaskTemplate": task, "Labels": dict(labels)}
        await self.replace_service(service, spec)

    async def spec(self, service: SwarmService) -> Spec:
        """See :class:`~pannier.engine.base.Swarm`."""
        stale = _stale(f"service {service.name}")
        return await self._spec(_path(service), service.version, stale)

    async def replace_service(self, service: SwarmService, spec: Spec) -> None:
        """See :class:`~pannier.engine.base.Swarm`."""
        stale = _stale(f"service {service.name}")
        await self._update(_path(service), dict(spec), service.version, stale)

    async def scale_service(
        self, service: SwarmService, *, replicas: int, labels: Mapping[str, str]
    ) -> None:
        """See :class:`~pannier.engine.base.Swarm`."""
        spec = dict(await self.spec(service))
        spec |= {"Mode": {"Replicated": {"Replicas": replicas}}, "Labels": dict(labels)}
        await self.replace_service(service, spec)

    async def service_changes(self) -> AsyncIterator[None]:
        """See :class:`~pannier.engine.base.Swarm`."""
        async for _ in self._connection.events(
            "service", retry_seconds=self._retry_seconds, timeout_seconds=self._timeout_seconds
        ):
            yield

    async def _spec(self, path: str, version: int, stale: Stale) -> dict[str, Any]:
        """The spec of a node or service that still has that version."""
        raw = await self._get(path, _Raw)
        if raw is None or raw.version.index != version:
            raise stale
        return dict(raw.spec)

    async def _update(self, path: str, spec: dict[str, Any], version: int, stale: Stale) -> None:
        try:
            await self._connection.post(
                f"{path}/update",
                spec,
                timeout_seconds=self._timeout_seconds,
                version=str(version),
            )
        except EngineUnavailable as error:
            if _OUT_OF_DATE in error.message:
                raise stale from error
            raise

    async def _get(self, path: str, kind: type[T], **query: str) -> T | None:
        try:
            return await self._connection.get(
                path, kind, timeout_seconds=self._timeout_seconds, **query
            )
        except EngineUnavailable as error:
            if _NO_MANAGER not in error.message:
                raise
            raise Conflict(
                "the Docker engine of this node is no Swarm manager",
                remedy="ask at a manager: docker node ls shows them",
            ) from error

    def _service(self, found: _Service) -> SwarmService:
        spec, task = found.spec, found.spec.task_template
        container = task.container_spec or _ContainerSpec()
        mounts = [each for each in container.mounts or [] if each.type == "volume" and each.source]
        ports = (spec.endpoint_spec.ports if spec.endpoint_spec else None) or ()
        return SwarmService(
            id=found.id,
            name=spec.name,
            version=found.version.index,
            constraints=tuple((task.placement.constraints if task.placement else None) or ()),
            mounts=tuple(each.told() for each in mounts if each.driver.name in ("", self._plugin)),
            mode=spec.mode.word,
            replicas=spec.mode.replicas,
            order=spec.update_config.order if spec.update_config else "stop-first",
            labels=spec.labels or {},
            container_labels=container.labels or {},
            update=found.update_status.state if found.update_status else "",
            reserved=task.reserved(),
            host_ports=tuple(
                f"{port.published_port}/{port.protocol}"
                for port in ports
                if port.publish_mode == "host" and port.published_port
            ),
        )


def _swarm_task(found: _Task) -> SwarmTask:
    status = found.status.container_status
    return SwarmTask(
        id=found.id,
        service=found.service_id,
        node=found.node_id,
        state=found.status.state,
        wanted=found.desired_state in ("ready", "running"),
        slot=found.slot,
        container=status.container_id or None if status else None,
        message=found.status.err or found.status.message,
        reserved=found.spec.reserved(),
    )


def _swarm_node(found: _Node) -> SwarmNode:
    return SwarmNode(
        id=found.id,
        hostname=found.description.hostname,
        state=found.status.state,
        availability=found.spec.availability,
        role=found.spec.role,
        version=found.version.index,
        leader=found.manager_status is not None and found.manager_status.leader,
        labels=found.spec.labels or {},
        engine_labels=found.description.engine.labels or {},
        os=found.description.platform.os,
        arch=found.description.platform.architecture,
        resources=found.description.resources.counted() if found.description.resources else None,
    )


def _path(service: SwarmService) -> str:
    return f"/services/{quote(service.id, safe='')}"


def _stale(what: str) -> Stale:
    return Stale(
        f"{what} was changed in the Swarm since it was looked at",
        remedy="look again, and decide again",
    )
