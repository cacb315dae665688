"""The first half of a group of sync calls: what this node's own disk says.

A volume with a file system of its own tells which file was refused, and only what the calls name is synced here. Every
other volume's calls are synced by the generation alone, and performed by the kernel afterwards.

What the disk refused is lost, and the kernel tells it once. So from then on nothing of the mount is confirmed: every
sync call fails until the volume was mounted anew.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import structlog

from pannier.agent.drivers import Drivers
from pannier.barrier.calls import BY_KERNEL, Answer, SyncCall
from pannier.barrier.local_sync import Steps, sync_group
from pannier.core.volume import Volume
from pannier.storage.base import SparseDriver
from pannier.storage.kinds import by_class

log = structlog.get_logger(__name__)

_is_sparse = by_class(lambda driver: isinstance(driver, SparseDriver))


@dataclass(frozen=True, slots=True)
class SaidLocally:
    """What the local disk said about a group.

    Attributes:
        answers: one for each call.
        lost: whether the disk refused something of the volume: then the answers are failures, and are given at once.
        whole: whether the file system has still to be written out as a whole for some call, as a generation does.
    """

    answers: Sequence[Answer]
    lost: bool = False
    whole: bool = True


class LocalSync:
    """Syncs what a group's calls name, by the driver of their volume."""

    def __init__(self, drivers: Drivers) -> None:
        self._drivers = drivers

    async def sync(
        self,
        volume: Volume,
        calls: Sequence[SyncCall],
        *,
        steps: Steps | None = None,
    ) -> SaidLocally:
        """Sync the files of a group.

        Args:
            steps: what is done besides. Left out for calls that name no file.

        Raises:
            StorageError: the kernel does not say whether something was lost.
        """
        driver = self._sparse(volume) if calls else None
        if driver is None:
            return SaidLocally([BY_KERNEL] * len(calls))
        epoch = volume.grant.epoch
        synced = await sync_group(calls, root=driver.data_path(volume.id, epoch), steps=steps)
        answers = [each.answer for each in synced]
        if any(each.refused for each in synced):
            log.error("volume.refused", volume=volume.name, calls=len(calls))
            await driver.note_refused(volume.id, epoch=epoch)
        if await self.has_lost(volume):
            return SaidLocally(failed(answers), lost=True)
        return SaidLocally(answers, whole=any(each.whole for each in synced))

    def _sparse(self, volume: Volume) -> SparseDriver | None:
        driver = self._drivers.of(volume)
        return cast("SparseDriver", driver) if _is_sparse(driver) else None

    async def write_out(self, volume: Volume) -> None:
        """Bring all that was written to a volume to the disk. One that has only generations is written out by those.

        Raises:
            StorageError: the disk refused something.
        """
        driver = self._sparse(volume)
        if driver is not None:
            await driver.write_out(volume.id)

    async def has_lost(self, volume: Volume) -> bool:
        """Whether the disk is known to have refused something of a volume that is not mended yet.

        Raises:
            StorageError: as :meth:`sync`.
        """
        driver = self._sparse(volume)
        return driver is not None and await driver.refused(volume.id, epoch=volume.grant.epoch)


def failed(answers: Sequence[Answer]) -> list[Answer]:
    """The answers to a group after a loss: calls that were not refused themselves fail with EIO."""
    return [answer if answer.error else Answer(errno.EIO) for answer in answers]
