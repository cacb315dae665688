"""The storage drivers of this node: opened in the background, and found by a volume's record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from pannier.core.errors import DiskFailed, NotHolder, PannierError, PoolMissing, StorageError
from pannier.core.generation import Generation
from pannier.core.pace import NodePace
from pannier.core.recovery import FoundCopy, found_copy, newest_of
from pannier.core.restored import check_disk_is_not_newer
from pannier.core.volume import Volume
from pannier.storage.base import Driver
from pannier.storage.lines import LineDriver

log = structlog.get_logger(__name__)


class Drivers:
    """Those that could be opened, and why the others could not."""

    def __init__(
        self, wanted: Mapping[str, Driver], *, default: str, node: str, pace: NodePace
    ) -> None:
        """Prepare; :meth:`keep_open` opens them.

        Args:
            wanted: the drivers that this node is meant to have, in the order of opening.
            default: the name of the one for volumes that ask for none.
        """
        self._wanted = wanted
        self._default = default
        self._node = node
        self._pace = pace
        self._open: dict[str, Driver] = {}
        self.broken: dict[str, PannierError] = {}
        """Drivers that cannot be opened, with the reason."""
        self.hanging: dict[str, DiskFailed] = {}
        """Drivers that are open and whose disk hangs, with what is told about it. Whoever asks one waits for the disk."""
        self.tried = asyncio.Event()
        """Set once it was tried to open every driver."""

    async def keep_open(self) -> None:
        """Open the drivers; a pool whose disk comes late is opened when it is there. For ever.

        In the background: a disk that hangs must not keep Docker's listings from their answers.
        """
        while True:
            for name, driver in self._wanted.items():
                if name not in self._open:
                    await self._try(name, driver)
            self.tried.set()
            await asyncio.sleep(self._pace.start_retry)

    async def _try(self, name: str, driver: Driver) -> None:
        try:
            await driver.open()
        except PannierError as failure:
            self._not_open(name, failure)
        except OSError as failure:
            what = f"the {name} driver cannot be opened: {failure}"
            self._not_open(name, StorageError(what, remedy="see dmesg and the disk"))
        else:
            self.broken.pop(name, None)
            self._open[name] = driver

    def _not_open(self, name: str, error: PannierError) -> None:
        self.broken[name] = error
        log.error("driver.not-open", driver=name, error=str(error))

    async def opened(self, *, within: float | None = None) -> None:
        """Wait, but not for long, until it was tried to open every driver: right after a start.

        Args:
            within: seconds; None for as long as any request waits at a start.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within or self._pace.memory):
                await self.tried.wait()

    @property
    def complete(self) -> bool:
        """Whether all are open: only then is it known what this node has nothing of."""
        return self._open.keys() == self._wanted.keys()

    async def end_journals(self) -> None:
        """See :meth:`LineDriver.end_journal`. Called when nothing else runs any more."""
        for driver in self:
            if isinstance(driver, LineDriver):
                await driver.end_journal()

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def __iter__(self) -> Iterator[Driver]:
        """Those that are open."""
        return iter(tuple(self._open.values()))

    def expects(self, name: str) -> bool:
        """Whether this node has the driver, or would have it if it could be opened."""
        return name in self._open or name in self.broken

    def get(self, name: str) -> Driver | None:
        """A driver by its name; None where it is not open."""
        return self._open.get(name)

    @property
    def default(self) -> str:
        """The name of the driver for volumes that ask for none.

        Raises:
            PannierError: what keeps it from opening.
        """
        if self._default in self._open:
            return self._default
        raise self.broken.get(
            self._default, PoolMissing(f"node {self._node} has not opened its pool yet")
        )

    def named(self, name: str) -> Driver:
        """A driver that is open; KeyError where it is not."""
        return self._open[name]

    def of(self, volume: Volume) -> Driver:
        """The driver of a volume.

        Raises:
            NotHolder: this node does not have it; or what keeps it from opening.
        """
        name = volume.spec.driver
        if name in self._open:
            return self._open[name]
        if name in self.broken:
            raise self.broken[name]
        raise NotHolder(
            f"node {self._node} has no {name} driver, which volume {volume.name} needs",
            remedy=f"use a node that has it; open here: {', '.join(self._open) or 'none yet'}",
        )

    def place(self, volume: Volume) -> Path:
        """Where a volume's files are on this node while it is served. Its driver need not be open, and no disk is asked:
        also a daemon that was started beside a disk that hangs finds who uses the volume.

        Raises:
            NotHolder: this node does not have the driver.
        """
        driver = self._wanted.get(volume.spec.driver) or self.of(volume)
        return driver.data_path(volume.id, volume.grant.epoch)

    async def check_disk(self, volume: Volume, *, by_writing: bool = False) -> None:
        """See :meth:`Driver.check_disk`, for the disk of a volume. One that is known to hang is not waited for.

        Raises:
            As :meth:`of`; DiskFailed.
        """
        driver = self.of(volume)
        if driver.name in self.hanging:
            raise self.hanging[driver.name]
        await driver.check_disk(by_writing=by_writing)

    async def missing(self, volume: Volume) -> str:
        """Why this node's copy may lack what it has confirmed; empty if it lacks nothing."""
        driver = self.of(volume)
        return await driver.missing(volume.id) if isinstance(driver, LineDriver) else ""

    async def lost(self, volume: Volume, base: Generation) -> str:
        """What this node's copy would lack of what it has confirmed, if it went on with a generation; empty if nothing."""
        driver = self.of(volume)
        return await driver.lost(volume.id, base) if isinstance(driver, LineDriver) else ""

    async def newest(self, volume: Volume) -> Generation | None:
        """The newest generation of a volume that is here and no stray; None where nothing is.

        Raises:
            StoreIsOlder: the record is older than what is here.
        """
        copy = await self.of(volume).inspect(volume.id)
        check_disk_is_not_newer(volume, copy.state, node=self._node)
        return newest_of(volume, copy.generations)

    async def found(self, volume: Volume) -> FoundCopy | None:
        """What this node has of a volume that another one holds; None where it has nothing.

        Raises:
            StoreIsOlder: the record is older than what is here.
        """
        copy = await self.of(volume).inspect(volume.id)
        check_disk_is_not_newer(volume, copy.state, node=self._node)
        last = (copy.last.generation, copy.last.number) if copy.last is not None else None
        return found_copy(volume, copy.generations, last=last, lacks=await self.missing(volume))
