"""Whether a file system takes writes, and whether its disk does. After a disk error, btrfs and ext4 refuse them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from pannier.core.errors import DiskFailed, PannierError
from pannier.host.mountinfo import locate, own_mounts
from pannier.storage.blocking import told_as_storage_error

_PROBE = ".probe"
_BLOCK_DEVICES = Path("/sys/dev/block")
_WRITES, _FLUSHES = 4, 15
"""Places in a device's ``stat``, from 0 on. Before Linux 5.5 it has no flushes."""


def check_disk(folder: Path, *, by_writing: bool = False) -> None:
    """See :meth:`pannier.storage.base.Driver.check_disk`; blocks, for ever on a disk that hangs."""
    with told_as_storage_error(f"see whether {folder} takes writes"):
        if by_writing:
            _write(folder / _PROBE)
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise _failed(folder, "it has gone read-only, as after an error of the disk")


class DiskWrites:
    """What the kernel has counted on the block device under a folder. Nothing here waits for that.

    Args:
        folder: anything on the file system.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stat: Path | None = None

    def done(self) -> int | None:
        """See :meth:`pannier.storage.base.Driver.writes_done`. Of a file system on several devices, those of one."""
        if self._stat is None:
            self._stat = _stat_of(self._folder)
        if self._stat is None:
            return None
        try:
            fields = self._stat.read_text().split()
        except OSError:  # the device is gone; there may be another one by the next time
            self._stat = None
            return None
        return sum(map(int, fields[_WRITES : _WRITES + 1] + fields[_FLUSHES : _FLUSHES + 1]))


def _stat_of(folder: Path) -> Path | None:
    """The statistics of the device under a folder; None where no block device is."""
    mounts = own_mounts()
    with suppress(PannierError):
        number = locate(folder.resolve(), mounts).device
        numbers = [number]
        for mount in mounts:
            if (
                mount.device == number
            ):  # btrfs has a number of its own, and names one of its devices
                with suppress(OSError, ValueError):
                    device = os.stat(mount.source).st_rdev
                    numbers.append(f"{os.major(device)}:{os.minor(device)}")
        for each in numbers:
            if (stat := _BLOCK_DEVICES / each / "stat").exists():
                return stat
    return None


def _write(probe: Path) -> None:
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in (errno.EIO, errno.EROFS):
            raise _failed(probe.parent, error.strerror or str(error)) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _failed(folder: Path, why: str) -> DiskFailed:
    return DiskFailed(
        f"{folder} takes no writes any more: {why}",
        remedy="see `dmesg`, mend or replace the disk, and restart the node; meanwhile nodes with a "
        "copy in sync take over",
    )
