"""What is in the way of a stack: decided from a compose file and what the Swarm is now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pannier.core.constraints import matches
from pannier.core.errors import Conflict
from pannier.core.swarm import Availability, SwarmNode
from pannier.stacks.compose import Compose, Port, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlace:
    """A node of the Swarm.

    Attributes:
        address: at which others reach it; empty where the Swarm does not know.
        has_plugin: whether Swarm knows that Pannier is there.
        sync_obstacle: why sync calls would not be held there; empty where they would, None where
            that is not known.
    """

    node: SwarmNode
    address: str = ""
    has_plugin: bool = True
    sync_obstacle: str | None = None

    @property
    def takes_tasks(self) -> bool:
        """Whether Swarm gives it tasks now."""
        return self.node.state == "ready" and self.node.availability is Availability.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A port that a service publishes; ``stack`` is empty where the service belongs to no stack."""

    port: Port
    service: str
    stack: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is in the way, and what to do."""

    what: str
    remedy: str


def problems(
    compose: Compose, *, stack: str, places: Sequence[StackPlace], taken: Iterable[Publication]
) -> list[Problem]:
    """Everything that is in the way of deploying ``compose`` under the name ``stack``.

    Args:
        taken: the ports that services publish now.
    """
    found = [*_ports(compose, stack, taken)]
    for service in compose.services:
        found += _nodes(service, places, fsync=bool(compose.fsync.intersection(service.volumes)))
    return list(dict.fromkeys(found))


def refusal(stack: str, found: Sequence[Problem]) -> Conflict:
    """The problems as one error."""
    return Conflict(
        f"stack {stack} was not deployed: " + "; ".join(each.what for each in found),
        remedy="; ".join(dict.fromkeys(each.remedy for each in found)),
    )


def _nodes(service: Service, places: Sequence[StackPlace], *, fsync: bool) -> Iterator[Problem]:
    wanted = " and ".join(service.constraints)
    fitting = [place for place in places if matches(place.node, service.constraints)]
    working = [place for place in fitting if place.takes_tasks]
    if not fitting:
        yield Problem(
            f"no node of the Swarm is as service {service.name} wants it ({wanted})",
            "docker node ls shows the nodes, docker node inspect their labels; change the constraint",
        )
    elif not working:
        names = _names(fitting)
        yield Problem(
            f"no node that service {service.name} may run on takes tasks now ({names})",
            "start one, or: docker node update --availability active NODE",
        )
    if not service.volumes:
        return
    if without := [place for place in working if not place.has_plugin]:
        yield Problem(
            f"{_names(without)} may get service {service.name} and has no Pannier",
            "install it there (pannier deploy, or pannier join), or keep the service away with a "
            "constraint. A node that has it only now is known to the Swarm within 20 s",
        )
    for place in working if fsync else ():
        if place.sync_obstacle:
            yield Problem(
                f"{place.node.hostname} may get service {service.name}, whose volume has "
                f"durability=fsync: {place.sync_obstacle}",
                f"on {place.node.hostname}: pannier runtime register",
            )


def _ports(compose: Compose, stack: str, taken: Iterable[Publication]) -> Iterator[Problem]:
    others = {each.port: each for each in taken if each.stack != stack}
    for port in sorted({port for service in compose.services for port in service.ports}):
        other = others.get(port)
        if other is None:
            continue
        owner = f" of stack {other.stack}" if other.stack else ""
        remove = f"stack rm {other.stack}" if other.stack else f"service rm {other.service}"
        yield Problem(
            f"port {port} is published by service {other.service}{owner}",
            f"docker {remove}, or change the port in a copy of the compose file: "
            "pannier stack show NAME --to DIRECTORY, then --file",
        )


def _names(places: Iterable[StackPlace]) -> str:
    return ", ".join(sorted(place.node.hostname for place in places))


def open_at(compose: Compose, places: Sequence[StackPlace]) -> str:
    """The address to open, on the first node that takes tasks; empty where the stack has none."""
    host = next((place.address for place in places if place.takes_tasks and place.address), "NODE")
    return compose.address.replace("NODE", f"[{host}]" if ":" in host else host)
