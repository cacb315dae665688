"""Where this node mounts what it backs up or brings back, and keeps what only running commands need."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from pannier.host.mountinfo import below, own_mounts
from pannier.host.threads import in_own_thread
from pannier.storage.image import ext4

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Workroom:
    """Two directories of this node's.

    Attributes:
        run: on a tmpfs, for root only.
        cache: restic's cache: what it is to know again next time. It may be removed at any time.
    """

    run: Path
    cache: Path

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Path]:
        """An empty directory of this name (a volume's id, or with a + in it) for the time of the block. What is mounted in it is unmounted after that.

        Raises:
            OSError: the kernel refused.
        """
        place = self.run / name
        await in_own_thread(partial(_make, place))
        try:
            yield place
        finally:
            await in_own_thread(partial(clear, place))

    async def tidy(self) -> None:
        """Remove what an earlier run of the daemon has left. Nothing else is under way."""
        await in_own_thread(self._tidy)

    def _tidy(self) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(self.run):
                try:
                    clear(self.run / name)
                except OSError as error:
                    log.warning("backups.left-behind", path=str(self.run / name), error=str(error))


def _make(place: Path) -> None:
    clear(place)
    place.mkdir(mode=0o700, parents=True)


def clear(place: Path) -> None:
    """Remove a directory of the workroom, with the files in it and without what is mounted there. It need not exist."""
    for mount in reversed(own_mounts()):
        if below(mount.point, str(place)):
            ext4.unmount(Path(mount.point), detach=True)
    with suppress(FileNotFoundError):
        for entry in place.iterdir():
            if entry.is_dir():
                entry.rmdir()  # a mountpoint: never with anything in it
            else:
                entry.unlink()
        place.rmdir()
