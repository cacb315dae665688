"""Swarm services with volumes of ours: what there is, and moving them from node to node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

import structlog

from pannier.cluster.catalog import Catalog
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.views import (
    HookView,
    MoveProgress,
    NodeView,
    ServiceMoveProgress,
    ServiceView,
)
from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView
from pannier.contract.words import ServicePhase
from pannier.core.errors import Conflict, NodeNotFound, VolumeInUse
from pannier.core.hooks import Moment, read_hooks
from pannier.core.pace import SwarmPace
from pannier.core.service_move import (
    TIED,
    check_capacity,
    check_kind,
    check_room,
    check_volumes,
    find_service,
    find_target,
    is_same,
    is_tied,
)
from pannier.core.service_volumes import volumes_of, volumes_that_move
from pannier.core.swarm import SwarmNode, SwarmService, SwarmTask
from pannier.core.volume import Volume
from pannier.engine.base import Swarm
from pannier.host.clock import Clock
from pannier.swarm.hooks import Hooks
from pannier.swarm.service_move import Relocation
from pannier.swarm.service_plan import Plan, Wish

log = structlog.get_logger(__name__)

STARTING = "a container that is being started"


_Shown = LiveVolumeView | RememberedVolumeView


class VolumesAnywhere(Protocol):
    """What a service's move asks of volumes and nodes, wherever they are."""

    async def node(self, name: str) -> NodeView:
        """One node, with its pool's figures if it answers.

        Raises:
            NodeNotFound: there is none of that name.
            StorageError: it is this node, and its pool cannot be read.
        """
        ...

    async def volume(self, name: str) -> _Shown:
        """One volume, with what only its holder knows if that node answers.

        Raises:
            VolumeNotFound: there is none of that name.
            StoreUnavailable: this node does not know it, and the store does not answer.
            NotHolder: this node holds it, and has no driver for it.
            StorageError: its data on this node cannot be read.
        """
        ...

    def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncIterator[MoveProgress]:
        """Make ``node`` the volume's holder, and report progress.

        Raises:
            PannierError: as :meth:`pannier.contract.operations.Operations.move_volume`.
        """
        ...


