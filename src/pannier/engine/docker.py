"""The Docker engine through its API on a unix socket, from Docker 20.10 on.

Paths carry no API version: the engine then speaks its newest, and what is used here has the same
form in all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from pannier.core.errors import EngineUnavailable
from pannier.engine.base import Container

DEFAULT_SOCKET = Path("/var/run/docker.sock")
_SERVICE_LABEL = "com.docker.swarm.service.name"
# A paused container keeps its volume; one that restarts is about to take it again.
_RUNNING = ("running", "paused", "restarting")


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


class _State(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool = False


class _Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    """``GET /containers/ID/json``."""

    id: str
    name: str
    config: _Config
    state: _State


class _Plugins(msgspec.Struct, frozen=True, rename="pascal"):
    volume: list[str] | None = None


class _Info(msgspec.Struct, frozen=True, rename="pascal"):
    plugins: _Plugins


class _Volume(msgspec.Struct, frozen=True, rename="pascal"):
    name: str
    driver: str


class _Volumes(msgspec.Struct, frozen=True, rename="pascal"):
    volumes: list[_Volume] | None = None


class _Version(msgspec.Struct, frozen=True, rename="pascal"):
    version: str


T = TypeVar("T")


class DockerEngine:
    """Implements :class:`~pannier.engine.base.Engine`. To be used in one event loop, then closed.

    Args:
        socket: where dockerd listens.
        plugin: the name of our plugin, which is that of its socket file.
        timeout_seconds: for each call. Ours are answered from the engine's memory.
        activate_seconds: for the activation, in which the engine calls our plugin.
        retry_seconds: between two attempts to reach the engine again.
    """

    def __init__(
        self,
        socket: Path = DEFAULT_SOCKET,
        *,
        plugin: str = "pannier",
        timeout_seconds: float = 5.0,
        activate_seconds: float = 20.0,
        retry_seconds: float = 1.0,
    ) -> None:
        self._socket = socket
        self._plugin = plugin
        self._timeout_seconds = timeout_seconds
        self._activate_seconds = activate_seconds
        self._retry_seconds = retry_seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def activate_plugin(self) -> None:
        """See :class:`~pannier.engine.base.Engine`.

        A listing restricted to one driver makes the engine look for that driver alone, so that
        another plugin that is dead does not hold it up for 15 s.
        """
        await self._get(
            "/volumes",
            Any,
            filters={"driver": [self._plugin]},
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
        info = await self._get("/info", _Info)
        return self._plugin in (info.plugins.volume or []) if info else False

    async def containers_using(self, volume: str) -> list[Container]:
        """See :class:`~pannier.engine.base.Engine`."""
        listed = await self._get(
            "/containers/json", list[_Listed], filters={"volume": [volume]}, all="1"
        )
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
        )

    async def other_volumes(self) -> list[str]:
        """See :class:`~pannier.engine.base.Engine`."""
        listed = await self._get("/volumes", _Volumes)
        volumes = (listed.volumes or []) if listed else []
        return sorted({item.name for item in volumes if item.driver != self._plugin})

    async def version(self) -> str:
        """See :class:`~pannier.engine.base.Engine`."""
        found = await self._get("/version", _Version)
        if found is None:
            raise self._unavailable("has no /version")
        return found.version

    async def starts(self) -> AsyncIterator[None]:
        """See :class:`~pannier.engine.base.Engine`."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout_seconds):
                    response = await self._open().get(
                        "/events",
                        params={"filters": _json({"type": ["daemon"]})},
                        timeout=aiohttp.ClientTimeout(total=None),
                    )
                async with response:
                    if response.status == 200:
                        yield
                        while await response.content.readany():
                            pass  # its end is what matters, and it comes when the engine stops
            await asyncio.sleep(self._retry_seconds)

    # --- one call --------------------------------------------------------------------------------

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                base_url="http://docker",
                connector=aiohttp.UnixConnector(path=str(self._socket)),
            )
        return self._session

    async def _get(
        self,
        path: str,
        kind: type[T],
        *,
        filters: Mapping[str, list[str]] | None = None,
        timeout_seconds: float | None = None,
        **query: str,
    ) -> T | None:
        """The answer, decoded; None where the engine says 404."""
        limit = timeout_seconds or self._timeout_seconds
        if filters is not None:
            query["filters"] = _json(filters)
        try:
            async with self._open().get(
                path, params=query, timeout=aiohttp.ClientTimeout(total=limit)
            ) as response:
                content = await response.read()
                if response.status == 404:
                    return None
                if response.status != 200:
                    raise self._unavailable(
                        f"answered {response.status} to {path}: {_message(content)}"
                    )
                return msgspec.json.decode(content, type=kind)
        except TimeoutError as error:
            raise self._unavailable(f"did not answer {path} within {limit:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(f"cannot be reached: {error}") from error
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise self._unavailable(f"gave an answer to {path} that is not its: {error}") from error

    def _unavailable(self, what: str) -> EngineUnavailable:
        return EngineUnavailable(
            f"the Docker engine at {self._socket} {what}",
            remedy="see systemctl status docker on this node",
        )

    def _mounts(self, item: _Listed, volume: str) -> bool:
        """The engine's filter also finds other drivers' volumes of the name, and mount targets."""
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
    )


def _json(filters: Mapping[str, list[str]]) -> str:
    return msgspec.json.encode(filters).decode()


def _message(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=dict[str, str])["message"]
    except (msgspec.MsgspecError, UnicodeError, KeyError):
        return content[:200].decode("utf-8", "replace")
