"""What a service's move begins with: the wish, the plan, and what it asks of the rest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from pannier.contract.views import HookView, MoveProgress
from pannier.core.hooks import Moment
from pannier.core.pace import SwarmPace
from pannier.core.service_move import Place
from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask
from pannier.engine.base import Swarm
from pannier.host.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How it shall be done.

    Attributes:
        now: without the pre-move hook.
        stay: the service stays tied to the node.
        timeout_seconds: how long the copying may take, and then the new container's start.
    """

    now: bool
    stay: bool
    timeout_seconds: float
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A move that nothing in the Swarm is in the way of.

    Attributes:
        task: what runs now, if anything does.
        source: the node on which it runs.
        tasks: all of the service.
        nodes: all of the Swarm.
    """

    service: SwarmService
    target: Place
    task: SwarmTask | None
    source: str | None
    tasks: tuple[SwarmTask, ...]
    nodes: tuple[SwarmNode, ...]


class Surroundings(Protocol):
    """What a move asks of the rest."""

    @property
    def swarm(self) -> Swarm: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def pace(self) -> SwarmPace: ...

    async def plan(self, service: str, node: str) -> Plan:
        """Look at the Swarm anew. Raises what is in the way."""
        ...

    async def check_capacity(self, plan: Plan) -> None:
        """Whether Swarm would start the container on the target now. Raises why not."""
        ...

    def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """See :class:`~pannier.contract.operations.Operations`."""
        ...

    def hook(self, moment: Moment, service: str, *, node: str) -> AsyncGenerator[HookView, None]:
        """Have a node run the hook of its container (:mod:`pannier.swarm.hooks`)."""
        ...
