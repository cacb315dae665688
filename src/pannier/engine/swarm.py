"""Docker Swarm through the engine's API: what its managers know, and changes of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from pannier.core.errors import Conflict, EngineUnavailable, Stale
from pannier.core.swarm import Availability, SwarmMember, SwarmNode, SwarmService
from pannier.engine.connection import Connection

T = TypeVar("T")
# The engine gives these two no status of their own, and no code: only words.
_NO_MANAGER = "is not a swarm manager"
_OUT_OF_DATE = "out of sequence"


class _Own(msgspec.Struct, frozen=True, rename="pascal"):
    """``Swarm`` of ``GET /info``."""

    node_id: str = msgspec.field(name="NodeID", default="")
    local_node_state: str = "inactive"
    control_available: bool = False


class _Info(msgspec.Struct, frozen=True, rename="pascal"):
    swarm: _Own = _Own()


class _Version(msgspec.Struct, frozen=True, rename="pascal"):
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


class _Description(msgspec.Struct, frozen=True, rename="pascal"):
    hostname: str = ""
    platform: _Platform = _Platform()
    engine: _EngineDescription = _EngineDescription()


class _Status(msgspec.Struct, frozen=True, rename="pascal"):
    state: str


class _ManagerStatus(msgspec.Struct, frozen=True, rename="pascal"):
    leader: bool = False


class _Node(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /nodes``."""

    id: str = msgspec.field(name="ID")
    version: _Version
    spec: _NodeSpec
    status: _Status
    description: _Description = _Description()
    manager_status: _ManagerStatus | None = None


class _RawNode(msgspec.Struct, frozen=True, rename="pascal"):
    """The same, its spec as it is: whoever changes it must send all of it back."""

    version: _Version
    spec: dict[str, Any]


class _Driver(msgspec.Struct, frozen=True, rename="pascal"):
    name: str = ""


class _VolumeOptions(msgspec.Struct, frozen=True, rename="pascal"):
    driver_config: _Driver | None = None


class _Mount(msgspec.Struct, frozen=True, rename="pascal"):
    type: str = ""
    source: str = ""
    volume_options: _VolumeOptions | None = None


class _ContainerSpec(msgspec.Struct, frozen=True, rename="pascal"):
    mounts: list[_Mount] | None = None


class _Placement(msgspec.Struct, frozen=True, rename="pascal"):
    constraints: list[str] | None = None


class _TaskTemplate(msgspec.Struct, frozen=True, rename="pascal"):
    container_spec: _ContainerSpec | None = None
    placement: _Placement | None = None


class _ServiceSpec(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    task_template: _TaskTemplate


class _Service(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /services``."""

    spec: _ServiceSpec


class DockerSwarm:
    """Implements :class:`~pannier.engine.base.Swarm`.

    Args:
        plugin: the name of our volume plugin.
        timeout_seconds: for each call. While the Swarm has no leader the engine answers none.
    """

    def __init__(self, connection: Connection, *, plugin: str, timeout_seconds: float) -> None:
        self._connection = connection
        self._plugin = plugin
        self._timeout_seconds = timeout_seconds

    async def member(self) -> SwarmMember | None:
        """See :class:`~pannier.engine.base.Swarm`."""
        info = await self._get("/info", _Info)
        own = info.swarm if info else _Own()
        if own.local_node_state == "inactive":
            return None
        if not own.node_id:
            raise self._connection.unavailable(f"has a Swarm that is {own.local_node_state}")
        return SwarmMember(own.node_id, own.control_available)

    async def nodes(self) -> list[SwarmNode]:
        """See :class:`~pannier.engine.base.Swarm`."""
        return [_swarm_node(node) for node in await self._get("/nodes", list[_Node]) or []]

    async def services(self) -> list[SwarmService]:
        """See :class:`~pannier.engine.base.Swarm`."""
        return [self._service(one) for one in await self._get("/services", list[_Service]) or []]

    async def update_node(
        self,
        node: SwarmNode,
        *,
        availability: Availability | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """See :class:`~pannier.engine.base.Swarm`."""
        path = f"/nodes/{quote(node.id, safe='')}"
        raw = await self._get(path, _RawNode)
        if raw is None or raw.version.index != node.version:
            raise _stale(node)
        spec = dict(raw.spec)
        if availability is not None:
            spec["Availability"] = str(availability)
        if labels is not None:
            spec["Labels"] = dict(labels)
        try:
            await self._connection.post(
                f"{path}/update",
                spec,
                timeout_seconds=self._timeout_seconds,
                version=str(node.version),
            )
        except EngineUnavailable as error:
            if _OUT_OF_DATE in error.message:
                raise _stale(node) from error
            raise

    async def _get(self, path: str, kind: type[T]) -> T | None:
        try:
            return await self._connection.get(path, kind, timeout_seconds=self._timeout_seconds)
        except EngineUnavailable as error:
            if _NO_MANAGER not in error.message:
                raise
            raise Conflict(
                "the Docker engine of this node is no Swarm manager",
                remedy="ask at a manager: docker node ls shows them",
            ) from error

    def _service(self, found: _Service) -> SwarmService:
        task = found.spec.task_template
        mounts = (task.container_spec.mounts if task.container_spec else None) or []
        return SwarmService(
            name=found.spec.name,
            constraints=tuple((task.placement.constraints if task.placement else None) or ()),
            volumes=tuple(mount.source for mount in mounts if self._is_ours(mount)),
        )

    def _is_ours(self, mount: _Mount) -> bool:
        driver = mount.volume_options.driver_config if mount.volume_options else None
        named = driver is not None and driver.name == self._plugin
        return mount.type == "volume" and bool(mount.source) and named


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
    )


def _stale(node: SwarmNode) -> Stale:
    return Stale(
        f"node {node.hostname} was changed in the Swarm since it was looked at",
        remedy="look again, and decide again",
    )
