"""Docker Swarm as its managers describe it: values, and the labels that Pannier keeps on its nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pannier.core.errors import InvalidInput

VOLUME_LABEL_PREFIX = "pannier.volume."
VOLUME_LABEL_VALUE = "copy"
_SERVICE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_ENDED = frozenset({"complete", "failed", "shutdown", "rejected", "orphaned", "remove"})


class Availability(StrEnum):
    """What Swarm may do with a node: give it tasks, leave it those it has, or take them away."""

    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class SwarmMember:
    """An engine that belongs to a Swarm.

    Attributes:
        node: its Swarm node id.
        managers: Swarm node ids of the managers that it knows of.
    """

    node: str
    manager: bool
    managers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a node has, or what a task reserves of it: billionths of a CPU, and bytes."""

    nano_cpus: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmNode:
    """A node as Swarm's managers see it.

    Attributes:
        state: ``ready``, ``down``, ``unknown`` (a new leader has not heard of it yet) or
            ``disconnected``.
        role: ``manager`` or ``worker``.
        leader: whether it is the manager that leads.
        labels: those of ``docker node update --label-add``.
        engine_labels: those of its engine's own configuration.
        version: rises with every change of the node, its state's changes included.
        resources: what its engine has; None where that is not known.
    """

    id: str
    hostname: str
    state: str
    availability: Availability
    role: str
    version: int
    leader: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    engine_labels: Mapping[str, str] = field(default_factory=dict)
    os: str = ""
    arch: str = ""
    resources: Resources | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMount:
    """A volume that may be ours among the mounts of a service, as its spec has it.

    Attributes:
        source: the volume's name. It may have templates (:mod:`pannier.core.swarm_template`).
        driverless: the spec names no driver. The volume is ours if we have one of that name.
        options: those of the driver, as they were typed.
    """

    source: str
    driverless: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmService:
    """A service.

    Attributes:
        mounts: the volumes of its tasks, but for those of other drivers. For their names ask
            :mod:`pannier.core.service_volumes`.
        mode: ``replicated``, ``global``, ``replicated job`` or ``global job``.
        replicas: how many tasks a replicated service shall have.
        order: what an update does, ``stop-first`` or ``start-first``.
        labels: the service's own.
        container_labels: those that its containers get.
        update: what became of its last update, such as ``completed`` or ``rollback_started``.
        version: rises with every change of the service.
        reserved: by each of its tasks.
        host_ports: those that each of its tasks publishes on its own node, such as ``8080/tcp``.
    """

    name: str
    constraints: tuple[str, ...]
    mounts: tuple[ServiceMount, ...] = ()
    id: str = ""
    version: int = 0
    mode: str = "replicated"
    replicas: int = 1
    order: str = "stop-first"
    labels: Mapping[str, str] = field(default_factory=dict)
    container_labels: Mapping[str, str] = field(default_factory=dict)
    update: str = ""
    reserved: Resources = Resources()
    host_ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmTask:
    """One attempt to run a service on a node.

    Attributes:
        service: the service's id.
        node: the node's id; empty while Swarm has found none.
        state: ``pending``, ``preparing``, ``starting``, ``running`` (and healthy, where there is a
            health check), ``failed``, ``rejected``, ``shutdown`` and the like.
        wanted: whether Swarm wants it to run.
        slot: which of a replicated service's tasks it is, from 1 on; 0 where the service has no slots.
        container: the container's id; None before there is one.
        message: what Swarm says of it, an error if there is one.
        reserved: what it reserves of its node.
    """

    id: str
    service: str
    node: str
    state: str
    wanted: bool
    slot: int = 0
    container: str | None = None
    message: str = ""
    reserved: Resources = Resources()

    @property
    def ended(self) -> bool:
        """Whether its container has ended, or there will never be one."""
        return self.state in _ENDED


def volume_label(volume: str) -> str:
    """The key of the node label that says where the volume has a copy.

    Any volume name can be part of a label's key, and of a constraint that names it.
    """
    return VOLUME_LABEL_PREFIX + volume


def without_volume_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A node's labels without ours."""
    return {k: v for k, v in labels.items() if not k.startswith(VOLUME_LABEL_PREFIX)}


def check_service_name(name: str) -> str:
    """Return ``name`` if it can name a service.

    Raises:
        InvalidInput: it cannot.
    """
    if not _SERVICE_NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:40]!r} cannot name a service", remedy="see docker service ls for the names"
        )
    return name
