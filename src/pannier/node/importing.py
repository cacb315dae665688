"""Importing: a volume out of files on this node, while they are in use for as long as can be.

1. A first pass copies everything; who uses the source goes on.
2. Its users end: a service that is to be switched is stopped, others are waited for.
3. A second pass copies what has changed since, and the flags of chattr. All files are read back from the disk and compared.
4. If nothing of the source was changed since the second pass began, the volume gets its name.
5. The service is started with it. If it does not come up, it gets the source again, and the volume goes to the trash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.contract.views import ImportProgress
from pannier.contract.words import ImportPhase
from pannier.core.errors import (
    AlreadyExists,
    NotFound,
    PannierError,
    PoolFull,
    Unavailable,
    VolumeInUse,
)
from pannier.core.importing import ImportSource, SourceKind, check_apart, check_import_options
from pannier.core.pace import NodePace
from pannier.core.service_spec import MountOf
from pannier.engine.base import Engine
from pannier.holding.filling import fill, followed
from pannier.holding.imports import Draft, Imports
from pannier.holding.volumes import Volumes
from pannier.host.clock import Clock
from pannier.storage.blocking import in_thread
from pannier.storage.tree import rsync
from pannier.swarm.service_switch import ServiceSwitches, Switch

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportWish:
    """What somebody asked for.

    Attributes:
        options: of the new volume, as they were typed.
        service: that is to be switched; None for none.
        wait_seconds: for those who use the source.
    """

    name: str
    source: ImportSource
    options: Mapping[str, str]
    service: str | None
    wait_seconds: float
    actor: str


class Importing:
    """Imports on this node. An import ends when nobody reads its progress any more."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        engine: Engine,
        use: Use,
        room: RoomGuard,
        imports: Imports,
        volumes: Volumes,
        switches: ServiceSwitches,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        self.cluster = cluster
        self.use = use
        self.imports = imports
        self.volumes = volumes
        self.switches = switches
        self.clock = clock
        self.pace = pace
        self._engine = engine
        self._room = room

    async def run_import(self, wish: ImportWish) -> AsyncGenerator[ImportProgress, None]:
        """Import, and report progress. See :meth:`~pannier.contract.operations.Operations.import_volume`."""
        await rsync.check_installed()
        check_import_options(wish.options)
        path = await self._path(wish)
        switch = await self._switch(wish, path)
        job = _Import(wish, path, switch, self)
        steps = followed(
            job.run(),
            name=f"import {wish.name}",
            progress=job.progress,
            look=self.pace.import_look,
            check=lambda: self._check_room(job),
        )
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def _path(self, wish: ImportWish) -> Path:
        """Where the source is.

        Raises:
            NotFound: there is none. AlreadyExists: the new name is that of another volume of Docker's.
        """
        source, here = wish.source, self.cluster.node
        if wish.name in await self._engine.other_volumes():
            raise AlreadyExists(
                f"Docker has a volume {wish.name} of another driver on node {here}, which would hide the new one",
                remedy="choose another name",
            )
        if source.kind is SourceKind.DIRECTORY:
            path = Path(source.place)
        else:
            found = {each.name: each for each in await self._engine.local_volumes()}.get(
                source.place
            )
            if found is None:
                raise NotFound(
                    f"node {here} has no local volume {source.place}",
                    remedy="docker volume ls on the node that has it; give the command there",
                )
            if not found.plain:
                raise NotFound(
                    f"local volume {source.place} has options: its files are elsewhere",
                    remedy="mount what it names, and import that: --from dir:/PATH",
                )
            path = found.folder
        if not await in_thread(path.is_dir):
            raise NotFound(
                f"there is no directory {path} on node {here}",
                remedy="give the command on the node that has it",
            )
        return await in_thread(path.resolve)

    async def _switch(self, wish: ImportWish, path: Path) -> Switch | None:
        if wish.service is None:
            return None
        places = frozenset({wish.source.place, str(path)})
        return await self.switches.find(wish.service, MountOf(wish.source, places))

    def _check_room(self, job: _Import) -> None:
        """Give up before the writers of other volumes have to stand still.

        Raises:
            PoolFull: the pool has no room for more.
        """
        if job.draft is not None and job.draft.driver.pool in self._room.short():
            raise PoolFull(
                f"the pool of node {self.cluster.node} has no room for {job.wish.source}; nothing was imported",
                remedy="make room: pannier volume trash shows what was removed; or enlarge the pool",
            )

    async def run(self) -> None:
        """Put away what imports have left that did not end, for ever: run as a task."""
        while True:
            for volume_id, note in self.imports.left().items():
                try:
                    if note.service:
                        await self.switches.start_again(note.service, note.replicas)
                        note = await self.imports.without_service(volume_id, note)
                    await self.imports.settle(volume_id, note)
                except (PannierError, OSError) as error:
                    log.warning("import.left", id=volume_id, error=str(error))
            await asyncio.sleep(self.pace.import_left)


