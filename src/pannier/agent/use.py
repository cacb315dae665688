"""Whether a volume is in use on this node and by whom, and ending that use."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.freezing import Freezer
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import Mounts
from pannier.agent.usage import User
from pannier.core.errors import EngineUnavailable
from pannier.core.pace import AgentPace
from pannier.core.volume import Volume
from pannier.engine.base import Engine
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)


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
        kill: Callable[[int, int], None],
        clock: Clock,
        pace: AgentPace,
    ) -> None:
        """Put the parts together.

        Args:
            users_of: tells who uses a directory.
            kill: sends a signal to a process, as :func:`os.kill` does.
        """
        self._drivers = drivers
        self._mounts = mounts
        self._mount_ids = mount_ids
        self._engine = engine
        self._freezer = freezer
        self._users_of = users_of
        self._kill_process = kill
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
        """Processes that use the volume's tree or its mountpoint, as the kernel sees it."""
        tree = self._drivers.of(volume).data_path(volume.id, volume.grant.epoch)
        paths = [tree, self._mounts.path(volume.name)]
        return await asyncio.to_thread(self._users_of, paths, mount_root=self._mounts.root)

    async def users(self, volume: Volume) -> list[str]:
        """Who uses the volume on this node, in words for people; empty where nobody does."""
        named = await self._name_all(await self.processes(volume))
        if not named and self.starting(volume):
            named = ["a container that is being started"]
        return named

    async def in_use(self, volume: Volume) -> bool:
        """Whether anybody uses the volume on this node. Does not ask the engine, which may hang."""
        return self.starting(volume) or bool(await self.processes(volume))

    def starting(self, volume: Volume) -> bool:
        """Whether a container may be about to use the volume although no process shows it yet."""
        if self.awaited(volume):
            return True  # if two nodes want it at once, it must not go back and forth between them
        ages = self._mount_ids.ages(volume.name, self._clock.now())
        return any(age < self._pace.starting for age in ages.values())

    async def _name_all(self, users: list[User]) -> list[str]:
        one_each = {user.container or f"{user.pid} {user.command}": user for user in users}
        names = [await self._name_one(user) for user in one_each.values()]
        return list(dict.fromkeys(names))

    async def _name_one(self, user: User) -> str:
        if user.container:
            try:
                container = await self._engine.container(user.container)
            except EngineUnavailable:
                container = None
            if container:
                return f"container {container}"
            return f"container {user.container[:12]}"
        if user.pid == 0:
            return user.command  # a second mount of the tree: "mount at ...", as docker cp makes it
        return f"process {user.pid} ({user.command})"

    # -- standing still, and the end ------------------------------------------------------------

    def suspended(self, volume: Volume) -> bool:
        """Whether containers that use the volume were frozen, by this run or an earlier one."""
        return self._freezer.holds(volume.id)

    async def suspend(self, volume: Volume) -> None:
        """Stop all users of a volume that another node may have taken over.

        Containers are frozen, and processes outside of containers are killed. Users that start
        meanwhile are found by the next call.
        """
        users = [user for user in await self.processes(volume) if user.pid]
        if users and not self.suspended(volume):
            log.warning("volume.suspended", volume=volume.name, epoch=volume.grant.epoch)
        self._kill(volume, await asyncio.to_thread(self._freezer.freeze, volume.id, users))

    async def keep_suspended(self, volume: Volume) -> None:
        """Keep suspended what was, even if somebody thaws it; costs little."""
        if self.suspended(volume):
            await asyncio.to_thread(self._freezer.keep, volume.id)

    async def resume(self, volume: Volume) -> None:
        """Let go on what was suspended: this node is known to hold the volume."""
        if self.suspended(volume):
            log.info("volume.resumed", volume=volume.name, epoch=volume.grant.epoch)
        await asyncio.to_thread(self._freezer.thaw, volume.id)

    async def end(self, volume: Volume) -> None:
        """Unmount, and kill until nobody is left, since new processes may start meanwhile."""
        await asyncio.to_thread(self._mounts.unmount, volume.name, detach=True)
        self._mount_ids.forget(volume.name)
        for _ in range(self._pace.end_tries):
            users = [user for user in await self.processes(volume) if user.pid]
            if not users:
                break
            self._kill(volume, users)
            # A killed process that is frozen may end only when it is thawed; it does not run any more.
            await asyncio.to_thread(self._freezer.thaw, volume.id)
            await asyncio.sleep(self._pace.end_pause)
        else:
            log.error("volume.users-left", volume=volume.name, pids=[user.pid for user in users])
        await asyncio.to_thread(self._freezer.thaw, volume.id)

    def _kill(self, volume: Volume, users: Sequence[User]) -> None:
        for user in users:
            with suppress(ProcessLookupError):
                self._kill_process(user.pid, signal.SIGKILL)
            log.warning("volume.user-killed", volume=volume.name, pid=user.pid)
