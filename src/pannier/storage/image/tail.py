"""Putting the records of a journal on top of an image that nobody uses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pannier.core.line import Data, Record, Zeros
from pannier.host.files import punch_hole


def put_on_top(image: Path, records: Iterable[Record]) -> None:
    """Write what the records have, in order, and make it durable.

    Raises:
        OSError: the disk refused something.
    """
    fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for record in records:
            if record.size != os.fstat(fd).st_size:
                os.ftruncate(fd, record.size)
            for one in record.ranges:
                match one:
                    case Data(start, content):
                        _write(fd, memoryview(content), start)
                    case Zeros(start, end):
                        punch_hole(fd, start, end - start)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, content: memoryview, start: int) -> None:
    while content:
        written = os.pwrite(fd, content, start)
        content, start = content[written:], start + written