@dataclass(slots=True)
class _Import:
    """One import.

    Attributes:
        path: of the source.
        draft: the new volume, once there is something of it.
    """

    wish: ImportWish
    path: Path
    switch: Switch | None
    around: Importing
    draft: Draft | None = None
    phase: ImportPhase = ImportPhase.COPYING
    _published: bool = False
    _users: list[str] = field(default_factory=list)
    _quiet_since: float | None = None
    _pause_seconds: float | None = None

    async def progress(self) -> ImportProgress:
        """How far it is."""
        used, draft = 0, self.draft
        if draft is not None:
            with suppress(PannierError, OSError):  # it may just be removed again
                used = await draft.driver.used_bytes(draft.volume.id)
        return ImportProgress(
            phase=self.phase,
            volume=self.wish.name,
            source=str(self.wish.source),
            node=self.around.cluster.node,
            used_bytes=used,
            in_use_by=list(self._users),
            service=self.wish.service,
            pause_seconds=self._pause_seconds,
        )

    async def run(self) -> None:
        """Do it. Raises the error that ended it; nothing is left of it then."""
        wish, imports = self.wish, self.around.imports
        async with imports.draft(
            wish.name, wish.options, origin=str(wish.source), actor=wish.actor
        ) as draft:
            self.draft = draft
            check_apart(self.path, *[each.resolve() for each in (draft.path, draft.driver.pool)])
            await rsync.copy(self.path, draft.path, in_use=True)
            if self.switch is None:
                await self._fill(draft)
                await imports.ended(draft)
            else:
                await rsync.copy(self.path, draft.path, in_use=True)  # less is left for the pause
                await self._fill_and_switch(draft, self.switch)
        if self._quiet_since is not None:
            self._pause_seconds = self.around.clock.now() - self._quiet_since
        self.phase = ImportPhase.DONE

    async def _fill_and_switch(self, draft: Draft, switch: Switch) -> None:
        """Whatever happens, the service has tasks again."""
        around = self.around
        noted = replace(draft.note, service=switch.service.id, replicas=switch.service.replicas)
        await around.imports.note(draft, noted)
        self._quiet_since = around.clock.now()
        switched = False
        try:
            self.phase = ImportPhase.WAITING
            await around.switches.stop(switch, within=self.wish.wait_seconds)
            await self._fill(draft)
            self.phase = ImportPhase.SWITCHING
            known = await around.switches.switch(switch, self.wish.name)
            switched = True
            if why := await around.switches.why_down(switch.service, known):
                switched = False
                name = switch.service.name
                raise Unavailable(
                    f"service {name} does not come up with volume {self.wish.name}: {why}",
                    remedy=f"docker service ps --no-trunc {name} shows more",
                )
        except BaseException as error:
            if switched:
                # Whoever asked has gone, or nobody can see whether it runs. It may have written to the volume.
                await around.imports.note(draft, replace(draft.note, service="", replicas=0))
                await around.imports.ended(draft)
                raise
            await self._put_back(switch, draft, error)
            if not self._published:
                raise
            left = await self._to_trash()
            await around.imports.ended(draft)
            if isinstance(error, PannierError):
                raise self._not_switched(error, left) from error
            raise
        await around.imports.ended(draft)

    async def _put_back(self, switch: Switch, draft: Draft, error: BaseException) -> None:
        """Give the service what it had.

        Raises:
            Unavailable: it cannot be had now, and is tried again by :meth:`Importing.run`.
        """
        try:
            await self.around.switches.put_back(switch)
        except PannierError as failed:
            raise Unavailable(
                f"{error}; and service {switch.service.name} could not be put back yet: {failed.message}",
                remedy="it is started again once the Swarm answers; see docker service ps",
            ) from error
        await self.around.imports.note(draft, replace(draft.note, service="", replicas=0))

    def _not_switched(self, error: PannierError, left: PannierError | None) -> PannierError:
        """The error of a service that has what it had before; ``left``: why the volume is not in the trash."""
        where = f"is still there: {left.message}" if left else "is in the trash"
        return type(error)(
            f"{error.message}; it has {self.wish.source} again, and volume {self.wish.name} {where}",
            remedy=error.remedy,
        )

    async def _to_trash(self) -> PannierError | None:
        """What the service did not come up with goes; its tasks may take a moment to end. Returns why it does not."""
        around = self.around
        until = around.clock.now() + around.pace.import_ends
        while True:
            try:
                await around.volumes.remove(self.wish.name, actor=self.wish.actor)
            except VolumeInUse as error:
                if around.clock.now() > until:
                    return error
                await asyncio.sleep(around.pace.import_look)
            except PannierError as error:
                return error
            else:
                return None

    async def _fill(self, draft: Draft) -> None:
        """Wait until nobody writes to the source, and give the volume its name once it is the same."""
        await self._wait_for_users()
        self.phase = ImportPhase.REST
        await fill(draft, self.path, imports=self.around.imports, comparing=self._compares)
        await self.around.imports.publish(draft)
        self._published = True

    def _compares(self) -> None:
        self.phase = ImportPhase.COMPARING

    async def _wait_for_users(self) -> None:
        around, clock = self.around, self.around.clock
        until = clock.now() + self.wish.wait_seconds
        while users := await around.use.writers_at(self.path):
            self.phase, self._users = ImportPhase.WAITING, users
            if clock.now() >= until:
                raise VolumeInUse(
                    f"{self.wish.source} is in use by {', '.join(users)}; nothing was imported",
                    remedy="stop that while the command waits (--wait), or let it stop a service: --switch-service",
                )
            await asyncio.sleep(around.pace.import_look)
        if self._users and self._quiet_since is None:
            self._quiet_since = clock.now()
        self._users = []
