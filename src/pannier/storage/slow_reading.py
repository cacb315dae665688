"""Reading large files from the disk, slowly, since others use the disk too."""

from __future__ import annotations

import errno
import os
import threading
import time

from pannier.core.errors import Corrupt

CHUNK_BYTES = 1 << 20
BYTES_PER_SECOND = 100 << 20
"""The limit for reading."""
DAMAGE = (errno.EIO, errno.EUCLEAN)
"""What a disk, or a file system with checksums, says of bytes that are not what was written."""


class ReadingStopped(Exception):
    """Nobody waits for the outcome any more."""


class SlowReader:
    """Reads at BYTES_PER_SECOND at most, into one buffer.

    Args:
        stop: set when nobody waits any more.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._buffer = memoryview(bytearray(CHUNK_BYTES))

    def read(self, fd: int, at: int, length: int = CHUNK_BYTES) -> memoryview:
        """The bytes of an open file from ``at`` on, CHUNK_BYTES at most; empty behind its end.

        They are in the buffer until the next call.

        Raises:
            OSError: the disk refused. ReadingStopped: ``stop`` was set.
        """
        if self._stop.is_set():
            raise ReadingStopped
        began = time.monotonic()
        got = os.preadv(fd, [self._buffer[:length]], at)
        self._stop.wait(max(0.0, got / BYTES_PER_SECOND - (time.monotonic() - began)))
        return self._buffer[:got]


def damaged(of: str, where: str) -> Corrupt:
    """The error for bytes that are not what was written.

    Args:
        of: what was read, as "generation 1.2 of volume v". where: in which part of it.
    """
    return Corrupt(
        f"{of} is damaged: {where} cannot be read as it was written",
        remedy="see `dmesg` on that node, and replace its disk if it happens again",
    )
