"""Volumes and nodes wherever they are: the node that has the facts, or the volume, is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from msgspec import structs

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peer, Peers, holder_unreachable
from pannier.contract.views import MoveProgress, NodeView
from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView
from pannier.contract.words import MovePhase
from pannier.core.errors import Conflict, PannierError, PeerUnavailable
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.holding.volumes import Volumes
from pannier.node.node_views import NodeViews
from pannier.node.volume_views import VolumeViews


class ClusterWide:
    """What this node does for any volume or node of the cluster, together with the other nodes."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        volumes: Volumes,
        handovers: Handovers,
        peers: Peers,
        volume_views: VolumeViews,
        node_views: NodeViews,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._volumes = volumes
        self._handovers = handovers
        self._peers = peers
        self._volume_views = volume_views
        self._node_views = node_views
        self._pace = pace
        self._catalog = self._cluster.catalog

    async def node(self, name: str) -> NodeView:
        """One node, with its pool's figures where it answers.

        Raises:
            NodeNotFound: there is none of that name.
        """
        node = self._node_views.known(name)
        if name == self._cluster.node:
            return await self._node_views.here()
        try:
            async with asyncio.timeout(self._pace.listing):
                view = await self._peers.to(node).peer_node()
        except (PannierError, TimeoutError):
            return self._node_views.listed(node)
        # Its own view of its state may be old: without the store it does not see that its lease is over.
        return replace(view, state=self._node_views.listed(node).state)

    async def volume(self, name: str) -> LiveVolumeView | RememberedVolumeView:
        """One volume, with what only its holder knows where that node answers.

        Raises:
            VolumeNotFound: there is none of that name.
        """
        volume = await self._volumes.find(name)
        live = await self.from_holder(volume)
        copies = [volume.grant.node]
        others = [n for n in self._catalog.nodes() if n.name != volume.grant.node]
        copies += [n.name for n in others if await self._has_copy(n, volume)]
        if live is None:
            return self._volume_views.remembered(volume, copies_on=copies)
        return structs.replace(live, copies_on=copies)

    async def from_holder(self, volume: Volume) -> LiveVolumeView | None:
        """What the volume's holder says of it; None where it does not answer as the holder."""
        if volume.grant.node == self._cluster.node:
            return await self._volume_views.live(volume)
        try:
            peer = self._peer(volume.grant.node)
            async with asyncio.timeout(self._pace.listing):
                view = await peer.peer_volume(volume.name)
        except (PannierError, TimeoutError):
            return None
        return view if isinstance(view, LiveVolumeView) else None

    async def _has_copy(self, node: Node, volume: Volume) -> bool:
        if node.name == self._cluster.node:
            return bool(await self._volume_views.generations(volume))
        if not self._catalog.is_up(node.name):
            return False
        try:
            async with asyncio.timeout(self._pace.listing):
                view = await self._peers.to(node).peer_volume(volume.name)
        except (PannierError, TimeoutError):
            return False
        return node.name in view.copies_on

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """Make ``node`` the holder, wherever the volume is now; progress as it goes.

        Raises:
            VolumeNotFound: there is no such volume.
            NodeNotFound: there is no such node.
            Conflict: the node is down.
            PeerUnavailable: the holder, or the target, does not answer.
        """
        volume = (await self._cluster.fresh(name)).record
        target = self._node_views.known(node)
        if volume.grant.node == node:
            yield MoveProgress(
                phase=MovePhase.DONE, volume=name, source=node, target=node, pause_seconds=0.0
            )
            return
        if not self._catalog.is_up(target.name):
            raise Conflict(
                f"node {node} is down; volume {name} stays on {volume.grant.node}",
                remedy="start it again, or choose another: pannier node ls",
            )
        if volume.grant.node == self._cluster.node:
            async for step in self._handovers.move(volume, node, wait_seconds=wait_seconds):
                yield step
            return
        steps = self._peer(volume.grant.node).peer_move(
            name, node, wait_seconds=wait_seconds, actor=actor
        )
        answered = False
        try:
            async for step in steps:
                answered = True
                yield step
        except PeerUnavailable as error:
            if answered:  # the holder reports that the target does not answer
                raise
            raise holder_unreachable(volume, error) from error

    def _peer(self, name: str) -> Peer:
        node = self._catalog.node(name)
        if node is None:
            raise PeerUnavailable(
                f"node {name} is not in this cluster any more", remedy="see pannier node ls"
            )
        return self._peers.to(node)
