"""What a service's move needs, what is in its way, and what it changes in Swarm.

A move ties the service to its new node with a constraint, and takes that back once the service runs
there: the service stays where it is, and can still start elsewhere when the node is lost. Two labels
of the service remember this, so that a move which was interrupted can be brought to its end, or be
replaced by another one. ``docker stack deploy`` takes labels and constraint away together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pannier.core.constraints import matches
from pannier.core.errors import Conflict, NodeNotFound, NotFound, PoolFull
from pannier.core.node import Node
from pannier.core.size import format_size
from pannier.core.swarm import (
    Availability,
    Resources,
    SwarmNode,
    SwarmService,
    SwarmTask,
    volume_label,
)
from pannier.core.volume import Volume

TIED = "pannier.moved-to"
"""The service's label with the constraint that we have added."""
ASIDE = "pannier.moved-to.aside"
"""The service's label with the constraints that we have taken away meanwhile, as JSON."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a move changes of a service: all its constraints, and all its own labels."""

    constraints: tuple[str, ...]
    labels: Mapping[str, str]


def tied(service: SwarmService, target: SwarmNode, nodes: Iterable[SwarmNode]) -> Placement:
    """The service as it must run on ``target``.

    Constraints that exclude ``target`` are set aside. After :func:`check_volumes` these are only
    those to our volumes' labels, which follow the copies.
    """
    free = untied(service)
    same = [node for node in nodes if node.hostname.casefold() == target.hostname.casefold()]
    ours = f"node.hostname=={target.hostname}" if len(same) == 1 else f"node.id=={target.id}"
    stay = tuple(each for each in free.constraints if matches(target, [each]))
    aside = [each for each in free.constraints if each not in stay]
    labels = {**free.labels, TIED: ours}
    if aside:
        labels[ASIDE] = json.dumps(aside)
    return Placement((*stay, ours), labels)


def untied(service: SwarmService) -> Placement:
    """The service as it was before any move: without what we have added, with what we took away."""
    ours = service.labels.get(TIED)
    constraints = tuple(each for each in service.constraints if each != ours)
    labels = {key: text for key, text in service.labels.items() if key not in (TIED, ASIDE)}
    return Placement(constraints + _aside(service), labels)


def is_tied(service: SwarmService) -> bool:
    """Whether a move has tied the service, and nobody has taken that back."""
    return TIED in service.labels


def _aside(service: SwarmService) -> tuple[str, ...]:
    try:
        found = json.loads(service.labels.get(ASIDE, "[]"))
    except ValueError:
        return ()
    texts = found if isinstance(found, list) else []
    return tuple(each for each in texts if isinstance(each, str))


# -- what is in the way -----------------------------------------------------------------------------


def find_service(name: str, services: Sequence[SwarmService]) -> SwarmService:
    """The service of that name or id.

    Raises:
        NotFound: there is none.
    """
    for service in services:
        if name in (service.name, service.id):
            return service
    names = [service.name for service in services]
    close = get_close_matches(name, names, n=1) or [n for n in names if n.endswith(f"_{name}")]
    meant = f"did you mean {close[0]}? " if close else ""
    raise NotFound(f"the Swarm has no service {name}", remedy=f"{meant}see docker service ls")


