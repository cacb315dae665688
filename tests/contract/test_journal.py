"""The journal in a real pool: its room is certain, one process has it, and a failed disk is told once and for all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pannier.core.errors import Conflict, InvalidInput, JournalFull, StorageError
from pannier.core.generation import Generation
from pannier.core.line import Data, LinePlace, LineRecord, encode
from pannier.host.files import punch_hole
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import nocow
from pannier.storage.journal.journal import Journal
from pannier.storage.journal.opening import NOTE, open_journal

pytestmark = pytest.mark.root

MIB = 1 << 20
SIZE = 65 * MIB


@dataclass(frozen=True)
class Pool:
    """A pool on a loop device over a file of a small tmpfs: a disk that can fail."""

    disk: Path
    file: Path
    mountpoint: Path

    @property
    def journal(self) -> Path:
        return self.mountpoint / "journal"

    def break_disk(self) -> None:
        """No block is there any more, and there is no room for others: writes end with EIO."""
        fd = os.open(self.file, os.O_RDWR)
        try:
            with (self.disk / "ballast").open("wb") as ballast:
                free = os.statvfs(self.disk)
                os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_bsize)
            self._punch(fd)
            with (self.disk / "more").open("wb") as ballast:
                free = os.statvfs(self.disk)
                os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_bsize)
        finally:
            os.close(fd)

    def _punch(self, fd: int) -> None:
        """Take what the journal would write next: most of its zeros."""
        size = os.fstat(fd).st_size
        at = 0
        while at < size:
            at = os.lseek(fd, at, os.SEEK_DATA)
            if os.pread(fd, MIB, at) == bytes(MIB):
                punch_hole(fd, at, MIB)
            at += MIB
            if at >= size or at > 600 * MIB:
                break


def unmount(disk: Path) -> None:
    """Unmount what the pool's loop device had its file on: the kernel may close that file a moment after the device is gone."""
    until = time.monotonic() + 10
    while (done := subprocess.run(["umount", disk], capture_output=True, text=True)).returncode:
        assert "busy" in done.stderr, done.stderr
        assert time.monotonic() < until, done.stderr
        time.sleep(0.05)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="pannier-journal-") as folder:
        disk, mountpoint = Path(folder) / "disk", Path(folder) / "pool"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400M", "tmpfs", disk], check=True)
        try:
            file = disk / "pool.img"
            asyncio.run(create_pool(file, mountpoint=mountpoint, size_bytes=300 * MIB))
            try:
                yield Pool(disk, file, mountpoint)
            finally:
                assert asyncio.run(close_pool(mountpoint))
        finally:
            unmount(disk)


def record(number: int, volume: str = "v-1", *, length: int = 8192) -> LineRecord:
    generation = Generation(1, 1, "0f3a94c1")
    place = LinePlace(
        volume=volume, epoch=1, run="0" * 16, number=number, generation=generation, included=0
    )
    content = f"{volume} {number}".encode().ljust(length, b"+")
    return LineRecord(place=place, size=1 << 30, ranges=(Data(0, content),))


def append(journal: Journal, one: LineRecord) -> None:
    journal.append(encode(one), one.place)


def opened(pool: Pool, size_bytes: int = SIZE) -> Journal:
    return open_journal(pool.journal, size_bytes=size_bytes, volumes=["v-1"])


def append_many(journal: Journal, *, to: int = 20) -> None:
    for number in range(2, to):
        append(journal, record(number, length=2 * MIB))


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())


def test_what_was_appended_by_many_is_there_after_a_restart(pool: Pool) -> None:
    journal = opened(pool)
    volumes = [f"v-{number}" for number in range(16)]

    def run(volume: str) -> None:
        for number in range(1, 21):
            append(journal, record(number, volume))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(run, volumes))
    journal.close()
    again = opened(pool)
    for volume in volumes:
        assert [each.number for each in again.places(volume)] == list(range(1, 21))
        for place in again.places(volume):
            assert again.read(place) == record(place.number, volume)
    assert again.damaged() == {}
    again.close()


def test_a_volume_that_fills_its_share_leaves_room_for_others(pool: Pool) -> None:
    journal = opened(pool)
    with pytest.raises(JournalFull, match="records of volume v-1"):
        append_many(journal, to=1000)
    usage = journal.usage()
    assert usage.live_bytes <= usage.most_volume_bytes
    for number in range(1, 10):
        append(journal, record(number, "v-2", length=MIB))
    journal.close()


def test_it_is_written_once_without_copy_on_write_and_keeps_its_size(pool: Pool) -> None:
    with pytest.raises(InvalidInput, match="too small"):
        opened(pool, 10 * MIB)
    opened(pool).close()
    before = pool.journal.stat()
    assert before.st_blocks * 512 >= before.st_size
    fd = os.open(pool.journal, os.O_RDONLY)
    try:
        assert nocow.is_nocow(fd)
    finally:
        os.close(fd)
    opened(pool, 200 * MIB).close()
    assert pool.journal.stat().st_size == before.st_size
    assert [each.name for each in pool.mountpoint.glob(".new-*")] == []


