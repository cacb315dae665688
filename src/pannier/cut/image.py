"""Reads a live image, by direct I/O only: through the page cache, a container's write would fail."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pannier.core.line import Data, Range, Zeros
from pannier.cut.doubt import Doubtful, DoubtKind
from pannier.cut.spans import BLOCK_BYTES, Span, Written
from pannier.host.together import read_pieces

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
        memory = mmap.mmap(-1, _BUFFER_BYTES)
        self._buffer = memoryview(memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

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
        pieces.sort()
        total = sum(end - start for (start, end), is_data in pieces if is_data)
        if total > limit_bytes:
            raise Doubtful(DoubtKind.TOO_MUCH, f"more than {limit_bytes} bytes were written")
        contents = self._contents([span for span, is_data in pieces if is_data])
        return [
            Data(start, next(contents)) if is_data else Zeros(start, end)
            for (start, end), is_data in pieces
        ]

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

    def _contents(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The bytes of each span."""
        steps = self._steps(spans)
        for start, end in spans:
            parts = [next(steps) for _ in range(start, end, _BUFFER_BYTES)]
            yield parts[0] if len(parts) == 1 else b"".join(parts)

    def _steps(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The same in parts that fit into the buffer; as many as fit together are read at once."""
        batch: list[Span] = []
        left = _BUFFER_BYTES
        for start, end in spans:
            for at in range(start, end, _BUFFER_BYTES):
                step = at, min(end, at + _BUFFER_BYTES)
                if step[1] - step[0] > left:
                    yield from self._batch(batch)
                    batch, left = [], _BUFFER_BYTES
                batch.append(step)
                left -= step[1] - step[0]
        yield from self._batch(batch)

    def _batch(self, steps: Sequence[Span]) -> Iterator[bytes]:
        into, pieces = 0, []
        for start, end in steps:
            pieces.append((start, end - start, self._address + into))
            into += end - start
        into = 0
        for (start, end), got in zip(steps, read_pieces(self._fd, pieces), strict=True):
            if got != end - start:
                raise OSError(errno.EIO, f"the image ends at {start + got}, and not after {end}")
            yield bytes(self._buffer[into : into + got])
            into += got
