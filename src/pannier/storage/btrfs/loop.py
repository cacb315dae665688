"""Loop devices for pools in files.

Nothing here asks about loop devices that are not ours, as ``losetup --list`` and ``--nooverlap`` do.
For that the kernel looks at each backing file, and a single one on a dead network or FUSE mount makes
the command hang.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from pannier.storage.blocking import in_thread
from pannier.storage.commands import run

_COMMAND_S = 60.0
_SYSFS = Path("/sys/block")
_GET_STATUS64 = 0x4C05
_STATUS_BYTES = 232


async def attach(source: Path) -> Path:
    """The loop device of a file, with direct I/O where the file's own file system can do that.

    A device that a crash left attached is used again.
    """
    found = await in_thread(find_attached, source)
    if found is not None:
        return found
    command = ["losetup", "--find", "--show"]
    finished = await run(
        [*command, "--direct-io=on", "--", str(source)], timeout_s=_COMMAND_S, check=False
    )
    if finished.status:
        finished = await run([*command, "--", str(source)], timeout_s=_COMMAND_S)
    return Path(finished.stdout.strip())


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
        fcntl.ioctl(fd, _GET_STATUS64, status)
    except OSError:
        return False
    finally:
        os.close(fd)
    return struct.unpack_from("<QQ", status, 0) == (file.st_dev, file.st_ino)
