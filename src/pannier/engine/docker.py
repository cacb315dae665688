"""The Docker engine through its API on a unix socket, from Docker 20.10 on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from pannier.core.errors import EngineUnavailable
from pannier.core.swarm import ServiceMount
from pannier.engine.base import Container, EngineFacts, Executed, LocalVolume
from pannier.engine.connection import EngineConnection, as_filters
from pannier.engine.execution import Execution
from pannier.engine.swarm import DockerSwarm, SpecMount

DEFAULT_SOCKET = Path("/var/run/docker.sock")
_OWN_DRIVER = "local"
_SERVICE_LABEL = "com.docker.swarm.service.name"
# A paused container keeps its volume; one that restarts is about to take it again.
_RUNNING = ("running", "paused", "restarting")
_FEATURES = "org.opencontainers.runtime-spec.features"
_LIBSECCOMP = "io.github.seccomp.libseccomp.version"


class _MountPoint(msgspec.Struct, frozen=True, rename="pascal"):
    type: str = ""
    name: str = ""
    driver: str = ""


class _Listed(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of ``GET /containers/json``."""

    id: str
    names: list[str] | None = None
    labels: dict[str, str] | None = None
    state: str = ""
    mounts: list[_MountPoint] | None = None


class _Config(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class _ContainerState(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool = False


class _HostConfig(msgspec.Struct, frozen=True, rename="pascal"):
    mounts: list[SpecMount] | None = None


class _Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    """``GET /containers/ID/json``."""

    id: str
    name: str
    config: _Config
    state: _ContainerState
    host_config: _HostConfig = _HostConfig()


class _Plugins(msgspec.Struct, frozen=True, rename="pascal"):
    volume: list[str] | None = None


class _Runtime(msgspec.Struct, frozen=True):
    """``status`` is what newer engines have learnt from the runtime itself: JSON texts by name."""

    path: str = ""
    status: dict[str, str] | None = None


class _Info(msgspec.Struct, frozen=True, rename="pascal"):
    plugins: _Plugins
    default_runtime: str = ""
    runtimes: dict[str, _Runtime] | None = None
    kernel_version: str = ""


class _Features(msgspec.Struct, frozen=True):
    """What ``runc features`` prints, as far as we need it."""

    annotations: dict[str, str] = {}


class _Volume(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    driver: str
    mountpoint: str = ""
    options: dict[str, str] | None = None


class _Volumes(msgspec.Struct, frozen=True, rename="pascal"):
    volumes: list[_Volume] | None = None


class _Component(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    version: str = ""


class _Version(msgspec.Struct, frozen=True, rename="pascal"):
    version: str
    components: list[_Component] | None = None


T = TypeVar("T")


class DockerEngine:
    """Implements :class:`~pannier.engine.base.Engine`. To be used in one event loop, then closed.

    Args:
        socket: where dockerd listens.
        plugin: the name of our plugin, which is that of its socket file.
        timeout_seconds: for each other call. The engine answers these from memory.
        swarm_seconds: for each call about its Swarm. Without a leader such a call blocks.
        activate_seconds: for the activation, in which the engine calls our plugin.
        retry_seconds: between two attempts to reach the engine again.
    """

    def __init__(
        self,
        socket: Path = DEFAULT_SOCKET,
        *,
        plugin: str = "pannier",
        timeout_seconds: float = 5.0,
        swarm_seconds: float = 3.0,
        activate_seconds: float = 20.0,
        retry_seconds: float = 1.0,
    ) -> None:
        self._connection = EngineConnection(socket)
        self._plugin = plugin
        self._timeout_seconds = timeout_seconds
        self._activate_seconds = activate_seconds
        self._retry_seconds = retry_seconds
        self.swarm = DockerSwarm(
            self._connection,
            plugin=plugin,
            timeout_seconds=swarm_seconds,
            retry_seconds=retry_seconds,
        )

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        await self._connection.close()

    async def activate_plugin(self) -> None:
        """See :class:`~pannier.engine.base.Engine`.

        A listing restricted to one driver makes the engine look for that driver alone, so that
        another plugin that is dead does not hold it up for 15 s.
        """
        await self._connection.get(
            "/volumes",
            Any,
            filters=as_filters({"driver": [self._plugin]}),
            timeout_seconds=self._activate_seconds,
        )
        if not await self.plugin_active():
            raise EngineUnavailable(
                f"Docker was asked for its {self._plugin} volumes and still does not list the plugin",
                remedy=f"see that /run/docker/plugins/{self._plugin}.sock exists"
                " (systemctl status pannierd.socket), and journalctl -u docker",
            )

    async def plugin_active(self) -> bool:
        """See :class:`~pannier.engine.base.Engine`."""
        return self._plugin in ((await self._info()).plugins.volume or [])

    async def containers_using(self, volume: str) -> list[Container]:
        """See :class:`~pannier.engine.base.Engine`."""
        query = as_filters({"volume": [volume]})
        listed = await self._get("/containers/json", list[_Listed], filters=query, all="1")
        return [_container(item) for item in listed or [] if self._mounts(item, volume)]

    async def container(self, container_id: str) -> Container | None:
        """See :class:`~pannier.engine.base.Engine`.

        The engine does not answer this while it starts or removes that very container.
        """
        found = await self._get(f"/containers/{quote(container_id, safe='')}/json", _Inspected)
        if found is None:
            return None
        return Container(
            id=found.id,
            name=found.name.lstrip("/"),
            service=(found.config.labels or {}).get(_SERVICE_LABEL),
            running=found.state.running,
            labels=found.config.labels or {},
        )

    async def declared_mounts(self) -> list[ServiceMount]:
        """See :class:`~pannier.engine.base.Engine`."""
        listed = await self._get("/containers/json", list[_Listed], all="1")
        found = list[ServiceMount]()
        for item in listed or []:
            ours = any(mount.driver == self._plugin for mount in item.mounts or [])
            if not ours or _SERVICE_LABEL in (item.labels or {}):
                continue
            with contextlib.suppress(EngineUnavailable):
                asked = await self._get(f"/containers/{quote(item.id, safe='')}/json", _Inspected)
                found += [
                    mount.told()
                    for mount in (asked.host_config.mounts if asked else None) or []
                    if mount.driver.name == self._plugin
                ]
        return found

    async def containers_of(self, service: str) -> list[Container]:
        """See :class:`~pannier.engine.base.Engine`."""
        query = as_filters({"label": [f"{_SERVICE_LABEL}={service}"]})
        listed = await self._get("/containers/json", list[_Listed], filters=query, all="1")
        return [_container(item) for item in listed or []]

    async def execute(self, container_id: str, command: str, *, timeout_seconds: float) -> Executed:
        """See :class:`~pannier.engine.base.Engine`."""
        execution = Execution(self._connection, call_seconds=self._timeout_seconds)
        container = quote(container_id, safe="")
        return await execution.run(container, command, timeout_seconds=timeout_seconds)

    async def other_volumes(self) -> list[str]:
        """See :class:`~pannier.engine.base.Engine`."""
        listed = await self._get("/volumes", _Volumes)
        volumes = (listed.volumes or []) if listed else []
        return sorted({item.name for item in volumes if item.driver != self._plugin})

    async def local_volumes(self) -> list[LocalVolume]:
        """See :class:`~pannier.engine.base.Engine`."""
        listed = await self._get(
            "/volumes", _Volumes, filters=as_filters({"driver": [_OWN_DRIVER]})
        )
        volumes = (listed.volumes or []) if listed else []
        found = [
            LocalVolume(item.name, Path(item.mountpoint), plain=not item.options)
            for item in volumes
            if item.driver == _OWN_DRIVER
        ]
        return sorted(found, key=lambda volume: volume.name)

    async def remove_volume(self, name: str) -> bool:
        """See :class:`~pannier.engine.base.Engine`."""
        return await self._connection.delete(
            f"/volumes/{quote(name, safe='')}", timeout_seconds=self._timeout_seconds
        )

    async def version(self) -> str:
        """See :class:`~pannier.engine.base.Engine`."""
        return (await self._version()).version

    async def facts(self) -> EngineFacts:
        """See :class:`~pannier.engine.base.Engine`."""
        info, version = await self._info(), await self._version()
        runtimes = info.runtimes or {}
        components = {item.name: item.version for item in version.components or []}
        return EngineFacts(
            version=version.version,
            kernel=info.kernel_version,
            default_runtime=info.default_runtime,
            runtimes={name: runtime.path for name, runtime in runtimes.items()},
            runc=components.get("runc"),
            libseccomp=_libseccomp(runtimes.get("runc")),
        )

    async def starts(self) -> AsyncIterator[None]:
        """See :class:`~pannier.engine.base.Engine`."""
        async for said in self._connection.events(
            "daemon", retry_seconds=self._retry_seconds, timeout_seconds=self._timeout_seconds
        ):
            if not said:
                yield  # only the end of the stream matters: the engine has stopped

    # --- calls -----------------------------------------------------------------------------------

    async def _get(self, path: str, kind: type[T], **query: str) -> T | None:
        return await self._connection.get(
            path, kind, timeout_seconds=self._timeout_seconds, **query
        )

    async def _info(self) -> _Info:
        return self._there("/info", await self._get("/info", _Info))

    async def _version(self) -> _Version:
        return self._there("/version", await self._get("/version", _Version))

    def _there(self, path: str, found: T | None) -> T:
        if found is None:
            raise self._connection.unavailable(f"has no {path}")
        return found

    def _mounts(self, item: _Listed, volume: str) -> bool:
        """Whether it has our volume: the engine's filter also finds other drivers', and mount targets."""
        return any(
            mount.type == "volume" and mount.name == volume and mount.driver == self._plugin
            for mount in item.mounts or []
        )


def _container(item: _Listed) -> Container:
    # Links give a container further names, of the form /other/alias.
    names = sorted(item.names or [], key=lambda name: name.count("/"))
    return Container(
        id=item.id,
        name=names[0].lstrip("/") if names else item.id[:12],
        service=(item.labels or {}).get(_SERVICE_LABEL),
        running=item.state in _RUNNING,
        labels=item.labels or {},
    )


def _libseccomp(runc: _Runtime | None) -> str | None:
    """The version that runc was linked with; None from engines before 25.0, which do not ask runc."""
    told = ((runc.status if runc else None) or {}).get(_FEATURES)
    if told is None:
        return None
    try:
        return msgspec.json.decode(told, type=_Features).annotations.get(_LIBSECCOMP)
    except msgspec.MsgspecError:
        return None
