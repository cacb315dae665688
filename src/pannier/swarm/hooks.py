"""Commands that containers on this node want to be run in them when their service is moved.

The node that runs the container takes the command from that container's own labels: another node can
only ask for a service's hook, never for a command of its choice. The node that moves the service reads
the pre-move hook's stream for as long as the move goes on. If it stops reading, for whatever reason, and
the container still runs, the move has failed, and the post-move hook is run in the container. So no
container stays quiet because a command was interrupted, or because a daemon or a machine died. The
ids of containers whose pre-move hook was begun are kept in a file on tmpfs: a running container does not
outlast a boot either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import structlog

from pannier.agent.hooks import HookNotes, run_hook
from pannier.cluster.catalog import Catalog
from pannier.contract.views import HookView
from pannier.core.errors import Conflict, EngineUnavailable, NotFound, PannierError
from pannier.core.hooks import Hook, Moment, read_hooks
from pannier.core.pace import SwarmPace
from pannier.engine.base import Container, Engine
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)

ATTEMPTS = 30


class Hooks:
    """The hooks of this node's containers.

    Args:
        file: keeps the ids of containers whose pre-move hook was begun.
    """

    def __init__(
        self,
        *,
        node: str,
        engine: Engine,
        catalog: Catalog,
        file: StateFile,
        pace: SwarmPace,
    ) -> None:
        self._node = node
        self._engine = engine
        self._catalog = catalog
        self._pace = pace
        self._begun = HookNotes(file)
        self._held: set[str] = set()
        self._left: asyncio.Queue[str] = asyncio.Queue()
        for container in self._begun.all():
            self._left.put_nowait(container)

    async def run(self) -> None:
        """Run the post-move hook after each move that was given up, for ever: run as a task."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._resume(await self._left.get()))

    async def before(self, service: str, *, peer: str) -> AsyncGenerator[HookView, None]:
        """Run the pre-move hook of the service's container here, for ``peer``, which moves it.

        Yields when the hook begins and when it has ended, and then ends only when ``peer`` is lost.
        Without a hook it ends at once.

        Raises:
            NotFound: no container of the service runs here.
            Conflict: it is being moved already.
            InvalidInput: the container's labels ask for a hook that cannot be read.
            EngineUnavailable: the engine does not answer.
            OutcomeUnknown: as :meth:`~pannier.engine.base.Engine.execute`.
        """
        container = await self._container(service)
        hook = read_hooks(container.labels).get(Moment.BEFORE)
        if hook is None:
            return
        await self._until_free(container, service)
        self._held.add(container.id)
        self._begun.begin(container.id)
        try:
            async for view in self._run(container, hook, Moment.BEFORE):
                yield view
            while peer == self._node or self._catalog.is_up(peer):
                await asyncio.sleep(self._pace.hook_poll)
        finally:
            self._held.discard(container.id)
            self._left.put_nowait(container.id)

    async def after(self, service: str) -> AsyncGenerator[HookView, None]:
        """Run the post-move hook of the service's container here; yields as :meth:`before`.

        Raises:
            NotFound, InvalidInput, EngineUnavailable, OutcomeUnknown: as :meth:`before`.
        """
        container = await self._container(service)
        hook = read_hooks(container.labels).get(Moment.AFTER)
        if hook is not None:
            async for view in self._run(container, hook, Moment.AFTER):
                yield view

    async def _until_free(self, container: Container, service: str) -> None:
        """Wait until the end of an earlier move, given up just now, is noticed and undone."""
        for _ in range(round(self._pace.hook_notice / self._pace.hook_poll)):
            if container.id not in self._held:
                break
            await asyncio.sleep(self._pace.hook_poll)
        else:
            raise Conflict(
                f"service {service} is being moved already", remedy="wait until that has ended"
            )
        while container.id in self._begun:
            await asyncio.sleep(self._pace.hook_poll)

    async def _container(self, service: str) -> Container:
        for container in await self._engine.containers_of(service):
            if container.running:
                return container
        raise NotFound(
            f"no container of service {service} runs on node {self._node}",
            remedy=f"see docker service ps {service}",
        )

    async def _run(
        self, container: Container, hook: Hook, moment: Moment
    ) -> AsyncGenerator[HookView, None]:
        began = HookView(hook=moment, container=container.name, abort=hook.abort)
        yield began
        end = await run_hook(self._engine, container, hook)
        yield replace(began, ended=True, failure=end.failure, output=list(end.output))

    async def _resume(self, container: str) -> None:
        """End a move: if the container still runs, the move was given up, and the post-move hook is run."""
        for _ in range(ATTEMPTS):
            try:
                await self._run_after(container)
                break
            except EngineUnavailable as error:
                log.info("hook.again", container=container[:12], why=error.message)
                await asyncio.sleep(self._pace.hook_retry)
            except PannierError as error:
                log.warning("hook.failed", container=container[:12], error=str(error))
                break
        self._begun.end(container)

    async def _run_after(self, container_id: str) -> None:
        container = await self._engine.container(container_id)
        if container is None or not container.running:
            return
        hook = read_hooks(container.labels).get(Moment.AFTER)
        if hook is not None:
            async for view in self._run(container, hook, Moment.AFTER):
                if view.failure:
                    log.warning("hook.failed", container=container.name, error=view.failure)
