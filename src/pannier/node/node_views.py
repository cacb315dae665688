"""What users and other nodes are shown of nodes, from memory and from this machine."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.cluster.cluster import Cluster
from pannier.contract.views import NodeView
from pannier.contract.words import NodeState
from pannier.core.errors import EngineUnavailable, NodeNotFound
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.engine.base import Engine
from pannier.host.clock import rfc3339
from pannier.node.barrier_admission import obstacle
from pannier.node.sync_views import journal_of, journal_view


class NodeViews:
    """Builds the views of nodes."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        lease: Lease,
        engine: Engine,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._lease = lease
        self._engine = engine
        self._pace = pace
        self._catalog = self._cluster.catalog

    def known(self, name: str) -> Node:
        """The node of that name.

        Raises:
            NodeNotFound: the cluster has none.
        """
        node = self._catalog.node(name)
        if node is None:
            known = ", ".join(node.name for node in self._catalog.nodes())
            raise NodeNotFound(f"there is no node {name}", remedy=f"the nodes are {known}")
        return node

    def all(self) -> list[NodeView]:
        """All nodes, from memory."""
        return [self.listed(node) for node in self._catalog.nodes()]

    def listed(self, node: Node) -> NodeView:
        """One node, from memory."""
        return NodeView(
            name=node.name,
            address=node.address,
            state=self._state(node),
            drivers=list(node.drivers),
            version=node.version,
            volumes=sum(v.grant.node == node.name for v in self._catalog.volumes()),
            joined_at=rfc3339(node.joined_at),
            swarm=node.swarm,
        )

    def _state(self, node: Node) -> NodeState:
        if not self._catalog.is_up(node.name):
            return NodeState.DOWN
        return NodeState.DRAINED if node.drained else NodeState.UP

    async def here(self) -> NodeView:
        """This node with the figures of its pool and its journal, and what its engine can do.

        Raises:
            NodeNotFound: the cluster does not know this node, or not any more.
        """
        view = self.listed(self.known(self._cluster.node))
        view = replace(view, disk_error=self._lease.withheld)
        with suppress(EngineUnavailable, TimeoutError):
            async with asyncio.timeout(self._pace.engine):
                facts = await self._engine.facts()
            view = replace(view, sync_obstacle=obstacle(facts))
        if not any(self._drivers) or self._drivers.hanging:
            return view  # its pool is not there, or would keep whoever asks waiting: `doctor` says more
        if (journal := await journal_of(self._drivers)) is not None:
            view = replace(view, journal=journal_view(journal, self._catalog.volumes()))
        capacity = await self._drivers.named(self._drivers.default).capacity()
        return replace(
            view, pool_total_bytes=capacity.total_bytes, pool_free_bytes=capacity.free_bytes
        )
