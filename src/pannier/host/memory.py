"""What the kernel may keep in memory of data that is not written yet."""

from __future__ import annotations

import os
from pathlib import Path

_COUNTS = Path("/proc/vmstat")


def dirty_limit_bytes() -> int:
    """From how many bytes on writers wait, over all disks.

    Raises:
        OSError: the kernel does not tell.
    """
    for line in _COUNTS.read_text().splitlines():
        name, _, pages = line.partition(" ")
        if name == "nr_dirty_threshold":
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
    raise FileNotFoundError(f"{_COUNTS} has no nr_dirty_threshold")