class Services:
    """The services of the Swarm that this node is a manager of, and the moves that it leads.

    Args:
        node: this node's name.
        cluster: volumes and nodes wherever they are, as a move asks for them.
    """

    def __init__(
        self,
        *,
        node: str,
        swarm: Swarm,
        catalog: Catalog,
        hooks: Hooks,
        peers: Peers,
        cluster: VolumesAnywhere,
        clock: Clock,
        pace: SwarmPace,
    ) -> None:
        self._node = node
        self.swarm = swarm
        self._catalog = catalog
        self._hooks = hooks
        self._peers = peers
        self._cluster = cluster
        self.clock = clock
        self.pace = pace
        self._moves: dict[str, _Move] = {}

    async def all(self) -> list[ServiceView]:
        """The services with volumes of ours, by name.

        Raises:
            Conflict: this node is no Swarm manager.
        """
        services, nodes = await self._services(), await self.swarm.nodes()
        tasks = await self.swarm.tasks()
        found = [self._view(service, tasks, nodes) for service in services]
        return sorted((view for view in found if view), key=lambda view: view.name)

    def _view(
        self, service: SwarmService, tasks: list[SwarmTask], nodes: list[SwarmNode]
    ) -> ServiceView | None:
        """None for a service that has no volumes of ours."""
        mounted = volumes_of(service, tasks, nodes, is_ours=self._catalog.has_volume)
        if not mounted and all(mount.driverless for mount in service.mounts):
            return None
        running = [
            t for t in tasks if t.service == service.id and t.wanted and t.state == "running"
        ]
        volumes = [volume for each in mounted if (volume := self._catalog.volume(each.name))]
        whole = [{volume.grant.node, *volume.in_sync} for volume in volumes]
        return ServiceView(
            name=service.name,
            nodes=sorted({self._name(task.node, nodes) for task in running}),
            volumes=[volume.name for volume in volumes],
            copies_on=sorted(set.intersection(*whole)) if whole else [],
            tied_to=service.labels.get(TIED),
        )

    def _name(self, swarm_id: str, nodes: list[SwarmNode]) -> str:
        """A Swarm node's name: Pannier's, or else its host name."""
        for member in nodes:
            if member.id == swarm_id:
                same = [node.name for node in self._catalog.nodes() if is_same(node, member)]
                return same[0] if same else member.hostname
        return swarm_id

    async def _services(self) -> list[SwarmService]:
        try:
            return await self.swarm.services()
        except Conflict as error:
            raise await self._no_manager() from error

    async def _no_manager(self) -> Conflict:
        member = await self.swarm.member()
        if member is None:
            return Conflict(
                f"node {self._node} is in no Swarm", remedy="docker swarm init, or join one"
            )
        managers = [n.name for n in self._catalog.nodes() if n.swarm in member.managers]
        return Conflict(
            f"node {self._node} is no manager of its Swarm",
            remedy=f"do it on {' or '.join(managers)}" if managers else "do it on a manager",
        )

    async def mounted(self, name: str) -> tuple[SwarmService, tuple[str, ...]]:
        """A service, and the names of the volumes of ours that its tasks mount.

        Raises:
            NotFound: the Swarm has no such service. Conflict: this node is no Swarm manager.
            EngineUnavailable: the engine does not answer, or the Swarm has no leader.
        """
        service = find_service(name, await self._services())
        return service, await self._volumes_of(service)

    async def mounting(self, volume: str) -> list[SwarmService]:
        """The services whose tasks mount a volume. Raises as :meth:`mounted`."""
        services = await self._services()
        volumes = [await self._volumes_of(service) for service in services]
        return [
            service for service, names in zip(services, volumes, strict=True) if volume in names
        ]

    async def _volumes_of(self, service: SwarmService) -> tuple[str, ...]:
        tasks, nodes = await self.swarm.tasks(service=service.id), await self.swarm.nodes()
        mounted = volumes_of(service, tasks, nodes, is_ours=self._catalog.has_volume)
        return tuple(each.name for each in mounted if self._catalog.has_volume(each.name))

    # -- moving ---------------------------------------------------------------------------------

    async def move(
        self, service: str, node: str, *, wish: Wish
    ) -> AsyncGenerator[ServiceMoveProgress, None]:
        """Move a service with its volumes, reporting each step.

        Called again while a move is under way, it reports that one. When nobody reads any more, a move
        is given up if Swarm has not been told yet; after that it goes on.

        Raises:
            Conflict: it is on its way to another node.
            PannierError: what is in the way, before anything is changed; or what ended the move.
        """
        move = self._under_way(service)
        if move is None:
            plan = await self._check(service, node)
            if _is_there(plan, wish):
                yield _there(plan)
                return
            move = self._under_way(plan.service.name) or self._begin(plan, wish)
        if move.relocation.target != node:
            raise Conflict(
                f"service {service} is on its way to node {move.relocation.target}",
                remedy="wait until it is there",
            )
        async with aclosing(move.follow()) as steps:
            async for step in steps:
                yield step

    def _under_way(self, service: str) -> _Move | None:
        move = self._moves.get(service)
        return None if move is None or move.ended else move

    def _begin(self, plan: Plan, wish: Wish) -> _Move:
        name = plan.service.name
        move = self._moves[name] = _Move(Relocation(plan, wish, self))
        log.info("service-move.begins", service=name, to=plan.target.node.name, by=wish.actor)
        return move

    async def close(self) -> None:
        """End all moves here. What Swarm was told goes on without us."""
        for move in list(self._moves.values()):
            await move.end()

    async def move_volume(
        self, name: str, node: str, *, wait_seconds: float, actor: str
    ) -> AsyncGenerator[MoveProgress, None]:
        """See :class:`~pannier.swarm.service_plan.Surroundings`."""
        steps = self._cluster.move_volume(name, node, wait_seconds=wait_seconds, actor=actor)
        async for step in steps:
            yield step

    async def plan(self, service: str, node: str) -> Plan:
        """See :class:`~pannier.swarm.service_plan.Surroundings`."""
        found = find_service(service, await self._services())
        nodes = await self.swarm.nodes()
        target = find_target(node, self._catalog.nodes(), nodes, is_up=self._catalog.is_up)
        check_kind(found)
        tasks = await self.swarm.tasks(service=found.id)
        mounted = volumes_that_move(
            found, tasks, nodes, target=target.swarm, is_ours=self._catalog.has_volume
        )
        volumes = tuple(volume.name for volume in mounted)
        check_volumes(found, volumes, target.swarm)
        read_hooks(found.container_labels)
        running = [task for task in tasks if task.wanted and task.state == "running"]
        return Plan(
            service=found,
            volumes=volumes,
            target=target,
            task=running[0] if running else None,
            source=self._name(running[0].node, nodes) if running else None,
            tasks=tuple(tasks),
            nodes=tuple(nodes),
        )

    async def check_capacity(self, plan: Plan) -> None:
        """See :class:`~pannier.swarm.service_plan.Surroundings`."""
        by_id = {each.id: each for each in await self._services()}
        there = [
            (task, by_id.get(task.service))
            for task in await self.swarm.tasks()
            if task.node == plan.target.swarm.id and task.wanted and not task.ended
        ]
        others = [(task, of) for task, of in there if task.service != plan.service.id]
        check_capacity(plan.service, plan.target.swarm, others)

    async def _check(self, service: str, node: str) -> Plan:
        """Plan a move, and check that the target has room and that the volumes can come along."""
        plan = await self.plan(service, node)
        await self.check_capacity(plan)
        volumes = [self._volume(name, plan.service) for name in plan.volumes]
        views = await asyncio.gather(*(self._cluster.volume(each.name) for each in volumes))
        for volume, view in zip(volumes, views, strict=True):
            await self._check_others(plan.service, volume, view)
        used = [(volume, view.used_bytes or 0) for volume, view in zip(volumes, views, strict=True)]
        room = await self._cluster.node(plan.target.node.name)
        check_room(plan.target, used, free_bytes=room.pool_free_bytes)
        return plan

    async def _check_others(self, service: SwarmService, volume: Volume, view: _Shown) -> None:
        """Refuse if another container uses the volume: it moves only when nobody uses it."""
        others = _others(service, view)
        if others:  # a process that is just ending is not recognized as its container's any more
            await asyncio.sleep(self.pace.move_again)
            others &= _others(service, await self._cluster.volume(volume.name))
        if others:
            raise VolumeInUse(
                f"volume {volume.name} of service {service.name} is also in use on node "
                f"{volume.grant.node} by {', '.join(sorted(others))}",
                remedy="stop that first: the volume moves when nobody uses it",
            )

    def _volume(self, name: str, service: SwarmService) -> Volume:
        volume = self._catalog.volume(name)
        if volume is None:
            raise Conflict(
                f"service {service.name} mounts volume {name}, which does not exist yet",
                remedy="see pannier volume ls, and docker service ps " + service.name,
            )
        if not self._catalog.is_up(volume.grant.node):
            down = NodeNotFound(f"node {volume.grant.node} is down")
            raise holder_unreachable(volume, down)
        return volume

    # -- hooks ----------------------------------------------------------------------------------

    async def hook(
        self, moment: Moment, service: str, *, node: str
    ) -> AsyncGenerator[HookView, None]:
        """See :class:`~pannier.swarm.service_plan.Surroundings`."""
        if node == self._node:
            here = self.hook_here(moment, service, peer=node)
        else:
            there = self._catalog.node(node)
            if there is None:
                raise NodeNotFound(f"there is no node {node}", remedy="see pannier node ls")
            here = self._peers.to(there).peer_hook(service, hook=moment)
        async with aclosing(here) as views:
            async for view in views:
                yield view

    def hook_here(
        self, moment: Moment, service: str, *, peer: str
    ) -> AsyncGenerator[HookView, None]:
        """Run a hook of the service's container on this node, for ``peer``."""
        if moment is Moment.BEFORE:
            return self._hooks.before(service, peer=peer)
        return self._hooks.after(service)


