"""Whether a file system takes writes. After a disk error, btrfs and ext4 refuse them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pannier.core.errors import DiskFailed
from pannier.storage.blocking import told_as_storage_error

_PROBE = ".probe"


def check_disk(folder: Path, *, by_writing: bool = False) -> None:
    """See :meth:`pannier.storage.base.Driver.check_disk`; blocks."""
    with told_as_storage_error(f"see whether {folder} takes writes"):
        if by_writing:
            _write(folder / _PROBE)
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise _failed(folder, "it has gone read-only, as after an error of the disk")


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
