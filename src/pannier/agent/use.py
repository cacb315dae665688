"""Whether a volume is in use on this node and by whom, and ending that use."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.freezing import Freezer
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import Mounts
from pannier.agent.usage import Contact, User
from pannier.core.errors import EngineUnavailable, PannierError
from pannier.core.pace import AgentPace
from pannier.core.volume import Volume
from pannier.engine.base import Engine
from pannier.host.clock import Clock
from pannier.host.killing import Kill
from pannier.host.threads import in_own_thread
from pannier.storage.base import SparseDriver

log = structlog.get_logger(__name__)

_FOR_ROOM = "room"
"""Under which name the freezer keeps what is frozen for lack of room. Volumes' ids have a dot. One reason's
end must not thaw what stands still for another."""


class UsersOf(Protocol):
    """Who uses any of some directories now; see :func:`pannier.agent.usage.users_of`."""

    def __call__(self, paths: Sequence[Path], *, mount_root: Path) -> list[User]:
        """Processes that use any of ``paths``.

        Raises:
            StorageError: a path lies under no mount.
        """
        ...


class Use:
    """Who uses the volumes of this node. /proc tells it; Docker's mount ids are only hints."""

    def __init__(
        self,
        *,
        drivers: Drivers,
        mounts: Mounts,
        mount_ids: MountIds,
        engine: Engine,
        freezer: Freezer,
        users_of: UsersOf,
        kill: Kill,
        clock: Clock,
        pace: AgentPace,
    ) -> None:
        """Put the parts together.

        Args:
            users_of: tells who uses a directory.
            kill: kills processes, as :func:`pannier.host.killing.kill` does.
        """
        self._drivers = drivers
        self._mounts = mounts
        self._mount_ids = mount_ids
        self._engine = engine
        self._freezer = freezer
        self._users_of = users_of
        self._kill_processes = kill
        self._clock = clock
        self._pace = pace
        self._released: dict[str, asyncio.Event] = {}
        self._awaited: Counter[str] = Counter()

    # -- Docker's hints -------------------------------------------------------------------------

    @contextmanager
    def awaiting(self, name: str) -> Iterator[None]:
        """A Mount of the volume is under way in this block."""
        self._awaited[name] += 1
        try:
            yield
        finally:
            self._awaited[name] -= 1

    def awaited(self, volume: Volume) -> bool:
        """Whether a Mount waits for the volume: then this node must not give it away by itself."""
        return self._awaited[volume.name] > 0

    def begins(self, volume: Volume, mount_id: str) -> None:
        """Docker is given the volume's path."""
        self._mount_ids.add(volume.name, mount_id, self._clock.now())

    def ends(self, name: str, mount_id: str) -> None:
        """Docker gave a volume's path back, or was never given it."""
        self._mount_ids.discard(name, mount_id)

    def forget(self, volume: Volume) -> None:
        """Drop Docker's hints about a volume that is gone."""
        self._mount_ids.forget(volume.name)

    def released(self, volume: Volume) -> asyncio.Event:
        """Set at each Unmount, for whoever waits for the end of use."""
        return self._released.setdefault(volume.id, asyncio.Event())

    # -- who it is ------------------------------------------------------------------------------

    async def processes(self, volume: Volume) -> list[User]:
        """Processes that use the volume's tree or its mountpoint, or look on, as the kernel sees it."""
        return await self._using([volume])

    async def _using(self, volumes: Sequence[Volume]) -> list[User]:
        paths = self._paths(volumes)
        return await in_own_thread(partial(self._users_of, paths, mount_root=self._mounts.root))

    def _paths(self, volumes: Sequence[Volume]) -> list[Path]:
        paths = []
        for volume in volumes:
            paths += [self._drivers.place(volume), self._mounts.path(volume.name)]
        return paths

    async def users(self, volume: Volume) -> list[str]:
        """Who uses the volume on this node, in words for people; empty where nobody does.

        Who only looks on is none of them.
        """
        named = await self.name_all(_who_write(await self.processes(volume)))
        if not named and self.starting(volume):
            named = ["a container that is being started"]
        return named

    async def writers_at(self, path: Path) -> list[str]:
        """Who could write to a directory that is no volume of ours, in words for people.

        A second mount of it on this machine is nobody who writes.
        """
        found = await in_own_thread(partial(self._users_of, [path], mount_root=self._mounts.root))
        return await self.name_all([user for user in _who_write(found) if user.pid])

    async def onlookers(self, volume: Volume) -> list[str]:
        """Who looks on (:class:`~pannier.agent.usage.User`), in words for people."""
        found = [user for user in await self.processes(volume) if user.contact is Contact.LOOKS_ON]
        return await self.name_all(found)

    async def readers(self, volume: Volume) -> list[str]:
        """Who reads what is behind an attached volume, which only the kernel may, in words for people."""
        driver = self._drivers.of(volume)
        if not isinstance(driver, SparseDriver) or volume.id not in await driver.attached():
            return []
        paths = [driver.behind(volume.id, volume.grant.epoch)]
        found = await in_own_thread(partial(self._users_of, paths, mount_root=self._mounts.root))
        return await self.name_all(found)

    async def in_use(self, volume: Volume) -> bool:
        """Whether anybody uses the volume on this node. Does not ask the engine, which may hang.

        Who only looks on does not count: a volume may be given away, and they keep what they have.
        """
        return self.starting(volume) or bool(_who_write(await self.processes(volume)))

    async def is_seen(self, volume: Volume) -> bool:
        """Whether anybody uses the volume on this node, or looks on."""
        return self.starting(volume) or bool(await self.processes(volume))

    def starting(self, volume: Volume) -> bool:
        """Whether a container may be about to use the volume although no process shows it yet."""
        # While it is awaited: if two nodes want it at once, it must not go back and forth between them.
        return self.awaited(volume) or self.was_given(volume)

    def was_given(self, volume: Volume) -> bool:
        """Whether the engine got the path so short a time ago that its container may not run yet."""
        ages = self._mount_ids.ages(volume.name, self._clock.now())
        return any(age < self._pace.starting for age in ages.values())

    def engine_uses(self, volume: Volume) -> bool:
        """Whether the engine asked for the volume and did not give it back: a hint, which may be wrong."""
        return bool(self._mount_ids.ages(volume.name, self._clock.now()))

    async def name_all(self, users: Sequence[User]) -> list[str]:
        """The same users in words for people, each container once."""
        one_each = {user.container or f"{user.pid} {user.command}": user for user in users}
        names = [await self._name_one(user) for user in one_each.values()]
        return list(dict.fromkeys(names))

    async def _name_one(self, user: User) -> str:
        if user.container:
            return await self.name_container(user.container)
        if user.pid == 0:
            return user.command  # a second mount of the tree: "mount at ...", as docker cp makes it
        return f"process {user.pid} ({user.command})"

    async def name_container(self, ident: str) -> str:
        """A container in words for people."""
        try:
            container = await self._engine.container(ident)
        except EngineUnavailable:
            container = None
        return f"container {container or ident[:12]}"

    # -- standing still, and the end ------------------------------------------------------------

    def suspended(self, volume: Volume) -> bool:
        """Whether containers that use the volume were frozen, by this run or an earlier one."""
        return self._freezer.holds(volume.id)

    async def suspend(self, volume: Volume) -> None:
        """Stop all users of a volume that another node may have taken over.

        Containers are frozen, and processes outside of containers are killed. Users that start
        meanwhile are found by the next call. Who only looks on goes on.
        """
        users = [user for user in _who_write(await self.processes(volume)) if user.pid]
        if users and not self.suspended(volume):
            log.warning("volume.suspended", volume=volume.name, epoch=volume.grant.epoch)
        await self._kill(
            volume, await in_own_thread(partial(self._freezer.freeze, volume.id, users))
        )

    async def keep_suspended(self, volume: Volume) -> None:
        """Keep suspended what was, even if somebody thaws it; costs little."""
        if self.suspended(volume):
            await in_own_thread(partial(self._freezer.keep, volume.id))

    async def resume(self, volume: Volume) -> None:
        """Let go on what was suspended: this node is known to hold the volume."""
        if self.suspended(volume):
            log.info("volume.resumed", volume=volume.name, epoch=volume.grant.epoch)
        await in_own_thread(partial(self._freezer.thaw, volume.id))

    async def halt(self, volumes: Sequence[Volume], *, at_once: bool) -> frozenset[str]:
        """Freeze the containers that use any of some volumes, since their pool is full.

        Nobody is killed for that. Returns the ids of the volumes that others use, too: those cannot be
        frozen, or may be about to begin. So it is with containers that the engine may be starting.

        Args:
            at_once: do not wait for the engine's word on which of its containers run.
        """
        starting = [volume for volume in volumes if self.starting(volume)]
        if not at_once:
            settled = await asyncio.gather(*map(self._all_run, starting))
            starting = [each for each, runs in zip(starting, settled, strict=True) if not runs]
        left = {volume.id for volume in starting}
        old = [volume for volume in volumes if volume.id not in left]
        users = _who_write(await self._using(old))
        if await in_own_thread(partial(self._freeze_for_room, users)):
            return frozenset(left)
        for volume in old:
            users = _who_write(await self.processes(volume))
            if not await in_own_thread(partial(self._freeze_for_room, users)):
                left.add(volume.id)
        return frozenset(left)

    async def _all_run(self, volume: Volume) -> bool:
        """Whether all who got the volume are containers that the engine has started. It may hang."""
        users = _who_write(await self.processes(volume))
        try:
            async with asyncio.timeout(self._pace.room_engine):
                found = await self._engine.containers_using(volume.name)
        except (PannierError, TimeoutError):
            return False
        running = {container.id for container in found if container.running}
        mounts = self._mount_ids.ages(volume.name, self._clock.now())  # one for each container
        return {user.container for user in users} <= running and len(mounts) <= len(running)

    def _freeze_for_room(self, users: Sequence[User]) -> bool:
        """Whether all of them are frozen now. A second mount, as docker cp makes it, cannot be."""
        processes = [user for user in users if user.pid]
        left = self._freezer.freeze(_FOR_ROOM, processes)
        return not left and len(processes) == len(users)

    async def keep_halted(self) -> None:
        """Keep frozen what :meth:`halt` froze, even if somebody thaws it; costs little."""
        if self._freezer.holds(_FOR_ROOM):
            await in_own_thread(partial(self._freezer.keep, _FOR_ROOM))

    async def let_go_on(self) -> None:
        """End :meth:`halt`: there is room again. What is suspended for another reason stays so."""
        if self._freezer.holds(_FOR_ROOM):
            await in_own_thread(partial(self._freezer.thaw, _FOR_ROOM))

    async def end(self, volume: Volume) -> None:
        """Unmount, and kill until no user is left, since new processes may start meanwhile.

        Who only looks on keeps what it has. A disk that hangs may hold up the unmounting, and does not hold up the rest.
        """
        unmounting = in_own_thread(partial(self._mounts.unmount, volume.name, detach=True))
        await asyncio.wait((unmounting,), timeout=self._pace.end_patience)
        self._mount_ids.forget(volume.name)
        for _ in range(self._pace.end_tries):
            users = [user for user in _who_write(await self.processes(volume)) if user.pid]
            if not users:
                break
            await self._kill(volume, users)
            # A killed process that is frozen may end only when it is thawed; it does not run any more.
            await self._let_end(volume)
            await asyncio.sleep(self._pace.end_pause)
        else:
            log.error("volume.users-left", volume=volume.name, pids=[user.pid for user in users])
        await self._let_end(volume)
        await unmounting

    async def _let_end(self, volume: Volume) -> None:
        """Thaw what keeps killed processes from ending; none of them runs any more."""
        await in_own_thread(partial(self._freezer.thaw, volume.id))
        await self.keep_halted()  # others' containers stay as they are
        driver = self._drivers.get(volume.spec.driver)
        if isinstance(driver, SparseDriver) and driver.name not in self._drivers.hanging:
            await driver.thaw(volume.id)

    async def _kill(self, volume: Volume, users: Sequence[User]) -> None:
        """Kill those who still use the volume. One that has begun since is found by the caller's next look."""
        look = partial(self._users_of, self._paths([volume]), mount_root=self._mounts.root)
        pids = [user.pid for user in users]
        found = lambda: [user.pid for user in _who_write(look())]  # noqa: E731
        for pid in await in_own_thread(partial(self._kill_processes, pids, found=found)):
            log.warning("volume.user-killed", volume=volume.name, pid=pid)


def _who_write(users: Sequence[User]) -> list[User]:
    """Without those who only look on."""
    return [user for user in users if user.contact is not Contact.LOOKS_ON]
