"""The barrier as the daemon knows it: takes listeners, keeps them, and says what waits."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog

from pannier.barrier import arrivals, syncwrites
from pannier.barrier.arrivals import Arrival
from pannier.barrier.calls import Strategy
from pannier.barrier.groups import Backlog, Groups
from pannier.barrier.keeping import Keeping, Origin, is_listener
from pannier.barrier.listener import Listener
from pannier.barrier.reach import HostDevices, Reach
from pannier.barrier.syncwrites import ContainerSpace, UnheldWriter
from pannier.barrier.turns import Turns
from pannier.core.errors import PannierError
from pannier.core.volume import UnheldWrites
from pannier.host.clock import Clock
from pannier.host.mountinfo import Location, Mount, OwnMounts, own_mounts

log = structlog.get_logger(__name__)

UNKNOWN = "unknown"
"""The container of a listener whose description was lost."""
_HANDOVER_SECONDS = 10.0
_SCAN_SECONDS = 30.0
_ROOM_SECONDS = 1.0
"""Between two tries to write a listener's files while tmpfs is full; its calls wait meanwhile."""
_LAST_SECONDS = 2.0
"""How long hand-overs that have begun may take at the end: runc sends at once what it has connected for, and the daemon
has 20 s for all of its end."""
_ACCEPT_AGAIN_SECONDS = 0.1
"""Between two tries to accept a connection while this process is out of file descriptors."""


