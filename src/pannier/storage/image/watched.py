"""The one descriptor of a mount that hears of every loss.

The kernel tells an error of writing to each open file once: the next sync call says that all is well,
and so does one of another file. So one descriptor of each mount is opened at its first moment, and
nobody else uses it: an error that happened since cannot have been told to anybody else instead.

Only syncfs asks it, and that writes out everything. What ext4 has counted costs nothing to read, but does
not have all: a refused overwrite of a file's data, which ext4 itself does not need, is not in it.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from pannier.host.syncing import sync_file_system
from pannier.storage.image import ext4


class WatchedMount:
    """A mount of an image, from :meth:`watch` to :meth:`forget`. Thread-safe.

    No method but :meth:`write_out` waits for the disk, or for one that does.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._kept: int | None = None
        self._counted: int | None = None
        """What the kernel tells of ext4's errors, open as well: each sync call asks."""
        self._lock = threading.Lock()
        """Taken to use or change ``_kept``: its number is another file's once it is closed."""

    def watch(self) -> None:
        """Open the descriptor, unless it is open. It keeps the mount from being unmounted."""
        with self._lock:
            if self._kept is None:
                kept = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._counted = ext4.open_error_count(os.fstat(kept).st_dev)
                except BaseException:
                    os.close(kept)
                    raise
                self._kept = kept

    def forget(self) -> None:
        """Close it. What was not told by then is never told."""
        with self._lock:
            for fd in (self._kept, self._counted):
                if fd is not None:
                    os.close(fd)
            self._kept = self._counted = None

    @property
    def is_watched(self) -> bool:
        """Whether the descriptor is open."""
        return self._kept is not None

    def write_out(self) -> None:
        """Bring everything to the disk; meanwhile the mount cannot be unmounted.

        Raises:
            OSError: something was refused since the last call of this method, or the mount's first moment.
        """
        with self._lock:
            # A second number of the same open file: a loss that is told to one is told to the other.
            fd = os.dup(self._require_open(self._kept))
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)

    def errors(self) -> int:
        """How many errors ext4 has counted since the image was last checked. Does not wait for the disk.

        Raises:
            OSError: it is not watched, or the kernel does not tell.
        """
        with self._lock:
            return ext4.error_count(self._require_open(self._counted))

    def _require_open(self, fd: int | None) -> int:
        if fd is None:
            raise OSError(errno.ENODEV, "it is not mounted", str(self._place))
        return fd
