"""How a btrfs pool is made, and how much room it has, as the kernel accounts for it.

``statvfs`` counts what is freed only at the next commit, and what was promised to writers but has no
place yet: on a pool of some gigabytes that is up to 1.6 GiB too much.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pannier.storage.btrfs import ioctl

_SPARE_METADATA = 256 << 20
"""A piece of metadata as the kernel allocates it, on disks of up to 50 GiB: without room for one,
snapshots fail. It is kept free of data."""
_ONE_COPY = ("single", "raid0")
_SECTOR_BYTES = 512  # what sysfs counts in


@dataclass(frozen=True, slots=True)
class Allocation:
    """A pool's accounts. Methods raise OSError if the kernel does not tell, as without sysfs.

    Attributes:
        mountpoint: of the pool.
        folder: its directory in sysfs.
    """

    mountpoint: Path
    folder: Path

    @classmethod
    def of(cls, mountpoint: Path) -> Allocation:
        """The accounts of the pool that is mounted there."""
        return cls(mountpoint, Path("/sys/fs/btrfs") / ioctl.filesystem_uuid(mountpoint))

    @property
    def keeps_data_twice(self) -> bool:
        """Whether it has, or is turned into, a profile with several copies of the data, as RAID1."""
        kinds = (self.folder / "allocation" / "data").iterdir()
        return any(kind.is_dir() and not kind.name.startswith(_ONE_COPY) for kind in kinds)

    @property
    def counts_references(self) -> bool:
        """Whether full quotas are on, which follow who shares what; simple ones do not."""
        mode = self.folder / "qgroups" / "mode"
        return mode.exists() and mode.read_text().strip() == "qgroup"

    def free_bytes(self) -> int:
        """What files can still take before the pool says that it is full."""
        places = self.folder / "allocation"
        kinds = ("data", "metadata", "system")
        taken = sum(_number(places / kind / "disk_total") for kind in kinds)
        size = self._size_bytes()
        unallocated = max(0, size - taken)
        metadata = places / "metadata"
        spare = min(_SPARE_METADATA, size // 20)
        missing = max(0, spare - _free(metadata))
        total, on_disk = _number(metadata / "total_bytes"), _number(metadata / "disk_total")
        copies = max(1, round(on_disk / total)) if total else 1  # 2 for DUP
        return max(0, _free(places / "data") + unallocated - missing * copies)

    def _size_bytes(self) -> int:
        """Of the file system: its devices may have been enlarged, and it not yet."""
        files = self.folder.glob("devices/*/size")
        devices = sum(_number(file) for file in files) * _SECTOR_BYTES
        found = os.statvfs(self.mountpoint)
        return min(devices, found.f_blocks * found.f_frsize)


def _free(kind: Path) -> int:
    """Bytes in the allocated pieces of one kind that nobody has, or was promised."""
    taken = ("bytes_used", "bytes_reserved", "bytes_pinned", "bytes_may_use", "bytes_readonly")
    return _number(kind / "total_bytes") - sum(_number(kind / name) for name in taken)


def _number(file: Path) -> int:
    return int(file.read_text())
