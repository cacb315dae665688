"""The barrier as the daemon knows it: takes listeners, keeps them, and says what waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import structlog

from pannier.barrier import arrivals, syncwrites
from pannier.barrier.calls import Strategy
from pannier.barrier.groups import Backlog, Groups
from pannier.barrier.keeping import Keeping, Origin, is_listener
from pannier.barrier.listener import Listener
from pannier.barrier.reach import HostDevices, Reach
from pannier.barrier.turns import Turns
from pannier.core.errors import PannierError
from pannier.host.clock import Clock
from pannier.host.mountinfo import Location, locate, own_mounts

log = structlog.get_logger(__name__)

_HANDOVER_SECONDS = 10.0
_SCAN_SECONDS = 30.0
_ROOM_SECONDS = 1.0
"""Between two tries to write a new listener's files while tmpfs is full; its calls wait meanwhile."""


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
        self._mount_root = mount_root
        self._marks = directory / "held"
        self._marks.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._keeping = Keeping(directory / "listeners")
        self._clock = clock
        self._groups = Groups(strategy, clock=clock)
        self._turns = Turns()
        self._host = HostDevices(str(mount_root))
        self._listeners: dict[str, Listener] = {}
        self._warned: set[str] = set()
        self._handovers: set[asyncio.Task[None]] = set()

    # -- marks -----------------------------------------------------------------------------------

    def hold(self, volume: str) -> None:
        """Give new containers with this volume the barrier. Called before Docker may mount it."""
        (self._marks / volume).touch()

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
            if volume in listener.origin.places
        )

    def waiting(self, volume: str) -> Backlog:
        """What waits for this volume now."""
        return self._groups.backlog(volume)

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
            origin = self._keeping.recall(name) or Origin("unknown", 0, self._places(self.held()))
            self._listen(name, fd, origin)
        if kept:
            log.info("barrier.restored", listeners=len(kept))

    async def run(self, server: socket.socket) -> NoReturn:
        """Take new listeners from ``server`` for ever; run as a task.

        Ending the task ends no container: calls that wait go on waiting until the next process of the
        daemon takes them up.
        """
        loop = asyncio.get_running_loop()
        server.setblocking(False)
        scan = asyncio.create_task(self._scan(), name="barrier scan")
        try:
            while True:
                connection, _address = await loop.sock_accept(server)
                task = asyncio.create_task(self._take(connection), name="barrier hand-over")
                self._handovers.add(task)
                task.add_done_callback(self._handovers.discard)
        finally:
            scan.cancel()
            await self._groups.close()
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()

    async def _take(self, connection: socket.socket) -> None:
        names: list[str] = []
        try:
            with connection:
                connection.setblocking(False)
                arrival, fd = await asyncio.wait_for(
                    arrivals.receive(connection, lambda fd: names.append(self._keeping.store(fd))),
                    _HANDOVER_SECONDS,
                )
        except (PannierError, TimeoutError, OSError) as error:
            log.error("barrier.no-listener", error=str(error) or repr(error))
            for name in names:
                self._keeping.forget(name)
            return
        volumes = self.held() if arrival.volumes is None else arrival.volumes
        origin = Origin(arrival.container, arrival.pid, self._places(volumes))
        # Its calls wait until this has worked: a listener that is closed would let sync() return.
        while not self._begin(names[0], fd, origin):
            await asyncio.sleep(_ROOM_SECONDS)

    def _begin(self, name: str, fd: int, origin: Origin) -> bool:
        """Describe a listener and listen to it; False where its files cannot be written now."""
        try:
            self._keeping.describe(name, origin)
            self._listen(name, fd, origin)
        except OSError as error:  # such as a full tmpfs
            log.error("barrier.not-listening", container=origin.container, error=str(error))
            return False
        return True

    def _listen(self, name: str, fd: int, origin: Origin) -> None:
        listener = Listener(
            fd,
            origin,
            name=name,
            reach=Reach(origin.places, self._host),
            pending=self._keeping.pending(name),
            groups=self._groups,
            turns=self._turns,
            clock=self._clock,
            synchronous=self._warn,
            ended=self._ended,
        )
        self._listeners[name] = listener
        listener.start()

    def _ended(self, listener: Listener) -> None:
        self._keeping.forget(listener.name)
        del self._listeners[listener.name]
        if all(o.origin.container != listener.origin.container for o in self._listeners.values()):
            self._warned.discard(listener.origin.container)

    def _places(self, volumes: Iterable[str]) -> Mapping[str, Location | None]:
        mounts = own_mounts()
        visible = {mount.point for mount in mounts}
        points = {volume: self._mount_root / volume for volume in volumes}
        return {
            volume: locate(point, mounts) if str(point) in visible else None
            for volume, point in points.items()
        }

    # -- files that are written through -----------------------------------------------------------

    async def _scan(self) -> NoReturn:
        while True:
            await asyncio.sleep(_SCAN_SECONDS)
            unwarned = {
                listener.origin.pid: listener
                for listener in self._listeners.values()
                if listener.origin.container not in self._warned
            }
            spaces = {pid: listener.reach for pid, listener in unwarned.items()}
            for key, (pid, fd) in (await asyncio.to_thread(syncwrites.find, spaces)).items():
                self._warn(unwarned[key], pid, fd)

    def _warn(self, listener: Listener, pid: int, fd: int) -> None:
        container = listener.origin.container
        if container not in self._warned:
            self._warned.add(container)
            syncwrites.warn(container, listener.origin.places, pid, fd)
