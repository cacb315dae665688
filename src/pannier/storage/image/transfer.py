"""A generation of an image is sent as a stream: what differs from its base, read from snapshots."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pannier.core.errors import Unreadable
from pannier.core.line import Buffer, Data, Zeros
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.image.extents import Range, difference, extents, unshared
from pannier.storage.image.identity import identity_of, last_change_of
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.stream import RECORD_BYTES, Encoder, StreamHeader
from pannier.storage.slow_reading import DAMAGE


def send(tree: Path, parent: Path | None, pipe: int, *, position: int = 0) -> None:
    """Write what a generation has that its base has not, or all of it, to a pipe.

    Args:
        tree: the subvolume of the generation; parent: of the base.
        position: leave out what is before this byte. It need not have been sent by this node: whoever sends it,
            no byte that differs is left out.

    Raises:
        OSError: reading or writing failed. Corrupt: the image is none of ours.
        Unreadable: the disk does not give back a block.
    """
    with _image(tree) as file:
        size = os.fstat(file).st_size
        if parent is None:
            base, ranges = None, difference(extents(file), size)
        else:
            with _image(parent) as other:
                made = min(last_change_of(parent), last_change_of(tree))
                base = identity_of(parent)
                ours, theirs = unshared(file, other, made=made)
                ranges = difference(ours, size, theirs, made=made)
        encoder = Encoder()
        header = StreamHeader(size=size, identity=identity_of(tree), base=base, position=position)
        _write(pipe, encoder.header(header))
        for record in _records(file, behind(ranges, position)):
            head, content = encoder.record(record)
            _write(pipe, head)
            _write(pipe, content)
        _write(pipe, encoder.end())


@contextmanager
def _image(tree: Path) -> Iterator[int]:
    # Past the page cache: what is sent is not read again, and this takes a tenth of the processor's time.
    fd = os.open(tree / IMAGE, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def behind(ranges: Iterable[Range], position: int) -> Iterator[Range]:
    """What of some ranges is not before a byte."""
    for each in ranges:
        if each.end > position:
            yield Range(max(each.start, position), each.end, each.zero)


def _records(file: int, ranges: Iterable[Range]) -> Iterator[Zeros | Data]:
    """The records of these ranges. The bytes of one are good until the next."""
    buffer = memoryview(mmap.mmap(-1, RECORD_BYTES))
    for each in ranges:
        if each.zero:
            yield Zeros(each.start, each.end)
            continue
        for start in range(each.start, each.end, RECORD_BYTES):
            content = buffer[: min(RECORD_BYTES, each.end - start)]
            _read(file, content, start)
            yield Data(start, content)


def _read(file: int, content: memoryview, start: int) -> None:
    """Fill ``content``. Where the disk does not give it back at once, each block is asked for by itself."""
    if _is_read(file, content, start):
        return
    for at in range(0, len(content), BLOCK_BYTES):
        if not _is_read(file, content[at : at + BLOCK_BYTES], start + at):
            raise Unreadable(
                f"the image's block at {start + at} cannot be read",
                remedy="see `dmesg` on this node",
            )


def _is_read(file: int, content: memoryview, start: int) -> bool:
    """The kernel gives what is before a bad block, or says EIO."""
    try:
        return os.preadv(file, [content], start) == len(content)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        return False


def _write(pipe: int, content: Buffer) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(pipe, rest) :]
