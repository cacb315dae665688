"""An image that is being received: long pieces are written past the page cache, short ones through it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.image.nocow import IMAGE

_DIRECT_BYTES = 128 << 10
"""A piece of so many bytes goes past the page cache, which takes a sixth of the processor's time. A shorter one would wait
for the disk alone; the kernel writes many of them together."""


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """An open image.

    Attributes:
        fd: through the page cache, for all but :meth:`write`. What a sync call on it says is true of both.
    """

    fd: int
    _direct: int

    def write(self, start: int, content: memoryview) -> None:
        """Write bytes from ``start`` on; they are durable after a sync call.

        Raises:
            OSError: the disk or the pool refused them.
        """
        written = 0
        if len(content) >= _DIRECT_BYTES and not (start | len(content)) % BLOCK_BYTES:
            written = os.pwrite(self._direct, content, start)
        while written < len(content):
            written += os.pwrite(self.fd, content[written:], start + written)


@contextmanager
def written_image(tree: Path) -> Iterator[WrittenImage]:
    """The image in a subvolume that is being received."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(tree / IMAGE, flags)
    try:
        direct = os.open(tree / IMAGE, flags | os.O_DIRECT)
        try:
            yield WrittenImage(fd, direct)
        finally:
            os.close(direct)
    finally:
        os.close(fd)
