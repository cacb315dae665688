"""What a service's move begins with: the wish, the plan, and what it needs of the node around it."""

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
    """How a service is to be moved.

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
    """A move that nothing in the Swarm forbids.

    Attributes:
        volumes: names of those that come along.
        task: what runs now, if anything does.
        source: the node on which it runs.
        tasks: all of the service.
        nodes: all of the Swarm.
    """

    service: SwarmService
    volumes: tuple[str, ...]
    target: Place
    task: SwarmTask | None
    source: str | None
    tasks: tuple[SwarmTask, ...]
    nodes: tuple[SwarmNode, ...]


class Surroundings(Protocol):
    """What a move needs of the node around it. The properties raise nothing."""

    @property
    def swarm(self) -> Swarm: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def pace(self) -> SwarmPace: ...

    async def plan(self, service: str, node: str) -> Plan:
        """Look at the Swarm again, and plan the move.

        Raises:
            NotFound: the Swarm has no such service.
            NodeNotFound: neither the cluster nor the Swarm has such a node.
            Conflict: this node is no Swarm manager; or the service, its constraints or the target do
                not allow the move, and the message says why.
            InvalidInput: the container's labels ask for a hook that cannot be read.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader.
        """
        ...

    async def check_capacity(self, plan: Plan) -> None:
        """Check that Swarm would start the container on the target now.

        Raises:
            Conflict: a port is taken there, or what the service reserves is not free; or this node is
                no Swarm manager.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader.
        """
        ...

    def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """See :class:`~pannier.contract.operations.Operations`.

        Raises:
            PannierError: as :meth:`pannier.contract.operations.Operations.move_volume`.
        """
        ...

    def hook(self, moment: Moment, service: str, *, node: str) -> AsyncGenerator[HookView, None]:
        """Have a node run the hook of its container (:mod:`pannier.swarm.hooks`).

        Raises:
            NodeNotFound: there is no such node.
            PannierError: as :meth:`pannier.contract.peers.Peer.peer_hook`.
        """
        ...
