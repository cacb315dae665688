"""Removing files of a volume whose containers stand still for want of room: nobody in them can do it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.room import RoomGuard
from pannier.agent.use import Use
from pannier.cluster.cluster import Cluster
from pannier.core.errors import Conflict, InvalidInput, NotFound, NotHolder, StorageError
from pannier.core.volume import Volume
from pannier.host.removal import remove_within
from pannier.storage.base import SparseDriver

log = structlog.get_logger(__name__)


class Cleaning:
    """Does on the holder what a container would do if it ran."""

    def __init__(
        self, *, cluster: Cluster, drivers: Drivers, custody: Custody, use: Use, room: RoomGuard
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._custody = custody
        self._use = use
        self._room = room

    async def remove(self, name: str, paths: list[str], *, actor: str) -> None:
        """Remove files or directories of a volume, and give their room back to the pool.

        Args:
            paths: in the volume, one after the other. The first that cannot be removed ends it.

        Raises:
            VolumeNotFound: there is none of that name. NotHolder: another node holds it.
            Conflict: nobody is kept from removing them in a container, or its file system is frozen.
            InvalidInput: a path names nothing in the volume. NotFound: nothing is there.
            StorageError: it cannot be removed.
        """
        volume = (await self._cluster.fresh(name)).record
        if volume.grant.node != self._cluster.node:
            raise NotHolder(
                f"volume {name} is held by node {volume.grant.node}",
                remedy="type this on that node",
            )
        driver = self._drivers.of(volume)
        if not isinstance(driver, SparseDriver) or not self._room.full(volume):
            raise Conflict(
                f"volume {name} does not stand still", remedy="remove files in a container"
            )
        async with self._custody.lock(volume):
            if volume.id not in await driver.attached():
                raise Conflict(
                    f"nobody uses volume {name}, so it is not mounted",
                    remedy=f"move it away (pannier volume move {name} NODE) or remove it",
                )
            await self._check_not_frozen(volume)
            root = driver.data_path(volume.id, volume.grant.epoch)
            for path in paths:
                await asyncio.to_thread(_remove, volume, root, path)
                log.info("volume.cleaned", volume=name, path=path, by=actor)
            await driver.write_out(volume.id)  # what is not committed cannot be trimmed
            await driver.trim(volume.id, go_on=lambda: True)

    async def _check_not_frozen(self, volume: Volume) -> None:
        """Whoever removes something in a frozen file system waits in the kernel, and cannot be killed."""
        if self._room.is_frozen(volume):
            users = ", ".join(await self._use.users(volume))
            raise Conflict(
                f"the file system of volume {volume.name} is frozen: processes outside of containers use it, or a "
                f"container that is just being started ({users})",
                remedy="end those, then type this again",
            )


def _remove(volume: Volume, root: Path, path: str) -> None:
    what = f"{path!r} of volume {volume.name}"
    try:
        remove_within(root, path)
    except ValueError:
        raise InvalidInput(
            f"{what} names no file or directory",
            remedy="write its path in the volume, such as logs/old",
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{what} is not there", remedy="see what is, in the container") from None
    except OSError as error:
        raise StorageError(f"{what} cannot be removed: {error}", remedy="see dmesg") from error
