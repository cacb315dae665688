"""The API's use cases on this node: :class:`~pannier.contract.operations.Operations` and
:class:`~pannier.contract.operations.PeerOperations`, put together from the parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from pannier import __version__
from pannier.agent.custody import Custody, no_such_volume
from pannier.cluster.catalog import Catalog
from pannier.contract.operations import HandoverReply, JoinReply, JoinRequest
from pannier.contract.peers import Peer, Peers, holder_unreachable
from pannier.contract.views import (
    CheckView,
    CopyView,
    EventView,
    FindingView,
    HookView,
    MoveProgress,
    NodeView,
    ServiceMoveProgress,
    ServiceView,
    StatusView,
    TokenView,
    TransferView,
    TrashView,
    VolumeView,
)
from pannier.copies.replication import Replicator
from pannier.copies.verification import Verification
from pannier.core.errors import (
    Conflict,
    EngineUnavailable,
    InvalidInput,
    NodeNotFound,
    PannierError,
    PeerUnavailable,
    Unavailable,
    VolumeNotFound,
)
from pannier.core.generation import Generation
from pannier.core.hooks import Moment
from pannier.core.node import Node
from pannier.core.options import describe_spec, parse_options
from pannier.core.volume import Volume
from pannier.holding.handover import Handovers
from pannier.holding.promising import Failsafe
from pannier.holding.recovery import Recovery
from pannier.holding.takeover import Takeover
from pannier.holding.volumes import Volumes
from pannier.host.clock import boottime, rfc3339
from pannier.node.barrier_admission import obstacle
from pannier.node.diagnosis import explain
from pannier.node.docker_volumes import DockerUse
from pannier.node.doctor import Doctor
from pannier.node.events import changes, history_of, recent
from pannier.node.membership import Membership
from pannier.node.quarantine import quarantine_of
from pannier.node.upkeep import TRASH_SECONDS
from pannier.swarm.service_plan import Wish
from pannier.swarm.services import Services

ASIDE_SECONDS = 3.0
"""How long a listing waits for another node's live facts before it goes without them."""
ENGINE_SECONDS = 1.0
"""And how long that node waits for its engine."""


