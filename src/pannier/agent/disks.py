"""A node whose disk has failed, or hangs, lets its lease run out: to the others it is lost, and they take over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.core.errors import DiskFailed, PannierError
from pannier.core.pace import AgentPace
from pannier.core.record import Record
from pannier.core.silence import Silence
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.storage.base import Driver

log = structlog.get_logger(__name__)

_LATE_LOOKS = 4
"""One look at a disk counts for the time of so many at most: another disk that hangs makes each of them later."""
_REMEDY = (
    "see `dmesg`, and whether the disk, its controller or its network answers; the node comes back by itself when it does; "
    "meanwhile nodes with a copy in sync take over"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HangingDisks(Record):
    """The file of :class:`Disks`: the drivers whose disk was found to hang."""

    drivers: tuple[str, ...] = ()


class Disks:
    """Watches over the disks of this node's volumes.

    When the lease is over, containers here are ended at once. A node that is only cut off freezes them
    first (:attr:`AgentPace.doubt`), but a failed disk does not come back by itself, and one that hangs may never.
    Containers whose volumes no other node could take over go on, and get the disk's errors, or wait for it.

    Args:
        file: remembers until the next boot what hangs. A daemon that is started beside such a disk does not renew the
            lease until that has answered.
    """

    def __init__(
        self,
        *,
        drivers: Drivers,
        lease: Lease,
        file: StateFile,
        clock: Clock,
        pace: AgentPace,
    ) -> None:
        self._drivers = drivers
        self._lease = lease
        self._clock = clock
        self._pace = pace
        self._disks: dict[str, _Disk] = {}
        self._file = file
        self._saved = self._load()
        self._opening = Silence(clock.now(), longest=_LATE_LOOKS * pace.disk_look)
        if self._saved.drivers:
            self._opening.seconds = pace.disk_hang
            lease.withheld = self._not_opened()  # before the first renewal

    async def run(self) -> None:
        """For ever: run as a task."""
        lease = self._lease
        try:
            while True:
                failed = await self._failed()
                if failed and not lease.withheld:
                    log.error("disk.failed", error=failed)
                elif lease.withheld and not failed:
                    log.info("disk.mended")
                lease.withheld = failed
                await asyncio.sleep(self._pace.disk_look)
        finally:
            for disk in self._disks.values():
                disk.leave()

    async def _failed(self) -> str:
        found = [error.message for error in self._drivers.broken.values()]
        if not self._drivers.tried.is_set():
            found.append(self._not_opened())
        for driver in self._drivers:
            if driver.name not in self._disks:
                hung = driver.name in self._saved.drivers
                self._disks[driver.name] = _Disk(driver, hung, clock=self._clock, pace=self._pace)
            found.append(await self._disks[driver.name].look())
        self._drivers.hanging = {
            name: disk.hangs for name, disk in self._disks.items() if disk.hangs is not None
        }
        if self._drivers.tried.is_set():
            self._save(tuple(self._drivers.hanging))
        return next(filter(None, found), "")

    def _not_opened(self) -> str:
        self._opening.look(self._clock.now())
        if self._opening.seconds < self._pace.disk_hang:
            return ""
        return f"the disk of this node's volumes takes no writes: it hangs, and could not be opened within {self._pace.disk_hang:g} s"

    def _load(self) -> HangingDisks:
        try:
            saved = read_file(self._file, HangingDisks, remedy="it is made anew")
        except PannierError as error:
            log.warning("hanging disks not readable", error=str(error))
            saved = None
        return saved or HangingDisks()

    def _save(self, hanging: tuple[str, ...]) -> None:
        if hanging == self._saved.drivers:
            return
        self._saved = replace(self._saved, drivers=hanging)
        try:
            self._file.write(encode(self._saved))
        except (OSError, PannierError) as error:  # the next daemon finds it out by itself
            log.warning("hanging disks not written", error=str(error))


class _Disk:
    """The disk of one driver. It may hang, and then so does whoever asks it: that is a task of its own.

    A disk that crawls does not hang: each write that it completes is a sign, whoever's it is. Where there is none for a
    while it is asked for one, since it may be idle.

    Args:
        hung: whether an earlier run has found that it hangs.
    """

    def __init__(self, driver: Driver, hung: bool, *, clock: Clock, pace: AgentPace) -> None:
        self._driver = driver
        self._clock = clock
        self._pace = pace
        self._silence = Silence(clock.now(), longest=_LATE_LOOKS * pace.disk_look)
        self._silence.seconds = pace.disk_hang if hung else 0.0
        self._written = driver.writes_done()
        self._asked: asyncio.Task[None] | None = None
        self._by_writing = False
        self.hangs: DiskFailed | None = None

    async def look(self) -> str:
        """Why nothing can be kept on it; empty where it can. Takes no longer than the time between two looks."""
        self._listen()
        if self._asked is None:
            self._by_writing = self._silence.seconds >= self._pace.disk_ask
            asking = self._driver.check_disk(by_writing=self._by_writing)
            self._asked = asyncio.create_task(asking, name=f"disk {self._driver.name}")
        await asyncio.wait((self._asked,), timeout=self._pace.disk_look)
        if not self._asked.done():
            hangs = self._silence.seconds >= self._pace.disk_hang
            self.hangs = self._hanging() if hangs else None
            return self.hangs.message if self.hangs else ""
        asked, self._asked, self.hangs = self._asked, None, None
        if self._by_writing:
            self._silence.end(self._clock.now())
        try:
            asked.result()
        except DiskFailed as error:
            return error.message
        except PannierError as error:
            log.warning("disk.not-checked", driver=self._driver.name, error=str(error))
        return ""

    def _listen(self) -> None:
        written, now = self._driver.writes_done(), self._clock.now()
        if written != self._written:
            self._written = written
            self._silence.end(now)
        else:
            self._silence.look(now)

    def _hanging(self) -> DiskFailed:
        return DiskFailed(
            f"the disk of the {self._driver.name} driver takes no writes any more: it hangs, and has completed nothing "
            f"for {self._pace.disk_hang:g} s",
            remedy=_REMEDY,
        )

    def leave(self) -> None:
        """Wait for no answer any more."""
        if self._asked is not None:
            self._asked.cancel()
