"""A service that is stopped for a while, and shall run again as it did.

It is scaled to nothing, and a label of the service says what it had and who has stopped it. So whoever stops it may die:
that node starts it again when it is back, the same command given again brings it to its end, and so does a person who scales it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pannier.core.errors import Conflict
from pannier.core.swarm import SwarmService

STOPPED = "pannier.stopped"
"""The service's label: how many replicas it had, and the node that has stopped it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What a stopped service had, and the node that has stopped it."""

    replicas: int
    node: str

    @property
    def label(self) -> str:
        """It as the label's text."""
        return f"{self.replicas} {self.node}"


def noted_stop(service: SwarmService) -> Stop | None:
    """What a service's label says, also where somebody has started it since."""
    replicas, _, node = service.labels.get(STOPPED, "").partition(" ")
    return Stop(int(replicas), node) if replicas.isdecimal() and node else None


def stop_of(service: SwarmService) -> Stop | None:
    """How a service was stopped by us; None where it was not, or somebody has started it since."""
    return None if service.replicas else noted_stop(service)


def stop_by(service: SwarmService, node: str) -> Stop | None:
    """How ``node`` has to stop a service; None where it has no tasks, and nobody of us has stopped it.

    Raises:
        Conflict: a service of this kind cannot be stopped.
    """
    if service.mode != "replicated":
        raise Conflict(
            f"service {service.name} is {service.mode}, and only a replicated one can be stopped and started again",
            remedy="end its containers by a constraint: docker service update --constraint-add, and do it without --stop-service",
        )
    if service.replicas:
        return Stop(service.replicas, node)
    earlier = stop_of(service)
    return None if earlier is None else Stop(earlier.replicas, node)


def labels_with(service: SwarmService, stop: Stop | None) -> Mapping[str, str]:
    """The service's labels while it is stopped; with None when it runs again."""
    labels = {key: text for key, text in service.labels.items() if key != STOPPED}
    return labels if stop is None else {**labels, STOPPED: stop.label}
