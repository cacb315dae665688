"""Reads a live image, by direct I/O only: through the page cache, a container's write would fail."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pannier.core.line import Data, Range, Zeros
from pannier.cut.doubt import Doubtful, DoubtKind
from pannier.cut.spans import BLOCK_BYTES, Span, Written

_BUFFER_BYTES = 256 << 10
"""Read at once; kept by each open image."""
_MOST_RANGES = 1 << 14
"""Of a cut at most: data has fewer, and a record of so many holes has a table of 400 KiB."""


class ImageReader:
    """A live image, open for reading. For one thread at a time.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self._fd).st_size

    def read(self, what: Written, *, limit_bytes: int) -> list[Range]:
        """The present content of some spans, sorted and disjoint.

        Raises:
            Doubtful: it is more than the limit; zeros do not count.
            OSError: it cannot be read, or ends before.
        """
        pieces = [(span, True) for span in what.plain]
        for span in what.hollow:
            pieces.extend(self._in_holes(span))
            if len(pieces) > _MOST_RANGES:
                raise Doubtful(
                    DoubtKind.TOO_MUCH, f"more than {_MOST_RANGES} places were discarded or zeroed"
                )
        total = 0
        found: list[Range] = []
        for (start, end), is_data in sorted(pieces):
            if not is_data:
                found.append(Zeros(start, end))
                continue
            total += end - start
            if total > limit_bytes:
                raise Doubtful(DoubtKind.TOO_MUCH, f"more than {limit_bytes} bytes were written")
            found.append(Data(start, self._bytes(start, end)))
        return found

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _in_holes(self, span: Span) -> Iterator[tuple[Span, bool]]:
        """A span's pieces, and whether they have data. A hole is zeros, and need not be read."""
        at, end = span
        while at < end:
            data = min(end, self._seek(at, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES)
            if at < data:
                yield (at, data), False
            if data == end:
                return
            at = min(end, -(-self._seek(data, os.SEEK_HOLE) // BLOCK_BYTES) * BLOCK_BYTES)
            yield (data, at), True

    def _seek(self, at: int, whence: int) -> int:
        """Where the next data or hole begins."""
        try:
            return max(at, os.lseek(self._fd, at, whence))
        except OSError as error:
            if error.errno == errno.ENXIO:  # holes only, or nothing, from here on
                return self.size
            raise

    def _bytes(self, start: int, end: int) -> bytes:
        if end - start <= _BUFFER_BYTES:
            return self._piece(start, end)
        steps = range(start, end, _BUFFER_BYTES)
        return b"".join(self._piece(at, min(end, at + _BUFFER_BYTES)) for at in steps)

    def _piece(self, start: int, end: int) -> bytes:
        at = 0
        while at < end - start:
            got = os.preadv(self._fd, [self._buffer[at : end - start]], start + at)
            if got <= 0 or got % BLOCK_BYTES:
                raise OSError(
                    errno.EIO, f"the image ends at {start + at + got}, and not after {end}"
                )
            at += got
        return bytes(self._buffer[: end - start])