class Barrier:
    """Holds the sync calls of containers that use held volumes.

    A volume is *held* while its mark is set: ``pannier-runtime`` then gives new containers that mount it
    the barrier. Containers that have it keep it, whatever happens to the mark.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        mount_root: Path,
        directory: Path,
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            mount_root: the directory with the mount points that Docker is given.
            directory: on tmpfs, for what must survive this process but not a reboot.
        """
        self._mount_root = mount_root.resolve()
        self._marks = directory / "held"
        self._marks.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._keeping = Keeping(directory / "listeners")
        self._clock = clock
        self._groups = Groups(strategy, clock=clock)
        self._turns = Turns()
        self._host = HostDevices(str(mount_root))
        self._own_mounts = OwnMounts()
        self._listeners: dict[str, Listener] = {}
        self._writers: tuple[UnheldWriter, ...] = ()
        self._handovers: set[asyncio.Task[None]] = set()
        self._without_room: set[asyncio.Task[None]] = set()

    # -- marks -----------------------------------------------------------------------------------

    def hold(self, volume: str, unheld_writes: UnheldWrites) -> None:
        """Give new containers with this volume the barrier. Called before Docker may mount it.

        The mark is replaced as a whole: another container with this volume may be starting.
        """
        draft = self._marks.with_name(f"mark.{volume}")
        draft.write_text(unheld_writes, encoding="ascii")
        draft.replace(self._marks / volume)

    def release(self, volume: str) -> None:
        """New containers with this volume get no barrier any more."""
        (self._marks / volume).unlink(missing_ok=True)

    def held(self) -> frozenset[str]:
        """The volumes that are marked."""
        return frozenset(file.name for file in self._marks.iterdir())

    # -- what there is ---------------------------------------------------------------------------

    def containers(self, volume: str) -> frozenset[str]:
        """Ids of the containers whose sync calls on this volume are held."""
        return frozenset(
            listener.origin.container
            for listener in self._listeners.values()
            if volume in listener.origin.places or listener.origin.passing
        )

    def waiting(self, volume: str) -> Backlog:
        """What waits for this volume now."""
        return self._groups.backlog(volume)

    def unheld_writers(self, volume: str) -> list[UnheldWriter]:
        """Who could write to this volume past the barrier when that was looked at last, of containers that are there."""
        there = self.containers(volume)
        return [
            each for each in self._writers if volume in each.volumes and each.container in there
        ]

    # -- work ------------------------------------------------------------------------------------

    def restore(self, descriptors: Iterable[tuple[str, int]]) -> None:
        """Take up the listeners that systemd has kept; called once, before :meth:`run`.

        Args:
            descriptors: name and number of each that systemd handed down; those that are not
                listeners are left alone.
        """
        kept = [(name, fd) for name, fd in descriptors if is_listener(name)]
        self._keeping.sweep({name for name, _fd in kept})
        for name, fd in kept:
            self._begin(name, fd, partial(self._recall, name))
        if kept:
            log.info("barrier.restored", listeners=len(kept))

    async def run(self, server: socket.socket) -> NoReturn:
        """Take new listeners from ``server`` for ever; run as a task.

        Ending the task ends no container: calls that wait go on waiting until the next process of the
        daemon takes them up. A hand-over that has begun is taken first; those that were not accepted stay
        in the socket.
        """
        server.setblocking(False)
        scan = asyncio.create_task(self._scan(), name="barrier scan")
        try:
            while True:
                await arrivals.readable(server)
                try:
                    # Between this and the task's start nothing can be cancelled: a connection that was
                    # accepted and dropped would be a container whose calls fail.
                    connection, _address = server.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    log.error("barrier.not-accepting", error=str(error))
                    await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                    continue
                _keep(self._handovers, self._take(connection), "barrier hand-over")
        finally:
            scan.cancel()
            await self._end_handovers()
            await self._groups.close()
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()

    async def _end_handovers(self) -> None:
        if self._handovers:
            await asyncio.wait(self._handovers, timeout=_LAST_SECONDS)
        if rest := self._handovers | self._without_room:
            for task in rest:
                task.cancel()
            await asyncio.wait(rest)

    async def _take(self, connection: socket.socket) -> None:
        names: list[str] = []
        try:
            with connection:
                connection.setblocking(False)
                async with asyncio.timeout(_HANDOVER_SECONDS):
                    arrival, fd = await arrivals.receive(
                        connection, lambda fd: names.append(self._keeping.store(fd))
                    )
        except (PannierError, TimeoutError, OSError) as error:
            log.error("barrier.no-listener", error=str(error) or repr(error))
            for name in names:
                self._keeping.forget(name)
            return
        self._begin(names[0], fd, partial(self._describe, names[0], arrival))

    def _describe(self, name: str, arrival: Arrival) -> Origin:
        volumes = self.held() if arrival.volumes is None else arrival.volumes
        origin = Origin(
            arrival.container, arrival.pid, self._places(volumes), passing=arrival.passing
        )
        self._keeping.describe(name, origin)
        return origin

    def _recall(self, name: str) -> Origin:
        return self._keeping.recall(name) or Origin(
            UNKNOWN, 0, self._places(self.held()), passing=True
        )

    def _begin(self, name: str, fd: int, origin: Callable[[], Origin]) -> None:
        """Listen to a listener, now or when its files can be written.

        Its calls wait until this has worked: a listener that is closed would let sync() return.
        """
        if not self._try(name, fd, origin):
            _keep(self._without_room, self._insist(name, fd, origin), "barrier without room")

    async def _insist(self, name: str, fd: int, origin: Callable[[], Origin]) -> None:
        try:
            while True:
                await asyncio.sleep(_ROOM_SECONDS)
                if self._try(name, fd, origin):
                    return
        except asyncio.CancelledError:
            os.close(fd)  # systemd has it
            raise

    def _try(self, name: str, fd: int, origin: Callable[[], Origin]) -> bool:
        try:
            self._listen(name, fd, origin())
        except OSError as error:  # such as a full tmpfs
            log.error("barrier.not-listening", listener=name, error=str(error))
            return False
        return True

    def _listen(self, name: str, fd: int, origin: Origin) -> None:
        listener = Listener(
            fd,
            origin,
            name=name,
            reach=Reach(
                origin.places,
                self._host,
                passing=self._here if origin.passing else None,
            ),
            pending=self._keeping.pending(name),
            groups=self._groups,
            turns=self._turns,
            clock=self._clock,
            ended=self._ended,
        )
        listener.start()
        self._listeners[name] = listener

    def _ended(self, listener: Listener) -> None:
        self._keeping.forget(listener.name)
        del self._listeners[listener.name]

    def _places(self, volumes: Iterable[str]) -> Mapping[str, Location | None]:
        seen = self._seen(volumes, own_mounts())
        return {volume: seen.get(volume) for volume in volumes}

    def _here(self) -> Mapping[str, Location | None]:
        """The held volumes that are mounted now."""
        return self._seen(self.held(), self._own_mounts())

    def _seen(
        self, volumes: Iterable[str], mounts: tuple[Mount, ...]
    ) -> dict[str, Location | None]:
        visible = {mount.point: mount.location for mount in mounts}
        points = {volume: f"{self._mount_root}/{volume}" for volume in volumes}
        return {name: visible[point] for name, point in points.items() if point in visible}

    # -- what no filter sees ----------------------------------------------------------------------

    async def _scan(self) -> NoReturn:
        while True:
            await asyncio.sleep(_SCAN_SECONDS)
            spaces = {
                listener.origin.pid: ContainerSpace(listener.origin.container, listener.reach)
                for listener in self._listeners.values()
            }
            try:
                self._writers = await asyncio.to_thread(syncwrites.find, spaces)
            except (
                OSError
            ) as error:  # such as no file descriptor left: what was found last stays told
                log.error("barrier.not-looked-at", error=str(error))


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], name: str) -> None:
    """Start a task that is in ``tasks`` until it ends."""
    task = asyncio.create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
