"""Docker Swarm as its managers describe it: values, and the labels that Pannier keeps on its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

VOLUME_LABEL_PREFIX = "pannier.volume."
VOLUME_LABEL_VALUE = "copy"


class Availability(StrEnum):
    """What Swarm may do with a node: give it tasks, leave it those it has, or take them away."""

    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class SwarmMember:
    """An engine that belongs to a Swarm. ``node`` is its Swarm node id."""

    node: str
    manager: bool


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmService:
    """A service. ``volumes`` are those of our driver that its tasks mount, as its spec names them."""

    name: str
    constraints: tuple[str, ...]
    volumes: tuple[str, ...]


def volume_label(volume: str) -> str:
    """The key of the node label that says where the volume has a copy.

    Any volume name can be part of a label's key, and of a constraint that names it.
    """
    return VOLUME_LABEL_PREFIX + volume


def without_volume_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A node's labels without ours."""
    return {k: v for k, v in labels.items() if not k.startswith(VOLUME_LABEL_PREFIX)}
