"""Keeping pools from getting full: an image's file system takes a full pool for a broken disk.

Images may be larger, all together, than their pool. Before it is full, everybody who writes to one stands
still until there is room again: containers are frozen, and where processes outside of containers write,
the image's file system is. The pool then has enough left for all that the kernel still has to write.
How much that is, and when to look again, is decided in :mod:`pannier.core.room`.

Also here: what files no longer need goes back to the pool, and an image of which the disk refused a write
is mounted anew.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.pace import AgentPace
from pannier.core.room import Room, RoomLevel, RoomPlan, plan, shrinking
from pannier.core.size import format_size
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.storage.base import SparseDriver

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Too little room in a pool. ``looked``: the time since boot of the look that found it."""

    level: RoomLevel
    looked: float


class RoomGuard:
    """Watches over the pools of this node that images share. Each ``keep`` method is a task, for ever."""

    def __init__(
        self, *, cluster: Cluster, drivers: Drivers, custody: Custody, use: Use, clock: Clock,
        pace: AgentPace,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._drivers = drivers
        self._custody = custody
        self._use = use
        self._clock = clock
        self._pace = pace
        self._pools: dict[str, _Pool] = {}
        self._scarce = asyncio.Event()
        self._notes: asyncio.Queue[tuple[_Pool, str, str]] = asyncio.Queue()
        self._leaving = False
        self._short = asyncio.Event()

    async def keep_free(self) -> None:
        """Stop writers in time, and let them go on."""
        while not self._leaving:
            pause = self._pace.room_calm
            for driver in self._drivers:
                if isinstance(driver, SparseDriver):
                    pause = min(pause, await self._look(driver))
            await asyncio.sleep(pause)

    async def keep_trimmed(self) -> None:
        """Give back to the pools what no file needs, now and then and when room gets scarce."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.trim):
                    await self._scarce.wait()
            self._scarce.clear()
            for pool in tuple(self._pools.values()):
                await pool.trim()

    async def keep_sound(self) -> None:
        """Have volumes mounted anew of which the disk refused a write."""
        while True:
            await asyncio.sleep(self._pace.disk_look)
            for pool in tuple(self._pools.values()):
                for volume in await pool.failed():
                    try:
                        await self._custody.mount_anew(volume)
                    except (PannierError, OSError) as error:
                        log.warning("volume.not-mounted-anew", volume=volume.name, error=str(error))

    async def keep_noted(self) -> None:
        """Write into the volumes' histories that they were stopped and continued."""
        while True:
            pool, happened, what = await self._notes.get()
            with suppress(PannierError, OSError):
                for volume in await pool.attached():
                    await self._custody.note(volume, happened, what)

    async def leave(self) -> None:
        """End what stands still: when the daemon has ended, nobody would let it go on."""
        self._leaving = True
        for pool in self._pools.values():
            if pool.level is not RoomLevel.FULL:
                continue
            for volume in await pool.attached():
                await self._custody.fence(volume)
            await pool.leave()

    def full(self, volume: Volume) -> str:
        """Why nobody may write to a volume: what its pool has and needs. Empty where they may."""
        pool = self._pools.get(volume.spec.driver)
        return pool.what if pool is not None and pool.level is RoomLevel.FULL else ""

    def is_frozen(self, volume: Volume) -> bool:
        """Whether a volume's file system is frozen, too, since others than containers use it."""
        pool = self._pools.get(volume.spec.driver)
        return pool is not None and volume.id in pool.frozen

    def short(self) -> dict[Path, Shortage]:
        """The pools that have so little room that writers will soon stand still, or do so already."""
        return {
            pool.path: Shortage(level=pool.level, looked=pool.looked)
            for pool in self._pools.values()
            if pool.tight
        }

    async def wait_short(self, *, within: float) -> None:
        """Return at once when a pool gets short of room, and after ``within`` seconds in any case."""
        self._short.clear()
        if not self.short():
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._short.wait()

    def gives_way(self, path: Path, size_bytes: int) -> None:
        """Take in what gives its room by itself, in a pool, before writers stand still."""
        for pool in self._pools.values():
            if pool.path == path:
                pool.gives_bytes = size_bytes

    async def _look(self, driver: SparseDriver) -> float:
        pool = self._pools.get(driver.name)
        if pool is None:
            pool = self._pools[driver.name] = _Pool(
                driver, cluster=self._cluster, use=self._use, clock=self._clock, pace=self._pace
            )
        before = pool.level
        try:
            pause = await pool.look()
        except (PannierError, OSError) as error:
            log.warning("pool.not-watched", driver=driver.name, error=str(error))
            return self._pace.room_users
        finally:
            if pool.tight:
                self._short.set()
            if before is not pool.level:
                log.warning("pool.room", driver=driver.name, level=pool.level, what=pool.what)
                if pool.level is not RoomLevel.AMPLE:
                    self._scarce.set()
                if RoomLevel.FULL in (before, pool.level):
                    # Written by another task: the store may be away, and the pool is to be watched.
                    happened = "stopped" if pool.level is RoomLevel.FULL else "continued"
                    self._notes.put_nowait((pool, happened, pool.what))
        return pause


class _Pool:
    """One pool: what was last seen and decided."""

    def __init__(
        self, driver: SparseDriver, *, cluster: Cluster, use: Use, clock: Clock, pace: AgentPace
    ) -> None:
        self._driver = driver
        self.path = driver.pool
        self.gives_bytes = 0
        self._cluster = cluster
        self._use = use
        self._clock = clock
        self._pace = pace
        self.level = RoomLevel.AMPLE
        self.tight = False
        self.looked = 0.0
        self.what = ""
        self._rate = 0.0
        self._seen: tuple[float, int] | None = None
        self._users_due = 0.0
        self.frozen: frozenset[str] = frozenset()

    async def look(self) -> float:
        """See how much room there is, and act on it. Returns when to look again, in seconds."""
        began = self._clock.now()
        before = self.level
        ample = before is RoomLevel.AMPLE
        room, now = await self._driver.room(note_used=not ample), self._clock.now()
        if self._seen is not None:
            at, free = self._seen
            self._rate = shrinking(
                self._rate, taken=free - room.free_bytes, seconds=now - at, level=before
            )
        self._seen = now, room.free_bytes
        decided = self._plan(room)
        if ample and decided.limits is not None:
            room = await self._driver.room(note_used=True)  # with many images it takes long
            decided = self._plan(room)
        self.level, self.tight, self.looked = decided.level, decided.tight, began
        self.what = (
            f"the pool has room for {format_size(room.free_bytes)} more; writing goes on when it has "
            f"room for {format_size(decided.needed_bytes)}"
        )
        if self.level is not RoomLevel.FULL:
            self.frozen = frozenset()
        await self._restrict(decided)  # first of all, so that nothing new is taken in
        if self.level is not RoomLevel.FULL:
            await self._use.let_go_on()
        elif before is not RoomLevel.FULL:
            self._users_due = now  # the engine is asked the next time
            await self._halt(decided, at_once=True)
        elif now >= self._users_due:
            self._users_due = now + self._pace.room_users
            await self._halt(decided, at_once=False)
        else:
            await self._use.keep_halted()
        return decided.next_look

    def _plan(self, room: Room) -> RoomPlan:
        return plan(
            room,
            before=self.level,
            rate=self._rate,
            shortest=self._pace.room_look,
            longest=self._pace.room_calm,
            gives_bytes=self.gives_bytes,
        )

    async def _restrict(self, decided: RoomPlan) -> None:
        await self._driver.restrict(
            full=decided.level is RoomLevel.FULL,
            limits=decided.limits,
            frozen=self.frozen,
        )

    async def _halt(self, decided: RoomPlan, *, at_once: bool) -> None:
        """Stop who writes, and bring to the disk what memory holds, while there is room for it."""
        attached = await self.attached()
        self.frozen = await self._use.halt(attached, at_once=at_once)
        await self._restrict(decided)
        await asyncio.gather(*map(self._write_out, attached))

    async def _write_out(self, volume: Volume) -> None:
        try:
            await self._driver.write_out(volume.id)
        except PannierError as error:
            log.warning("volume.not-written-out", volume=volume.name, error=str(error))

    async def leave(self) -> None:
        """Freeze nothing any more."""
        await self._use.let_go_on()
        await self._driver.restrict(full=True, limits=None, frozen=frozenset())

    async def failed(self) -> list[Volume]:
        """The volumes of which the disk refused a write."""
        try:
            failed = await self._driver.failed()
            attached = await self.attached() if failed else []
        except (PannierError, OSError) as error:
            log.warning("pool.not-watched", driver=self._driver.name, error=str(error))
            return []
        return [volume for volume in attached if volume.id in failed]

    async def trim(self) -> None:
        """Give back what no file needs."""
        for volume in await self.attached():
            try:
                await self._driver.trim(volume.id, go_on=lambda: True)
            except (PannierError, OSError) as error:
                log.info("volume.not-trimmed", volume=volume.name, error=str(error))

    async def attached(self) -> list[Volume]:
        """The volumes that this node holds and has attached."""
        there, mine = await self._driver.attached(), self._cluster.node
        return [
            volume
            for volume in self._cluster.catalog.volumes()
            if volume.id in there and volume.grant.node == mine
        ]
