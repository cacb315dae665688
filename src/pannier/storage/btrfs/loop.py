"""Loop devices for pools in files.

Nothing here asks about loop devices that are not ours, as ``losetup --list`` and ``--nooverlap`` do.
For that the kernel looks at each backing file, and a single one on a dead network or FUSE mount makes
the command hang.

A loop device's number keeps settings of whoever used it before. With the cache set to ``write through``,
the kernel sends no flush to the file: then a sync call returns before anything is on the disk, and a power
cut takes it all. Whoever attaches a file makes its settings sound.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import structlog

from pannier.host.ioctls import control
from pannier.storage.blocking import in_thread, told_as_storage_error
from pannier.storage.commands import run

_COMMAND_S = 60.0
_SYSFS = Path("/sys/block")
_GET_STATUS64 = 0x4C05
_STATUS_BYTES = 232
_FLUSHES = "write back"

log = structlog.get_logger(__name__)


async def attach(source: Path) -> Path:
    """The loop device of a file, with direct I/O where the file's own file system can do that.

    A device that a crash left attached is used again.
    """
    left = await in_thread(find_attached, source)
    device = left or await _attach(source)
    try:
        await in_thread(make_sound, device)
    except BaseException:
        if left is None:
            await detach(device)
        raise
    return device


async def _attach(source: Path) -> Path:
    command = ["losetup", "--find", "--show"]
    finished = await run(
        [*command, "--direct-io=on", "--", str(source)], timeout_s=_COMMAND_S, check=False
    )
    if finished.status:
        finished = await run([*command, "--", str(source)], timeout_s=_COMMAND_S)
    return Path(finished.stdout.strip())


def make_sound(device: Path) -> None:
    """Make an attached loop device flush, whatever its number was used for before; blocks.

    Raises:
        StorageError: its settings cannot be read or changed.
    """
    cache = _SYSFS / device.name / "queue/write_cache"
    with told_as_storage_error(f"make {device} flush what is written to it"):
        if cache.read_text().strip() != _FLUSHES:
            log.warning("loop.made-sound", device=str(device), write_cache=_FLUSHES)
            cache.write_text(_FLUSHES)


async def detach(device: Path) -> None:
    """Detach a loop device. If it is mounted, the kernel detaches it at the unmount."""
    await run(["losetup", "--detach", str(device)], timeout_s=_COMMAND_S, check=False)


def find_attached(source: Path) -> Path | None:
    """The loop device that ``source`` is attached to, or None; blocks."""
    wanted = os.path.realpath(source)
    for backing in _SYSFS.glob("loop*/loop/backing_file"):
        try:
            if backing.read_text(errors="surrogateescape").rstrip("\n") != wanted:
                continue
        except OSError:  # detached meanwhile
            continue
        device = Path("/dev") / backing.parent.parent.name
        # The path may mean another file: seen from another container, or replaced since.
        if device.is_block_device() and _backs(device, os.stat(source)):
            return device
    return None


def _backs(device: Path, file: os.stat_result) -> bool:
    status = bytearray(_STATUS_BYTES)
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control(fd, _GET_STATUS64, status)
    except OSError:
        return False
    finally:
        os.close(fd)
    return struct.unpack_from("<QQ", status, 0) == (file.st_dev, file.st_ino)