def check_kind(service: SwarmService) -> None:
    """Whether this kind of service can be moved.

    Raises:
        Conflict: it cannot; the message says why.
    """
    name = service.name
    if service.mode != "replicated":
        raise Conflict(
            f"service {name} is {service.mode}: Swarm decides where all its tasks run",
            remedy="move the volumes one by one: pannier volume move",
        )
    if service.replicas != 1:
        raise Conflict(
            f"service {name} has {service.replicas} replicas; one move takes one container with its "
            "volumes to another node",
            remedy=f"docker service scale {name}=1, or move the volumes: pannier volume move",
        )
    if service.order != "stop-first":
        raise Conflict(
            f"service {name} has the update order {service.order}: its new container would wait "
            "for the volumes, and its old one for the new container",
            remedy=f"docker service update --update-order stop-first {name}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node by both its names: as Pannier and as Swarm knows it."""

    node: Node
    swarm: SwarmNode


def is_same(node: Node, member: SwarmNode) -> bool:
    """Whether Swarm knows this node as ``member``.

    A node records its Swarm id some time after it has started; until then its name is compared.
    """
    if node.swarm is None:
        return node.name == member.hostname
    return node.swarm == member.id


def find_target(
    name: str,
    nodes: Sequence[Node],
    swarm: Sequence[SwarmNode],
    *,
    is_up: Callable[[str], bool],
) -> Place:
    """The node that a service shall be moved to, if it can take a service with volumes.

    Args:
        name: Pannier's name of the node, or the Swarm's host name of it.
        is_up: whether a node of Pannier has its lease.

    Raises:
        NodeNotFound: neither knows a node of that name. Conflict: it cannot take one; says why.
    """
    node = next((each for each in nodes if each.name == name), None)
    member = next((each for each in swarm if node and is_same(node, each)), None)
    if node is None:
        member = next((each for each in swarm if name in (each.hostname, each.id)), None)
        node = next((each for each in nodes if member and is_same(each, member)), None)
    if node is None and member is None:
        known = ", ".join(sorted(each.name for each in nodes))
        raise NodeNotFound(f"there is no node {name}", remedy=f"the nodes are {known}")
    if node is None:
        raise Conflict(
            f"node {name} has no Pannier: its containers cannot have these volumes",
            remedy="install it there: pannier join",
        )
    if member is None:
        raise Conflict(
            f"node {name} is not in this Swarm, as far as Pannier knows",
            remedy="join it (docker swarm join-token worker), or see docker node ls",
        )
    _check_ready(node, member, is_up=is_up(node.name))
    return Place(node=node, swarm=member)


def _check_ready(node: Node, member: SwarmNode, *, is_up: bool) -> None:
    if member.state != "ready":
        raise Conflict(
            f"node {node.name} is {member.state} in the Swarm",
            remedy="start it, or choose another: docker node ls",
        )
    if member.availability is not Availability.ACTIVE:
        words = {"drain": "drained", "pause": "paused"}[member.availability]
        raise Conflict(
            f"node {node.name} is {words} in the Swarm: no container starts there",
            remedy=f"docker node update --availability active {member.hostname}",
        )
    if not is_up:
        raise Conflict(
            f"Pannier on node {node.name} is down",
            remedy=f"see systemctl status pannierd on {node.name}",
        )
    if node.drained:
        raise Conflict(
            f"node {node.name} is drained: it gives its volumes away and takes no new ones",
            remedy=f"pannier node drain {node.name} --undo",
        )


def check_volumes(service: SwarmService, volumes: Iterable[str], target: SwarmNode) -> None:
    """Whether there is anything to bring along, and the service's own constraints let it run on ``target``.

    Args:
        volumes: names of those that its task mounts.

    Raises:
        Conflict: it has no volumes of ours, or its constraints exclude ``target``.
    """
    labels = {f"node.labels.{volume_label(name)}".casefold() for name in volumes}
    if not labels:
        raise Conflict(
            f"service {service.name} has no volumes of Pannier: there is nothing to bring along",
            remedy="docker service update --constraint-add "
            f"node.hostname=={target.hostname} {service.name}",
        )
    for constraint in untied(service).constraints:
        follows = constraint.partition("==")[0].strip().casefold() in labels
        if not follows and not matches(target, [constraint]):
            raise Conflict(
                f"service {service.name} may not run on node {target.hostname}: its constraint "
                f"{constraint} excludes it",
                remedy="change the constraint in its stack file, or: docker service update "
                f"--constraint-rm '{constraint}' {service.name}",
            )


def check_capacity(
    service: SwarmService,
    target: SwarmNode,
    others: Iterable[tuple[SwarmTask, SwarmService | None]],
) -> None:
    """Whether Swarm would start the service's container on ``target``.

    Args:
        others: tasks that run there or are about to, but for the service's own, with their services.

    Raises:
        Conflict: a port is taken, or too little is left of what can be reserved.
    """
    reserved = Resources()
    for task, other in others:
        reserved = Resources(
            reserved.nano_cpus + task.reserved.nano_cpus,
            reserved.memory_bytes + task.reserved.memory_bytes,
        )
        taken = sorted(set(service.host_ports) & set(other.host_ports if other else ()))
        if other and taken:
            raise Conflict(
                f"service {service.name} publishes {', '.join(taken)} on its node, and on "
                f"{target.hostname} service {other.name} does so already",
                remedy=f"choose another node, or another port: docker service inspect {other.name}",
            )
    if target.resources is None:
        return
    cpus = target.resources.nano_cpus - reserved.nano_cpus
    memory = target.resources.memory_bytes - reserved.memory_bytes
    lacks = []
    if service.reserved.nano_cpus > max(cpus, 0):
        lacks.append(
            f"{service.reserved.nano_cpus / 1e9:g} CPUs, and {max(cpus, 0) / 1e9:g} are left"
        )
    if service.reserved.memory_bytes > max(memory, 0):
        wanted, left = service.reserved.memory_bytes, max(memory, 0)
        lacks.append(f"{format_size(wanted)} of memory, and {format_size(left)} are left")
    if lacks:
        raise Conflict(
            f"service {service.name} reserves {' and '.join(lacks)} on node {target.hostname}",
            remedy="choose another node, or have it reserve less: docker service update "
            f"--reserve-cpu/--reserve-memory {service.name}",
        )


def check_room(
    target: Place, volumes: Iterable[tuple[Volume, int]], *, free_bytes: int | None
) -> None:
    """Whether the target can take the volumes.

    Args:
        volumes: each with the bytes that it uses.
        free_bytes: of the target's pool; None where that is not known.

    Raises:
        Conflict: it does not have the driver. PoolFull: it does not have the room.
    """
    needed, name = 0, target.node.name
    for volume, used_bytes in volumes:
        if volume.spec.driver not in target.node.drivers:
            raise Conflict(
                f"node {name} has no {volume.spec.driver} driver, which volume {volume.name} needs",
                remedy=f"it has {', '.join(target.node.drivers)}; choose another node",
            )
        if name not in (volume.grant.node, *volume.replicas):
            needed += used_bytes
    if free_bytes is not None and needed > free_bytes:
        raise PoolFull(
            f"node {name} has {format_size(free_bytes)} free, and the volumes that it has no copy of "
            f"use {format_size(needed)}",
            remedy="make room there, or choose another node: pannier node ls",
        )
