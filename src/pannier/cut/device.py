"""What the kernel says of a loop device: counted sectors and flushes, and whether they mean something."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pannier.cut.doubt import Doubtful, DoubtKind

_FILE_BYTES = 4096
_CLOSED = -1
_WRITTEN, _DISCARDED, _FLUSHES = 6, 13, 15
"""Places in ``stat``, from 0 on. Zeroing counts as written."""
_ATTACHED = "loop/autoclear"
"""Detaching removes this file of sysfs, and an open one can never be read again: its value does not matter."""
_COUNTED, _CACHE = "queue/iostats", "queue/write_cache"
_EXT4, _OPTIONS = Path("/proc/fs/ext4"), "options"
"""What an ext4 is mounted with, by the name of its device."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What completed on a device, ever.

    Attributes:
        sectors: of 512 bytes, written, zeroed and discarded.
        flushes: of its cache.
    """

    sectors: int
    flushes: int


class LoopSettings:
    """The files in sysfs of a loop device that has an image now, and what its ext4 is mounted with, if it is mounted now.

    Args:
        device: its ``dev_t``.

    Raises:
        OSError: it is no loop device with an image.
    """

    def __init__(self, device: int) -> None:
        self._name = f"{os.major(device)}:{os.minor(device)}"
        self._open: dict[str, int] = {}
        folder = Path("/sys/dev/block") / self._name
        self._file = f"/dev/{folder.resolve().name}"
        mounted = _EXT4 / Path(self._file).name / _OPTIONS
        try:
            for file in ("stat", _ATTACHED, _COUNTED, _CACHE):
                self._open[file] = os.open(folder / file, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(FileNotFoundError):  # whoever writes to the device flushes it
                self._open[_OPTIONS] = os.open(mounted, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def statistics(self) -> Statistics:
        """Read them.

        Raises:
            Doubtful: the device is gone.
        """
        fields = self._read("stat").split()
        return Statistics(
            int(fields[_WRITTEN]) + int(fields[_DISCARDED]), flushes=int(fields[_FLUSHES])
        )

    def check(self) -> None:
        """Look whether the statistics mean what they must.

        Raises:
            Doubtful: nothing is flushed, flushes do not reach the disk, nothing is counted, or the image was detached.
        """
        self._read(_ATTACHED)
        self._check_barrier()
        for file, wanted in ((_CACHE, b"write back"), (_COUNTED, b"1")):
            found = self._read(file).strip()
            if found != wanted:
                raise Doubtful(
                    DoubtKind.SETTINGS,
                    f"{file} of block device {self._name} is {found.decode()}",
                    remedy=f"echo {wanted.decode()} > /sys/dev/block/{self._name}/{file}",
                )

    def _check_barrier(self) -> None:
        """An ext4 that was remounted with ``nobarrier`` orders its writes without flushes, which a cut counts on."""
        if _OPTIONS in self._open and b"barrier" not in self._read(_OPTIONS).split():
            raise Doubtful(
                DoubtKind.SETTINGS,
                f"the file system on {self._file} is mounted with nobarrier",
                remedy=f"mount -o remount,barrier $(findmnt -nfo TARGET {self._file})",
            )

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _read(self, file: str) -> bytes:
        try:
            return os.pread(self._open.get(file, _CLOSED), _FILE_BYTES, 0)
        except OSError as error:
            text = f"block device {self._name} has its image no more: {error}"
            raise Doubtful(DoubtKind.SETTINGS, text) from error
