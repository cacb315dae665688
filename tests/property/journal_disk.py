"""A disk in memory for the journal, which loses power: what was flushed is there, and of the rest any sectors."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from threading import Thread

from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.line import Data, LinePlace, LineRecord, encode
from pannier.storage.journal.file import fill
from pannier.storage.journal.journal import Journal
from pannier.storage.journal.layout import BLOCK_BYTES, Geometry

SECTOR_BYTES = 512
SMALL = Geometry(identity=b"0123456789abcdef", segments=4, segment_bytes=16 * BLOCK_BYTES)


class PowerCut(OSError):
    """As the end of the machine: no later call does anything."""


class MemoryDisk:
    """A medium. Power goes after a number of writes and flushes, or never.

    What a flush that failed did not flush is lost by the next power cut, although it can be read until then, and although later
    flushes succeed: so kernels and disks do it.
    """

    def __init__(self, content: bytes | bytearray, *, cut_after: int | None = None) -> None:
        self.content = bytearray(content)
        self.flushed = bytes(content)
        self.unflushed: list[tuple[int, bytes]] = []
        self._left = cut_after
        self.steps = 0
        self.closed = False

    def read(self, start: int, length: int) -> bytes:
        return bytes(self.content[start : start + length])

    def write(self, start: int, content: memoryview) -> None:
        assert start % BLOCK_BYTES == 0
        assert len(content) % BLOCK_BYTES == 0
        self.unflushed.append((start, bytes(content)))
        self._step()
        self.content[start : start + len(content)] = content

    def sync(self) -> None:
        self._step()
        flushed = bytearray(self.flushed)
        for start, written in self.unflushed:
            flushed[start : start + len(written)] = written
        self.flushed = bytes(flushed)
        self.unflushed.clear()

    def close(self) -> None:
        self.closed = True

    def cut_after(self, steps: int) -> None:
        """Let power go after so many writes and flushes from now on."""
        self._left = steps

    def _step(self) -> None:
        self.steps += 1
        if self._left is not None:
            if self._left == 0:
                raise PowerCut(5, "the power is gone")
            self._left -= 1

    def after_restart(self, *, cut_after: int | None) -> MemoryDisk:
        """The disk as the next process finds it."""
        disk = MemoryDisk(bytes(self.content), cut_after=cut_after)
        disk.flushed = self.flushed
        return disk

    def after_power_cut(self, chance: random.Random) -> bytes:
        """What the disk may have: of what was not flushed, any sectors, in any order."""
        content = bytearray(self.flushed)
        keep = chance.choice((0.0, 0.5, 0.9, 1.0))
        for start, written in self.unflushed:
            for at in range(0, len(written), SECTOR_BYTES):
                if chance.random() < keep:
                    content[start + at : start + at + SECTOR_BYTES] = written[
                        at : at + SECTOR_BYTES
                    ]
        return bytes(content)


def empty(geometry: Geometry = SMALL) -> bytes:
    """A new journal."""
    disk = MemoryDisk(bytes(geometry.size_bytes))
    fill(disk, geometry)
    return bytes(disk.content)


def opened(
    disk: MemoryDisk,
    *,
    volumes: tuple[str, ...] = (),
    geometry: Geometry = SMALL,
    stranger: bool = False,
) -> Journal:
    """The journal on a disk."""
    return Journal(disk, geometry, volumes=volumes, what="the journal", stranger=stranger)


def place(
    volume: str = "v-1", number: int = 1, *, after: int = 1, run: str = "0" * 16
) -> LinePlace:
    """Of a record that was made after the generation ``after``."""
    return LinePlace(
        volume=volume,
        epoch=1,
        run=run,
        number=number,
        generation=Generation(1, after, "0f3a94c1"),
        included=0,
    )


def record(at: LinePlace, *, blocks: int = 1) -> LineRecord:
    """A record whose content tells it from all others."""
    content = f"{at.volume} {at.number} {at.run}".encode().ljust(BLOCK_BYTES * blocks, b"+")
    return LineRecord(place=at, size=1 << 30, ranges=(Data(0, content),))


def append(journal: Journal, at: LinePlace, *, blocks: int = 1) -> None:
    """Keep the record of a place."""
    journal.append(encode(record(at, blocks=blocks)), at)


def append_together(journal: Journal, places: Sequence[LinePlace]) -> list[PannierError | None]:
    """Keep records with one flush; what became of each."""
    errors: list[PannierError | None] = [None] * len(places)

    def one(index: int) -> None:
        try:
            append(journal, places[index])
        except PannierError as error:
            errors[index] = error

    with journal._lock:
        journal._writing = True  # as if somebody wrote just now
    threads = [Thread(target=one, args=(index,)) for index in range(len(places))]
    for thread in threads:
        before = len(journal._waiting)
        thread.start()
        while thread.is_alive() and len(journal._waiting) == before:
            time.sleep(0)
    with journal._lock:
        journal._writing = False
        for each in journal._waiting[:1]:
            each.woken.set()
    for thread in threads:
        thread.join()
    return errors
