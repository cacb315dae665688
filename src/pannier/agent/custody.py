"""This node's volumes: brings disk and mounts in line with the records, one volume at a time.

A change of a volume's local data happens only under the volume's lock, and every step may be
repeated after a crash: what to do is decided anew from the record and the disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from pannier.agent.freezing import Freezer
from pannier.agent.lease import Lease
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import Mounts
from pannier.agent.usage import User, users_of
from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned
from pannier.core.errors import (
    Corrupt,
    EngineUnavailable,
    NotHolder,
    PannierError,
    PoolMissing,
    Stale,
    StorageError,
    StoreUnavailable,
    VolumeNotFound,
)
from pannier.core.generation import Generation
from pannier.core.ownership import (
    AskHolder,
    LocalState,
    Lost,
    Promote,
    Serve,
    Unseal,
    plan_cleanup,
    plan_serving,
)
from pannier.core.volume import Grant, Volume
from pannier.engine.base import Engine
from pannier.host.clock import boottime
from pannier.storage.base import Driver

log = structlog.get_logger(__name__)

STARTING_SECONDS = 60.0
"""For so long an answered Mount counts as a use that /proc does not show yet: the engine may be
copying the image's files or still be making the container. Afterwards /proc alone is believed,
since Unmounts get lost when the engine or this daemon crashes."""


DEPOSE_TRIES = 50
DEPOSE_PAUSE_SECONDS = 0.1
ADOPT_PAUSE_SECONDS = 5.0
PROVE_PAUSE_SECONDS = 0.5


class UsersOf(Protocol):
    """Who uses any of some directories now; see :func:`pannier.agent.usage.users_of`."""

    def __call__(self, paths: Sequence[Path], *, mount_root: Path) -> list[User]: ...


class Custody:
    """Holds, mounts and gives up volumes on this node.

    Args:
        users_of: tells who uses a directory; by default, what /proc says.
        clock: seconds that only ever pass; see :func:`pannier.host.clock.boottime`.
    """

    def __init__(
        self,
        *,
        node: str,
        registry: Registry,
        catalog: Catalog,
        drivers: Mapping[str, Driver],
        mounts: Mounts,
        mount_ids: MountIds,
        engine: Engine,
        lease: Lease,
        freezer: Freezer,
        users_of: UsersOf = users_of,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.node = node
        self.registry = registry
        self.catalog = catalog
        self.drivers = drivers
        self.broken: dict[str, PannierError] = {}
        """Drivers that this node is meant to have and that cannot be opened, with the reason."""
        self.opened = asyncio.Event()
        """Set once it was tried to open every driver."""
        if drivers:
            self.opened.set()
        self.mounts = mounts
        self.mount_ids = mount_ids
        self.engine = engine
        self.lease = lease
        self.clock = clock
        self._freezer = freezer
        self._users_of = users_of
        self._locks: dict[str, asyncio.Lock] = {}
        self._released: dict[str, asyncio.Event] = {}
        self._awaited: Counter[str] = Counter()

    def lock(self, volume: Volume) -> asyncio.Lock:
        """Taken for every change of the volume's local data."""
        return self._locks.setdefault(volume.id, asyncio.Lock())

    def released(self, volume: Volume) -> asyncio.Event:
        """Set at each Unmount, for whoever waits for the end of use."""
        return self._released.setdefault(volume.id, asyncio.Event())

    @contextmanager
    def awaiting(self, name: str) -> Iterator[None]:
        """A Mount of the volume is under way in this block."""
        self._awaited[name] += 1
        try:
            yield
        finally:
            self._awaited[name] -= 1

    def awaited(self, volume: Volume) -> bool:
        """Whether a Mount waits for the volume: this node shall not give it away by itself."""
        return self._awaited[volume.name] > 0

    def driver(self, volume: Volume) -> Driver:
        """The driver of the volume.

        Raises:
            NotHolder: this node does not have it; or what keeps it from opening.
        """
        try:
            return self.drivers[volume.spec.driver]
        except KeyError:
            if volume.spec.driver in self.broken:
                raise self.broken[volume.spec.driver] from None
            raise NotHolder(
                f"node {self.node} has no {volume.spec.driver} driver, which volume "
                f"{volume.name} needs",
                remedy=f"use a node that has it; open here: {', '.join(self.drivers) or 'none yet'}",
            ) from None

    async def newest(self, volume: Volume) -> Generation | None:
        """The newest generation of a volume that is here and no stray; None where nothing is."""
        copy = await self.driver(volume).inspect(volume.id)
        return max((g for g in copy.generations if volume.grew_out_of(g)), default=None)

    @property
    def default_driver(self) -> str:
        """The driver of volumes that ask for none.

        Raises:
            PannierError: what keeps it from opening.
        """
        for name in self.drivers:
            return name
        raise next(iter(self.broken.values()), PoolMissing(f"node {self.node} has no driver yet"))

    async def fresh(self, name: str) -> Versioned[Volume]:
        """The newest committed record, remembered too.

        Raises:
            VolumeNotFound; StoreUnavailable.
        """
        found = await self.registry.volume(name)
        if found is None:
            self.catalog.forget(name)
            raise no_such_volume(name)
        self.catalog.remember(found.record, revision=found.revision)
        return found

    async def serve(self, volume: Volume) -> Path:
        """Make the volume writable and mounted here, and return the path for Docker.

        The caller has the lock. Only the writable tree of a holder is served on a remembered
        record; everything else is decided on a fresh one, and so is a volume that another node may
        have taken over.

        Raises:
            NotHolder: another node holds it; Corrupt: its data is not here; StoreUnavailable;
            NewerFormat: only a newer version can serve it.
        """
        volume.check_format(f"the record of volume {volume.name}")
        plan = plan_serving(volume, await self._local(volume), node=self.node)
        driver = self.driver(volume)
        if self._taken_perhaps(volume):
            volume = await self.prove(volume)
            await driver.unseal(volume.id, epoch=volume.grant.epoch)
        elif not isinstance(plan, Serve):
            volume = (await self.take_up(volume)).record
            await driver.unseal(volume.id, epoch=volume.grant.epoch)
        if not self.lease.holds(volume):
            raise StoreUnavailable(
                f"node {self.node} cannot prove that it holds volume {volume.name}: its lease has "
                f"run out",
                remedy="see pannier status for the store; it is tried again by itself",
            )
        source = driver.data_path(volume.id, volume.grant.epoch)
        if not await self.processes(volume):
            return await asyncio.to_thread(self.mounts.replace, volume.name, source)
        return await asyncio.to_thread(self.mounts.mount, volume.name, source)

    def _taken_perhaps(self, volume: Volume) -> bool:
        """While this node was off, or without a lease, others may have taken what has copies."""
        if volume.spec.copies == 1:
            return False
        return not self.catalog.trusted or not self.lease.holds(volume)

    async def prove(self, volume: Volume) -> Volume:
        """Make sure that this node holds a volume, and that nobody is just taking it over.

        The caller has the lock. The record is read, and written anew: a takeover that was sent while
        this node had no lease was made for the earlier revision and is void from then on.

        Raises:
            As :meth:`take_up`.
        """
        while True:
            term = self.lease.term
            found = await self.take_up(volume)
            try:
                revision = await self.registry.replace_volume(found.record, expect=found.revision)
            except Stale:
                continue
            self.catalog.remember(found.record, revision=revision)
            self.lease.proven(found.record, term=term)
            return found.record

    async def prove_all(self) -> None:
        """Prove whatever this lease says nothing about yet, for ever: run as a task."""
        while True:
            for volume in self.catalog.volumes():
                mine = volume.grant.node == self.node and volume.spec.driver in self.drivers
                if mine and volume.spec.copies > 1 and self.lease.needs_proof(volume):
                    await self._prove_one(volume)
            await asyncio.sleep(PROVE_PAUSE_SECONDS)

    async def _prove_one(self, volume: Volume) -> None:
        try:
            async with self.lock(volume):
                await self.prove(volume)
        except PannierError as error:
            log.info("volume.not-proven", volume=volume.name, error=str(error))

    async def take_up(self, volume: Volume) -> Versioned[Volume]:
        """Have the live tree of a volume that this node holds, as a fresh record says.

        The caller has the lock. A tree that is sealed stays so, and may be unsealed from now on: a
        change of the record that was sent without an answer could still be on its way to the
        store. It was made for the record's present revision, so writing the record anew voids it.

        Raises:
            NotHolder: another node holds it; Corrupt: its data is not here; StoreUnavailable;
            OutcomeUnknown: a sealed tree must stay sealed.
        """
        while True:
            found = await self.fresh(volume.name)
            record = found.record
            if record.id != volume.id:
                raise NotHolder(f"volume {volume.name} is another one now", remedy="ask again")
            match plan_serving(record, await self._local(record), node=self.node):
                case Serve():
                    return found
                case Unseal():
                    try:
                        revision = await self.registry.replace_volume(record, expect=found.revision)
                    except Stale:
                        continue  # what was on its way has arrived
                    self.catalog.remember(record, revision=revision)
                    return Versioned(record, revision)
                case Promote(base, epoch):
                    await self._end_former(record)
                    await self.driver(record).promote(
                        record.id, base, epoch=epoch, size_bytes=record.spec.size
                    )
                    log.info("volume.promoted", volume=record.name, epoch=epoch, base=str(base))
                    return found
                case AskHolder(holder, epoch):
                    raise NotHolder(
                        f"volume {volume.name} is held by node {holder} (epoch {epoch})",
                        remedy="ask that node for it",
                    )
                case Lost(epoch, missing):
                    raise self._lost(record, epoch, str(missing) if missing else None)

    def _lost(self, volume: Volume, epoch: int, base: str | None) -> Corrupt:
        what = f"generation {base}" if base else "its data"
        return Corrupt(
            f"node {self.node} should hold volume {volume.name} (epoch {epoch}), but {what} is not "
            f"on its disk, and an empty directory is never given instead",
            remedy="see whether the right disk is mounted as the pool: pannier doctor",
        )

    async def _local(self, volume: Volume) -> LocalState:
        copy = await self.driver(volume).inspect(volume.id)
        return LocalState(
            {tree.epoch: tree.sealed for tree in copy.live}, frozenset(copy.generations)
        )

    async def tidy(
        self, volume: Volume, *, needed: Callable[[], frozenset[Generation]] | None = None
    ) -> None:
        """Remove what this node no longer needs of the volume. The caller has the lock.

        Decided on a fresh record; nothing is done where the store does not answer. ``needed`` tells
        which generations other copies have as their newest, and is asked after the disk: what they
        get later is newer than all of that. None where this is not known; a holder then keeps all.
        """
        record = (await self.fresh(volume.name)).record
        if record.id != volume.id or record.spec.driver not in self.drivers:
            return
        driver = self.driver(record)
        local = await self._local(record)
        if needed is not None:
            kept = needed()
        else:
            kept = local.generations if record.replicas else frozenset()
        cleanup = plan_cleanup(record, local, node=self.node, needed=kept)
        for epoch in cleanup.drop:
            await driver.drop_live(record.id, epoch=epoch)
        for generation in cleanup.delete:
            await driver.delete_generation(record.id, generation)

    async def _depose_strays(self, volume: Volume) -> None:
        """Containers may have gone on with a tree while this daemon did not run."""
        if volume.grant.node != self.node:
            await self._end_former(volume)

    async def _end_former(self, volume: Volume) -> None:
        """Stop all use of trees of earlier epochs that this node did not give away.

        Before the volume is served here again: who has gone on with such a tree must not take
        a sync call of the volume as it is now for one of its own.
        """
        for epoch, sealed in (await self._local(volume)).sealed.items():
            if not sealed and epoch < volume.grant.epoch:
                former = replace(volume, grant=Grant(self.node, epoch))
                await self.depose(former, successor=volume.grant.node)

    async def processes(self, volume: Volume) -> list[User]:
        """Processes that use the volume's tree or its mountpoint, as the kernel sees it."""
        tree = self.driver(volume).data_path(volume.id, volume.grant.epoch)
        paths = [tree, self.mounts.path(volume.name)]
        return await asyncio.to_thread(self._users_of, paths, mount_root=self.mounts.root)

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
        """Whether a container may be about to use the volume that no process shows yet."""
        if self.awaited(volume):
            return True  # of two nodes that want it at once, one gets it: not both in turn
        ages = self.mount_ids.ages(volume.name, self.clock())
        return any(age < STARTING_SECONDS for age in ages.values())

    async def _name_all(self, users: list[User]) -> list[str]:
        one_each = {user.container or f"{user.pid} {user.command}": user for user in users}
        names = [await self._name_one(user) for user in one_each.values()]
        return list(dict.fromkeys(names))

    async def _name_one(self, user: User) -> str:
        if user.container:
            try:
                container = await self.engine.container(user.container)
            except EngineUnavailable:
                container = None
            if container:
                return f"container {container}"
            return f"container {user.container[:12]}"
        if user.pid == 0:
            return user.command  # a second mount of the tree: "mount at ...", as docker cp makes it
        return f"process {user.pid} ({user.command})"

    async def take_down(self, volume: Volume) -> None:
        """Unmount the volume's path. The caller has the lock and saw that nobody uses it."""
        await asyncio.to_thread(self.mounts.unmount, volume.name)

    def suspended(self, volume: Volume) -> bool:
        """Whether containers that use the volume were made to stand still, by this run or an earlier."""
        return self._freezer.holds(volume.id)

    async def suspend(self, volume: Volume) -> None:
        """Let nothing that uses a volume go on: another node may take it over by now, or may not.

        Containers stand still, and processes outside of any are killed. Those that begin meanwhile
        are met by the next call.
        """
        users = [user for user in await self.processes(volume) if user.pid]
        if users and not self.suspended(volume):
            log.warning("volume.suspended", volume=volume.name, epoch=volume.grant.epoch)
        self._kill(volume, await asyncio.to_thread(self._freezer.freeze, volume.id, users))

    async def resume(self, volume: Volume) -> None:
        """What was suspended goes on: this node is known to hold the volume."""
        if self.suspended(volume):
            log.info("volume.resumed", volume=volume.name, epoch=volume.grant.epoch)
        await asyncio.to_thread(self._freezer.thaw, volume.id)

    async def fence(self, volume: Volume) -> None:
        """End all use of a volume that another node may take over by now; what is here is kept.

        Does not wait for the lock before it has ended the use: whoever has it may wait for the store.
        """
        log.warning("volume.fenced", volume=volume.name, epoch=volume.grant.epoch)
        await self._end_use(volume)
        async with self.lock(volume):
            if self.lease.holds(volume):
                return
            await self._end_use(volume)
            try:
                local = await self._local(volume)
                if local.sealed.get(volume.grant.epoch) is False:
                    await self.driver(volume).seal(volume.id, epoch=volume.grant.epoch)
            except StorageError as error:
                if not self.lease.withheld:
                    raise
                # On a disk that takes no writes there is nothing to be sealed against them.
                log.warning("volume.not-sealed", volume=volume.name, error=str(error))

    async def depose_if_live(self, volume: Volume, *, successor: str) -> None:
        """Stop all use of a tree that was never sealed, or that a failed disk does not show any more.

        The caller has the lock.
        """
        if volume.spec.driver not in self.drivers:
            return
        try:
            sealed = (await self._local(volume)).sealed.get(volume.grant.epoch)
        except StorageError as error:
            log.warning("volume.not-seen", volume=volume.name, error=str(error))
            sealed = False
        if sealed is False:
            await self.depose(volume, successor=successor)

    async def depose(self, volume: Volume, *, successor: str) -> None:
        """Stop all use of a volume that was given to another node without us; keep what is here.

        The caller has the lock. Its containers are killed: what they write no longer belongs to the
        volume, and they must not believe it does.
        """
        await self._end_use(volume)
        self.lease.forget(volume)
        log.warning(
            "volume.deposed", volume=volume.name, epoch=volume.grant.epoch, successor=successor
        )

    async def _end_use(self, volume: Volume) -> None:
        """Kill and unmount; again until nobody is left, since processes are born meanwhile."""
        await asyncio.to_thread(self.mounts.unmount, volume.name, detach=True)
        self.mount_ids.forget(volume.name)
        for _ in range(DEPOSE_TRIES):
            users = [user for user in await self.processes(volume) if user.pid]
            if not users:
                break
            self._kill(volume, users)
            # What is frozen ends at once, or when it is let go on: it makes no step of its own any more.
            await asyncio.to_thread(self._freezer.thaw, volume.id)
            await asyncio.sleep(DEPOSE_PAUSE_SECONDS)
        else:
            log.error("volume.users-left", volume=volume.name, pids=[user.pid for user in users])
        await asyncio.to_thread(self._freezer.thaw, volume.id)

    def _kill(self, volume: Volume, users: Sequence[User]) -> None:
        for user in users:
            with suppress(ProcessLookupError):
                os.kill(user.pid, signal.SIGKILL)
            log.warning("volume.user-killed", volume=volume.name, pid=user.pid)

    async def adopt(self) -> None:
        """After a start: finish or undo what an earlier run left half done. The store answers.

        A volume for which this fails is tried again until it was done, or is gone.
        """
        done: set[str] = set()
        while True:
            left = [volume for volume in self.catalog.volumes() if volume.id not in done]
            for volume in left:
                if volume.spec.driver not in self.drivers:
                    continue
                async with self.lock(volume):
                    try:
                        await self._depose_strays(volume)
                        await self.tidy(volume)
                        done.add(volume.id)
                    except PannierError as error:
                        log.warning("volume.not-tidied", volume=volume.name, error=str(error))
            waiting = any(v.spec.driver in (*self.drivers, *self.broken) for v in left)
            if not waiting or all(volume.id in done for volume in left):
                return
            await asyncio.sleep(ADOPT_PAUSE_SECONDS)


def no_such_volume(name: str) -> VolumeNotFound:
    """The error for an unknown name."""
    return VolumeNotFound(
        f"there is no volume {name}", remedy="pannier volume ls shows all; create it first"
    )
