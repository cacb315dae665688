"""The endpoints of the volume plugin API: which body each takes, and which use case answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pannier.contract.docker_volumes import DockerVolumes
from pannier.plugin.wire import CreateBody, MountBody, NameBody, NoBody, describe

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint.

    Attributes:
        body: the type of its body.
        doing: what was going on, in the words of an error message.
        at_once: answers from memory, without waiting for anything.
        work: answers after waiting. Exactly one of ``at_once`` and ``work`` is given.
        gated: waits until the daemon is ready.
    """

    body: type[Any]
    doing: str
    at_once: Callable[[DockerVolumes, Any], Answer] | None = None
    work: Callable[[DockerVolumes, Any], Awaitable[Answer]] | None = None
    gated: bool = True


async def _create(volumes: DockerVolumes, body: CreateBody) -> Answer:
    await volumes.create(body.name, body.options or {})
    return {"Err": ""}


async def _remove(volumes: DockerVolumes, body: NameBody) -> Answer:
    await volumes.remove(body.name)
    return {"Err": ""}


async def _mount(volumes: DockerVolumes, body: MountBody) -> Answer:
    path = await volumes.mount(body.name, body.mount_id)
    return {"Mountpoint": str(path), "Err": ""}


async def _unmount(volumes: DockerVolumes, body: MountBody) -> Answer:
    await volumes.unmount(body.name, body.mount_id)
    return {"Err": ""}


def _get(volumes: DockerVolumes, body: NameBody) -> Answer:
    return {"Volume": describe(volumes.get(body.name)), "Err": ""}


def _path(volumes: DockerVolumes, body: NameBody) -> Answer:
    return {"Mountpoint": volumes.get(body.name).mountpoint, "Err": ""}


def _list(volumes: DockerVolumes, _: NoBody) -> Answer:
    return {"Volumes": [describe(volume) for volume in volumes.list()], "Err": ""}


def _activate(_: DockerVolumes, __: NoBody) -> Answer:
    return {"Implements": ["VolumeDriver"]}


def _capabilities(_: DockerVolumes, __: NoBody) -> Answer:
    return {"Capabilities": {"Scope": "global"}}


MOUNT = "VolumeDriver.Mount"
ENDPOINTS = {
    "Plugin.Activate": Endpoint(
        body=NoBody, doing="introducing the plugin", at_once=_activate, gated=False
    ),
    "VolumeDriver.Capabilities": Endpoint(
        body=NoBody, doing="introducing the plugin", at_once=_capabilities, gated=False
    ),
    "VolumeDriver.Create": Endpoint(body=CreateBody, doing="creating it", work=_create),
    "VolumeDriver.Remove": Endpoint(body=NameBody, doing="removing it", work=_remove),
    MOUNT: Endpoint(body=MountBody, doing="mounting it", work=_mount),
    "VolumeDriver.Unmount": Endpoint(body=MountBody, doing="unmounting it", work=_unmount),
    "VolumeDriver.Path": Endpoint(body=NameBody, doing="looking it up", at_once=_path),
    "VolumeDriver.Get": Endpoint(body=NameBody, doing="looking it up", at_once=_get),
    "VolumeDriver.List": Endpoint(body=NoBody, doing="listing the volumes", at_once=_list),
}