class NodeService:
    """Everything the edges may ask of this node."""

    def __init__(
        self,
        *,
        cluster: str,
        custody: Custody,
        volumes: Volumes,
        handovers: Handovers,
        membership: Membership,
        doctor: Doctor,
        docker: DockerUse,
        peers: Peers,
        replicator: Replicator,
        recovery: Recovery,
        takeover: Takeover,
        failsafe: Failsafe,
        verification: Verification,
        services: Services,
        backlog: Callable[[str], tuple[int, float]] = lambda name: (0, 0.0),
    ) -> None:
        """Put the parts together.

        Args:
            backlog: of a volume, how many sync calls wait here, and for how many seconds the first.
        """
        self._cluster = cluster
        self._custody = custody
        self._catalog: Catalog = custody.catalog
        self._volumes = volumes
        self._handovers = handovers
        self._membership = membership
        self._doctor = doctor
        self.docker = docker
        self._peers = peers
        self._replicator = replicator
        self._recovery = recovery
        self._takeover = takeover
        self._failsafe = failsafe
        self._verification = verification
        self._services = services
        services.cluster = self
        self._backlog = backlog

    # -- nodes ----------------------------------------------------------------------------------

    async def status(self) -> StatusView:
        """The whole cluster at a glance, as far as it can be seen from here."""
        try:
            store = await self._custody.registry.store.health()
        except PannierError as error:
            store = {"store": error.message}
        findings = await self._doctor.examine()
        return StatusView(
            cluster=self._cluster,
            node=self._custody.node,
            version=__version__,
            store=store,
            store_ok=sum(state == "ok" for state in store.values()) * 2 > len(store),
            nodes=await self.nodes(),
            volumes=len(self._catalog.volumes()),
            problems=[f"{f.subject}: {f.what}" for f in findings if f.level == "problem"],
        )

    async def nodes(self) -> list[NodeView]:
        """All nodes, from memory."""
        return [self._node_view(node) for node in self._catalog.nodes()]

    async def node(self, name: str) -> NodeView:
        """One node, with its pool's figures where it answers."""
        node = self._known_node(name)
        if name == self._custody.node:
            return await self.peer_node(peer=name)
        try:
            async with asyncio.timeout(ASIDE_SECONDS):
                view = await self._peers.to(node).peer_node()
        except (PannierError, TimeoutError):
            return self._node_view(node)
        # Without the store it does not know that its own lease is over.
        return replace(view, state=self._node_view(node).state)

    def _known_node(self, name: str) -> Node:
        node = self._catalog.node(name)
        if node is None:
            known = ", ".join(node.name for node in self._catalog.nodes())
            raise NodeNotFound(f"there is no node {name}", remedy=f"the nodes are {known}")
        return node

    def _node_view(self, node: Node) -> NodeView:
        up = self._catalog.is_up(node.name)
        return NodeView(
            name=node.name,
            address=node.address,
            state="down" if not up else "drained" if node.drained else "up",
            drivers=list(node.drivers),
            version=node.version,
            volumes=sum(v.grant.node == node.name for v in self._catalog.volumes()),
            joined_at=rfc3339(node.joined_at),
            swarm=node.swarm,
        )

    async def drain_node(self, name: str, *, drained: bool, actor: str) -> NodeView:
        """Let a node give its volumes away as they become idle, and get no new ones; or undo it."""
        return self._node_view(await self._membership.drain(name, drained=drained))

    async def remove_node(self, name: str, *, lost: bool, actor: str) -> None:
        """Take a node out of the cluster; refused while it holds a volume and is not lost."""
        await self._membership.remove(name, lost=lost, actor=actor)

    async def create_token(self, *, ttl_seconds: float, uses: int, actor: str) -> TokenView:
        """A token with which machines may join."""
        return await self._membership.create_token(ttl_seconds=ttl_seconds, uses=uses)

    async def join(self, request: JoinRequest) -> JoinReply:
        """Admit a machine that has a token."""
        return await self._membership.join(request)

    # -- volumes --------------------------------------------------------------------------------

    async def volumes(self) -> list[VolumeView]:
        """All volumes, from memory."""
        return [self._volume_view(volume) for volume in self._catalog.volumes()]

    async def volume(self, name: str) -> VolumeView:
        """One volume, with what only its holder knows where that node answers."""
        volume = await self._volumes.find(name)
        view = await self._from_holder(volume)
        copies = [volume.grant.node]
        others = [n for n in self._catalog.nodes() if n.name != volume.grant.node]
        copies += [n.name for n in others if await self._has_copy(n, volume)]
        return replace(view, copies_on=copies)

    async def _from_holder(self, volume: Volume) -> VolumeView:
        if volume.grant.node == self._custody.node:
            return await self._live_view(volume)
        try:
            peer = self._peer(volume.grant.node)
            async with asyncio.timeout(ASIDE_SECONDS):
                return await peer.peer_volume(volume.name)
        except (PannierError, TimeoutError):
            return self._volume_view(volume)

    async def _has_copy(self, node: Node, volume: Volume) -> bool:
        if node.name == self._custody.node:
            return await self._copy_here(volume) is not None
        if not self._catalog.is_up(node.name):
            return False
        try:
            async with asyncio.timeout(ASIDE_SECONDS):
                view = await self._peers.to(node).peer_volume(volume.name)
        except (PannierError, TimeoutError):
            return False
        return node.name in (view.copies_on or [])

    async def _copy_here(self, volume: Volume) -> str | None:
        """The newest generation on this node, None without any."""
        generations = await self._generations_here(volume)
        return generations[-1] if generations else None

    async def _generations_here(self, volume: Volume) -> list[str]:
        driver = self._custody.drivers.get(volume.spec.driver)
        if driver is None:
            return []
        return [str(one) for one in (await driver.inspect(volume.id)).generations]

    def _copies(self, volume: Volume) -> list[CopyView]:
        now = boottime()
        return [
            CopyView(
                node=node,
                in_sync=node in volume.in_sync,
                generation=str(progress.generation) if progress.generation else None,
                lag_seconds=None
                if progress.current_at is None
                else round(max(now - progress.current_at, 0.0), 1),
                error=progress.error,
            )
            for node, progress in self._replicator.progress(volume).items()
            if node in volume.replicas
        ]

    def _peer(self, name: str) -> Peer:
        node = self._catalog.node(name)
        if node is None:
            raise PeerUnavailable(
                f"node {name} is not in this cluster any more", remedy="see pannier node ls"
            )
        return self._peers.to(node)

    def _volume_view(self, volume: Volume) -> VolumeView:
        return VolumeView(
            name=volume.name,
            id=volume.id,
            holder=volume.grant.node,
            holder_state="up" if self._catalog.is_up(volume.grant.node) else "down",
            epoch=volume.grant.epoch,
            driver=volume.spec.driver,
            options=describe_spec(volume.spec),
            in_sync=list(volume.in_sync),
            created_at=rfc3339(volume.created_at),
        )

    async def _live_view(self, volume: Volume) -> VolumeView:
        custody = self._custody
        quarantine = await quarantine_of(custody, volume)
        generations = [] if quarantine else await self._generations_here(volume)
        running = self._handovers.of(volume)
        calls, waiting = self._backlog(volume.name)
        transfer = None
        if running:
            transfer = TransferView(
                target=running.target.name,
                phase=running.phase,
                round=running.round,
                sent_bytes=running.sent_bytes,
                started_at=rfc3339(running.started_at),
            )
        return replace(
            self._volume_view(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            quarantine=quarantine,
            copies=self._copies(volume),
            used_bytes=await custody.driver(volume).used_bytes(volume.id),
            in_use_by=await custody.users(volume),
            mountpoint=str(custody.mounts.path(volume.name)),
            transfer=transfer,
            sync_calls=calls,
            sync_waiting_seconds=round(waiting, 3),
        )

    async def create_volume(
        self, name: str, options: Mapping[str, str], *, actor: str
    ) -> VolumeView:
        """Make a volume."""
        return self._volume_view(await self._volumes.create(name, options, actor=actor))

    async def recover_volume(self, name: str, *, accept_loss: bool, actor: str) -> VolumeView:
        """Give a lost holder's volume to the newest copy."""
        volume = await self._recovery.recover(name, accept_loss=accept_loss, actor=actor)
        return self._volume_view(volume)

    async def verify_volume(self, name: str) -> list[CheckView]:
        """Have every copy of a volume read to the last byte."""
        return await self._verification.everywhere(name)

    async def remove_volume(self, name: str, *, actor: str) -> TrashView:
        """Move a volume to the trash."""
        return _trash_view(await self._volumes.remove(name, actor=actor))

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncIterator[MoveProgress]:
        """Make ``node`` the holder, wherever the volume is now; progress as it goes."""
        volume = (await self._custody.fresh(name)).record
        target = self._known_node(node)
        if volume.grant.node == node:
            yield MoveProgress(
                phase="done", volume=name, source=node, target=node, pause_seconds=0.0
            )
            return
        if not self._catalog.is_up(target.name):
            raise Conflict(
                f"node {node} is down; volume {name} stays on {volume.grant.node}",
                remedy="start it again, or choose another: pannier node ls",
            )
        if volume.grant.node == self._custody.node:
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
            if answered:  # its own report: the target is away
                raise
            raise holder_unreachable(volume, error) from error

    async def services(self) -> list[ServiceView]:
        """The Swarm's services with volumes of ours."""
        return await self._services.all()

    def move_service(
        self,
        name: str,
        node: str,
        *,
        now: bool,
        stay: bool,
        timeout_seconds: float,
        actor: str,
    ) -> AsyncIterator[ServiceMoveProgress]:
        """Move a Swarm service with its volumes; progress as it goes."""
        wish = Wish(now=now, stay=stay, timeout_seconds=timeout_seconds, actor=actor)
        return self._services.move(name, node, wish=wish)

    async def history(self, name: str) -> list[EventView]:
        """What happened to a volume, oldest first; the trashed one of that name where no other is."""
        try:
            return history_of((await self._custody.fresh(name)).record)
        except VolumeNotFound:
            for volume in self._catalog.trashed():
                if name in (volume.name, volume.id):
                    return history_of(volume)
            raise

    async def trash(self) -> list[TrashView]:
        """Removed volumes that can be restored."""
        return [_trash_view(volume) for volume in await self._volumes.trash()]

    async def restore_volume(self, name_or_id: str, *, actor: str) -> VolumeView:
        """Bring a volume back from the trash."""
        return self._volume_view(await self._volumes.restore(name_or_id, actor=actor))

    async def doctor(self) -> list[FindingView]:
        """What is wrong and what to do."""
        return await self._doctor.examine()

    async def explain_volume(self, name: str) -> list[FindingView]:
        """Who holds a volume, what will happen next, and the one safe command."""
        fresh = True
        try:
            record = (await self._custody.fresh(name)).record
        except Unavailable:
            record, fresh = await self._volumes.find(name), False
        view = await self._from_holder(record)
        suspended = self._custody.suspended(record)
        return explain(record, view, is_up=self._catalog.is_up, fresh=fresh, suspended=suspended)

    async def events(self, *, follow: bool) -> AsyncIterator[EventView]:
        """What happened; with ``follow`` everything from now on too, without end."""
        for event in recent(self._catalog):
            yield event
        if follow:
            async for event in changes(self._catalog):
                yield event

    # -- for other nodes ------------------------------------------------------------------------

    async def peer_volume(self, name: str, *, peer: str) -> VolumeView:
        """Live facts: the holder's, or on any other node whether it has a copy."""
        volume = self._catalog.volume(name)
        if volume is None:
            raise no_such_volume(name)
        if volume.grant.node == self._custody.node:
            return await self._live_view(volume)
        generations = await self._generations_here(volume)
        return replace(
            self._volume_view(volume),
            generation=generations[-1] if generations else None,
            generations=generations,
            copies_on=[self._custody.node] if generations else [],
        )

    async def peer_node(self, *, peer: str) -> NodeView:
        """This node with its pool's figures, and what its engine can do."""
        view = self._node_view(self._known_node(self._custody.node))
        view = replace(view, disk_error=self._custody.lease.withheld)
        with suppress(EngineUnavailable, TimeoutError):
            async with asyncio.timeout(ENGINE_SECONDS):
                facts = await self._custody.engine.facts()
            view = replace(view, sync_obstacle=obstacle(facts))
        if not self._custody.drivers:
            return view  # its pool is not there: `doctor` says more
        capacity = await self._custody.drivers[self._custody.default_driver].capacity()
        return replace(
            view, pool_total_bytes=capacity.total_bytes, pool_free_bytes=capacity.free_bytes
        )

    async def peer_handover(self, name: str, *, epoch: int, peer: str) -> HandoverReply:
        """Another node wants the volume."""
        return await self._handovers.asked(name, epoch=epoch, peer=peer)

    async def peer_remove(self, name: str, *, volume_id: str, actor: str, peer: str) -> None:
        """Another node was asked to remove a volume that is held here."""
        await self._volumes.remove_here(name, volume_id, actor=actor)

    async def peer_take(
        self, name: str, *, epoch: int, generation: str | None, actor: str, peer: str
    ) -> VolumeView:
        """Another node needs a volume whose holder is gone, and this one has the best copy."""
        if generation is None:
            return self._volume_view(await self._takeover.take(name, epoch=epoch))
        volume = await self._recovery.take(
            name, epoch=epoch, generation=Generation.parse(generation), actor=actor
        )
        return self._volume_view(volume)

    async def peer_verify(self, name: str, *, peer: str) -> CheckView:
        """Another node was asked to have all copies of a volume read."""
        return await self._verification.here(name)

    async def peer_lost_copy(self, name: str, *, epoch: int, peer: str) -> None:
        """Another node has nothing of a volume that is held here, whatever the record says."""
        await self._verification.lost(name, epoch=epoch, peer=peer)

    async def peer_promise(
        self, volumes: Mapping[str, int], *, seconds: float, peer: str
    ) -> list[str]:
        """Another node holds these volumes and has lost the store."""
        return self._failsafe.promise(volumes, seconds=seconds, peer=peer)

    async def peer_create(
        self, name: str, options: Mapping[str, str], *, actor: str, peer: str
    ) -> VolumeView:
        """Another node was asked for a volume that shall be made here."""
        spec = parse_options(options, default_driver=self._custody.default_driver)
        if spec.nodes and self._custody.node not in spec.nodes:
            raise InvalidInput(f"nodes={','.join(spec.nodes)} does not name {self._custody.node}")
        volume = await self._volumes.create_here(name, spec, options, actor=actor)
        return self._volume_view(volume)

    async def peer_move(
        self, name: str, node: str, *, wait_seconds: float, actor: str, peer: str
    ) -> AsyncIterator[MoveProgress]:
        """Another node was asked to move a volume that is held here."""
        volume = (await self._custody.fresh(name)).record
        if volume.grant.node != self._custody.node:
            raise Conflict(
                f"volume {name} moved to node {volume.grant.node} meanwhile", remedy="ask again"
            )
        async for step in self._handovers.move(volume, node, wait_seconds=wait_seconds):
            yield step

    def peer_hook(self, service: str, *, moment: Moment, peer: str) -> AsyncIterator[HookView]:
        """Another node moves a service whose container runs here."""
        return self._services.hook_here(moment, service, peer=peer)


def _trash_view(volume: Volume) -> TrashView:
    removed_at = volume.removed_at or 0.0
    return TrashView(
        name=volume.name,
        id=volume.id,
        holder=volume.grant.node,
        removed_at=rfc3339(removed_at),
        expires_at=rfc3339(removed_at + TRASH_SECONDS),
    )