def test_only_one_has_it(pool: Pool) -> None:
    journal = opened(pool)
    with pytest.raises(Conflict):
        opened(pool)
    journal.close()
    opened(pool).close()


def test_a_full_pool_takes_nothing_from_it(pool: Pool) -> None:
    journal = opened(pool)
    ballast = pool.mountpoint / "ballast"
    with pytest.raises(OSError, match="No space"):
        fill(ballast)
    for number in range(1, 31):  # two laps of it
        append(journal, record(number, length=4 * MIB))
        journal.settle("v-1", Generation(1, 2))
    append(journal, record(100))
    journal.close()
    again = opened(pool)
    assert again.last("v-1") == record(100).place
    again.close()
    ballast.unlink()


def test_after_the_disk_refused_a_write_nothing_is_kept_and_what_was_is_read(pool: Pool) -> None:
    journal = opened(pool)
    append(journal, record(1))
    assert journal.failure() is None
    pool.break_disk()
    with pytest.raises(StorageError, match="cannot write the journal"):
        append_many(journal)
    kept = journal.places("v-1")
    with pytest.raises(StorageError, match="takes nothing any more"):
        append(journal, record(100))
    failure = journal.failure()
    assert failure is not None
    assert "takes nothing any more" in failure.message
    assert journal.places("v-1") == kept
    assert journal.read(record(1).place) == record(1)
    journal.close()
    for name in ("ballast", "more"):
        (pool.disk / name).unlink()
    again = opened(pool)
    assert again.places("v-1")[: len(kept)] == kept
    append(again, record(200))
    again.close()


# -- another journal in its place -----------------------------------------------------------------------


def moved_away(pool: Pool) -> Path:
    """What a person does with a journal that cannot be read."""
    return pool.journal.rename(pool.mountpoint / "away")


def test_a_journal_in_place_of_one_that_was_moved_away_knows_what_it_does_not_have(
    pool: Pool,
) -> None:
    journal = opened(pool)
    append(journal, record(1))
    journal.close()
    moved_away(pool)
    for _ in range(2):  # a restart does not end it
        journal = opened(pool)
        assert list(journal.damaged()) == ["v-1"]
        assert "another journal" in journal.damaged()["v-1"]
        journal.settle("v-1", Generation(1, 9))
        journal.close()
    journal = opened(pool)
    journal.mended("v-1")
    journal.close()
    again = opened(pool)
    assert again.damaged() == {}
    again.close()


def test_a_journal_that_comes_back_lacks_what_was_kept_meanwhile(pool: Pool) -> None:
    opened(pool).close()
    away = moved_away(pool)
    journal = opened(pool)
    journal.mended("v-1")
    append(journal, record(1))
    journal.close()
    away.rename(pool.journal)
    again = opened(pool)
    assert list(again.damaged()) == ["v-1"]
    again.close()


@pytest.mark.parametrize("until", ["made", "opened", "noted"])
def test_the_power_goes_while_another_journal_is_made(
    pool: Pool, until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is in the journal before the note says that it is the one."""
    opened(pool).close()
    moved_away(pool)

    def cut(*_: object, **__: object) -> None:
        raise InterruptedError("the power is gone")

    def cut_open(journal: Journal) -> None:
        journal._medium.close()  # as the end of the process
        cut()

    module = "pannier.storage.journal.opening"
    with monkeypatch.context() as patch:
        match until:
            case "made":
                patch.setattr(f"{module}.Journal", cut)
            case "opened":
                patch.setattr(Journal, "tells_all", property(cut_open))
            case "noted":
                patch.setattr(f"{module}.write_file", cut)
        with suppress(InterruptedError, StorageError):
            opened(pool).close()
    again = opened(pool)
    assert list(again.damaged()) == ["v-1"]
    again.close()


def test_a_journal_that_is_gone_and_cannot_be_made_anew_is_no_pool_without_one(pool: Pool) -> None:
    with pytest.raises(InvalidInput):
        opened(pool, 10 * MIB)
    opened(pool).close()
    moved_away(pool)
    with pytest.raises(StorageError, match="is gone, and no other one can be made"):
        opened(pool, 10 * MIB)


def test_the_journal_of_an_earlier_version_is_taken_for_the_right_one(pool: Pool) -> None:
    journal = opened(pool)
    append(journal, record(1))
    journal.close()
    (pool.mountpoint / NOTE).unlink()
    again = opened(pool)
    assert again.damaged() == {}
    again.close()
    moved_away(pool)
    journal = opened(pool)
    assert list(journal.damaged()) == ["v-1"]
    journal.close()