class _Move:
    """A move, and how many follow it."""

    def __init__(self, relocation: Relocation) -> None:
        self.relocation = relocation
        self._watchers = 0
        self._task = asyncio.create_task(relocation.run(), name="service-move")
        self._task.add_done_callback(self._tell)

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self._task.done()

    def _tell(self, task: asyncio.Task[None]) -> None:
        name = self.relocation.name
        if task.cancelled():
            log.info("service-move.given-up", service=name)
        elif error := task.exception():
            log.warning("service-move.failed", service=name, error=str(error))
        else:
            log.info("service-move.done", service=name, to=self.relocation.target)

    async def follow(self) -> AsyncGenerator[ServiceMoveProgress, None]:
        """Report its progress until it ends. Raises the error that ended it."""
        relocation, task = self.relocation, self._task
        self._watchers += 1
        try:
            while not task.done():
                yield relocation.progress()
                relocation.changed.clear()
                waiter = asyncio.ensure_future(relocation.changed.wait())
                await asyncio.wait({task, waiter}, timeout=1.0, return_when="FIRST_COMPLETED")
                waiter.cancel()
        finally:
            self._watchers -= 1
            if not self._watchers and not relocation.committed:
                task.cancel()
        if task.cancelled():
            raise Conflict("the move was given up", remedy="nothing was changed; do it again")
        task.result()
        yield relocation.progress()

    async def end(self) -> None:
        """Give it up; what Swarm was told goes on without us."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _is_there(plan: Plan, wish: Wish) -> bool:
    """Whether there is nothing left to do."""
    here = plan.task is not None and plan.task.node == plan.target.swarm.id
    return here and not is_tied(plan.service) and not wish.stay


def _there(plan: Plan) -> ServiceMoveProgress:
    return ServiceMoveProgress(
        phase=ServicePhase.DONE,
        service=plan.service.name,
        source=plan.source,
        target=plan.target.node.name,
        pause_seconds=0.0,
    )


def _others(service: SwarmService, view: _Shown) -> set[str]:
    """Who uses a volume besides the service."""
    mine = f"(service {service.name})"
    return {user for user in view.in_use_by or [] if mine not in user and user != STARTING}
