"""Who uses a volume with durability=fsync although nobody holds their sync calls, or what they write without any.

``pannier-runtime`` gives each container of Docker's the barrier. What does not come through it is found here, by
comparing who uses a volume with the listeners that there are: a container of another runtime or engine, one
that was started before the runtime was registered, a process that entered a container's namespaces from outside.

Who comes through it and could write past it all the same, the barrier finds (:mod:`pannier.barrier.syncwrites`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.usage import Contact, User
from pannier.agent.use import Use
from pannier.barrier.barrier import UNKNOWN
from pannier.barrier.syncwrites import UnheldWriter
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.core.volume import Durability, Volume
from pannier.storage.base import SparseDriver

log = structlog.get_logger(__name__)

_COPIERS = ("docker-tar", "docker-untar")
"""What older engines start for ``docker cp``. They sync nothing, so nobody relies on that."""


class Unheld:
    """Looks for such users of the volumes that this node holds."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        drivers: Drivers,
        use: Use,
        held_in: Callable[[str], frozenset[str]],
        writers: Callable[[str], Iterable[UnheldWriter]],
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` looks.

        Args:
            held_in: ids of the containers whose sync calls on a volume, by name, are held.
            writers: who could write to a volume, by name, past the barrier.
        """
        self._cluster = cluster
        self._drivers = drivers
        self._use = use
        self._held_in = held_in
        self._writers = writers
        self._pace = pace
        self._seen: dict[str, frozenset[int]] = {}
        """By volume id, pids of the last look: a container's listener may come a moment after its process."""
        self._found: dict[str, tuple[str, ...]] = {}
        self._found_writers: dict[str, tuple[str, ...]] = {}
        self._turn = 0

    def of(self, volume: Volume) -> tuple[str, ...]:
        """Who they are as of the last look, in words for people."""
        return self._found.get(volume.id, ())

    def writers_of(self, volume: Volume) -> tuple[str, ...]:
        """Who could write to it past the barrier as of the last look, and by what, in words for people."""
        return self._found_writers.get(volume.id, ())

    async def run(self) -> None:
        """Look for ever: run as a task."""
        while True:
            await asyncio.sleep(self._pace.unheld_look)
            try:
                await self.look()
            except PannierError as error:  # a disk that failed, for instance
                log.info("volumes.not-looked-at", error=str(error))

    async def look(self) -> None:
        """Look at the volumes that were just mounted or are suspected, and at some of the others in turn."""
        volumes = await self._candidates()
        there = {volume.id for volume in volumes}
        for gone in (self._seen.keys() | self._found.keys() | self._found_writers.keys()) - there:
            self._seen.pop(gone, None)
            self._found.pop(gone, None)
            self._found_writers.pop(gone, None)
        begin = self._turn % max(len(volumes), 1)
        in_turn = (volumes[begin:] + volumes[:begin])[: self._pace.unheld_at_once]
        self._turn = begin + len(in_turn)
        chosen = {volume.id for volume in in_turn}
        for volume in volumes:
            await self._look_at_writers(volume)
            if volume.id in chosen or volume.id in self._seen or self._use.was_given(volume):
                await self._look_at(volume)

    async def _candidates(self) -> list[Volume]:
        attached = frozenset().union(*[await driver.attached() for driver in self._drivers])
        return [
            volume
            for volume in self._cluster.catalog.volumes()
            if volume.grant.node == self._cluster.node
            and volume.spec.durability is Durability.FSYNC
            and (driver := self._drivers.get(volume.spec.driver)) is not None
            and (volume.id in attached or not isinstance(driver, SparseDriver))
        ]

    async def _look_at(self, volume: Volume) -> None:
        users = outsiders(await self._use.processes(volume), self._held_in(volume.name))
        before = self._seen.get(volume.id, frozenset())
        if users:
            self._seen[volume.id] = frozenset(user.pid for user in users)
        else:
            self._seen.pop(volume.id, None)
        names = tuple(await self._use.name_all([user for user in users if user.pid in before]))
        if names == self.of(volume):
            return
        if names:
            self._found[volume.id] = names
            log.error("volume.used-past-the-barrier", volume=volume.name, users=", ".join(names))
        else:
            del self._found[volume.id]
            log.info("volume.all-users-held", volume=volume.name)

    async def _look_at_writers(self, volume: Volume) -> None:
        """Costs nothing where the barrier has found nobody."""
        found = tuple(
            [
                f"{await self._use.name_container(each.container)}: {_what_it_does(each)}"
                for each in self._writers(volume.name)
            ]
        )
        if found == self.writers_of(volume):
            return
        if found:
            self._found_writers[volume.id] = found
            log.warning("volume.writes-not-held", volume=volume.name, writers="; ".join(found))
        else:
            del self._found_writers[volume.id]
            log.info("volume.all-writes-held", volume=volume.name)


def _what_it_does(writer: UnheldWriter) -> str:
    process = f"process {writer.command} (pid {writer.pid})"
    if writer.file is None:
        return f"{process} uses Linux AIO"
    return f"{process} has {writer.file} open with O_SYNC or O_DSYNC"


def outsiders(users: Iterable[User], held_in: Collection[str]) -> list[User]:
    """Those users that may write to a volume, and whose sync calls are not held.

    A second mount on the machine itself, such as that of a local volume, writes nothing by itself, and neither
    does ``docker cp`` promise anything.

    Args:
        held_in: the containers that have a listener for the volume. ``UNKNOWN`` among them may be any.
    """
    return [
        user
        for user in users
        if user.pid
        and user.contact is Contact.WRITES
        and not (user.container is None and user.command.startswith(_COPIERS))
        and not (user.filtered and (UNKNOWN in held_in or user.container in held_in))
    ]
