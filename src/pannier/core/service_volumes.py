"""Which volumes the tasks of a Swarm service mount. Whoever asks for a service's volumes asks here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pannier.core.errors import Conflict
from pannier.core.swarm import ServiceMount, SwarmNode, SwarmService, SwarmTask
from pannier.core.swarm_template import expanded

IsOurs = Callable[[str], bool]
"""Whether there is a volume of ours of that name."""


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A volume of ours that tasks of a service mount.

    Attributes:
        name: its own.
        mount: what the service's spec says of it, templates included.
        options: those of the driver that the spec has; None where a template in them cannot be told.
    """

    name: str
    mount: ServiceMount
    options: Mapping[str, str] | None


def volumes_of(
    service: SwarmService,
    tasks: Iterable[SwarmTask],
    nodes: Sequence[SwarmNode],
    *,
    is_ours: IsOurs,
) -> list[MountedVolume]:
    """The volumes of all tasks that Swarm wants to run, each name once.

    Of a service without such tasks, those that its tasks would mount. Names that cannot be told are left out.

    Args:
        tasks: those of other services are not looked at.
        nodes: all of the Swarm.
    """
    found: dict[str, MountedVolume] = {}
    for task in _wanted(service, tasks) or _imagined(service):
        for volume in _of_task(service, task, nodes, is_ours=is_ours):
            found.setdefault(volume.name, volume)
    return list(found.values())


def volumes_that_move(
    service: SwarmService,
    tasks: Iterable[SwarmTask],
    nodes: Sequence[SwarmNode],
    *,
    target: SwarmNode,
    is_ours: IsOurs,
) -> list[MountedVolume]:
    """The volumes that the only task of a service mounts, and the one after it on ``target`` as well.

    Raises:
        Conflict: that one would mount others, or a volume's name cannot be told.
    """
    present = (_wanted(service, tasks) or _imagined(service))[0]
    following = replace(present, id="(another)", node=target.id)
    for mount in service.mounts:
        told = expanded(mount.source, service=service, task=following, node=target)
        if told is None and not mount.driverless:
            raise Conflict(
                f"service {service.name} mounts volume {mount.source}, and Pannier cannot tell its name: "
                "of Swarm's templates it knows the fields, and the labels of the service",
                remedy="use a simpler template, or move the volume: pannier volume move",
            )
    volumes = _of_task(service, following, nodes, is_ours=is_ours)
    same = {volume.name for volume in _of_task(service, present, nodes, is_ours=is_ours)}
    for volume in volumes:
        if volume.name not in same:
            raise Conflict(
                f"service {service.name} mounts volume {volume.mount.source}: that is another volume on "
                "another node, or for another task, and nothing comes along",
                remedy="name it by what stays the same: {{.Service.Name}} or {{.Task.Slot}}",
            )
    return volumes


def _wanted(service: SwarmService, tasks: Iterable[SwarmTask]) -> list[SwarmTask]:
    """Those that run come first: the others may wait for a place."""
    wanted = [task for task in tasks if task.service == service.id and task.wanted]
    return sorted(wanted, key=lambda task: task.state != "running")


def _imagined(service: SwarmService) -> list[SwarmTask]:
    """The tasks that a service without any would get. Their ids and nodes are not known yet."""
    slots = range(1, max(service.replicas, 1) + 1) if service.mode == "replicated" else (0,)
    return [
        SwarmTask(id="", service=service.id, node="", state="new", wanted=True, slot=slot)
        for slot in slots
    ]


def _of_task(
    service: SwarmService, task: SwarmTask, nodes: Iterable[SwarmNode], *, is_ours: IsOurs
) -> list[MountedVolume]:
    node = next((each for each in nodes if each.id == task.node), None)
    found: dict[str, MountedVolume] = {}
    for mount in service.mounts:
        name = expanded(mount.source, service=service, task=task, node=node)
        if name is not None and (not mount.driverless or is_ours(name)):
            texts = {
                key: expanded(text, service=service, task=task, node=node)
                for key, text in mount.options.items()
            }
            told = {key: text for key, text in texts.items() if text is not None}
            options = told if len(told) == len(texts) else None
            found.setdefault(name, MountedVolume(name, mount, options))
    return list(found.values())
