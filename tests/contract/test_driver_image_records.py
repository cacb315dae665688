"""Real images: what one node's trace tells is kept by another node's journal, and is there after a takeover."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_driver_kit import ROOT, pools, workplace

from pannier.core.errors import Corrupt, JournalFull, NotFollowing, StorageError
from pannier.core.generation import Generation
from pannier.core.line import (
    MOST_BYTES,
    Cut,
    Data,
    Doubt,
    LinePlace,
    LineRecord,
    OnTop,
    encode,
    new_run,
)
from pannier.core.set_back import lacks_confirmed
from pannier.cut import tracefs
from pannier.cut.tracer import Tracer
from pannier.storage.base import LocalCopy
from pannier.storage.btrfs.layout import Home
from pannier.storage.btrfs.subvolumes import SubvolumeDriver
from pannier.storage.image import nocow
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.kept import JOURNAL, KeptRecords
from pannier.storage.lines import JournalState

__all__ = ["pools", "workplace"]
pytestmark = pytest.mark.root
SIZE = 64 << 20


@dataclass
class Pair:
    """A holder and a copy."""

    holder: ImageDriver
    copy: ImageDriver
    volume: str
    trace: str

    @property
    def data(self) -> Path:
        return self.holder.data_path(self.volume, 1)

    @property
    def nowhere(self) -> LinePlace:
        """A place for what is not told."""
        return LinePlace(
            volume=self.volume,
            epoch=1,
            run=new_run(),
            number=1,
            generation=Generation(1, 1),
            included=0,
        )

    async def send(self, generation: Generation, base: Generation | None = None) -> None:
        async with (
            self.holder.send(self.volume, generation, base=base) as source,
            self.copy.receive(self.volume, generation, base=base) as target,
        ):
            while piece := os.read(source, 1 << 20):
                os.write(target, piece)

    async def begin(self) -> LinePlace:
        """A run: the copy has its generation. Returns the place before its first record."""
        assert await self.holder.watch(self.volume, epoch=1) is None
        generation = await self.holder.snapshot(self.volume, epoch=1)
        await self.send(generation)
        return LinePlace(
            volume=self.volume,
            epoch=1,
            run=new_run(),
            number=0,
            generation=generation,
            included=0,
        )

    async def synced(self, before: LinePlace, name: str, content: bytes) -> tuple[LinePlace, bytes]:
        """A file that is written and synced, as the record after another one."""
        with (self.data / name).open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        place = replace(before, number=before.number + 1)
        found = await self.holder.cut(place)
        assert isinstance(found, Cut), found
        assert found.ranges
        record = LineRecord(place=place, size=found.size, ranges=found.ranges)
        return place, b"".join(encode(record))


@pytest.fixture
async def pair(pools: list[Path], workplace: Path) -> AsyncIterator[Pair]:
    name = f"pannier-test-{uuid.uuid4().hex[:8]}"
    holder, copy = (
        ImageDriver(pool, staging=workplace / f"staging-records-{pool.name}", trace=name)
        for pool in pools[:2]
    )
    pair = Pair(holder, copy, f"v-{uuid.uuid4().hex[:12]}", name)
    await holder.open()
    await copy.open()
    try:
        await holder.create(pair.volume, epoch=1, root=ROOT, size_bytes=SIZE)
        await holder.attach(pair.volume, epoch=1, grow=False)
        yield pair
    finally:
        for driver in (pair.holder, pair.copy):
            await driver.delete(pair.volume)
            await driver.close()
        tracefs.remove(name)


async def restart_copy(pair: Pair, workplace: Path) -> None:
    await pair.copy.close()
    pair.copy = ImageDriver(
        pair.copy._mountpoint, staging=workplace / f"staging-records-{pair.copy._mountpoint.name}"
    )
    await pair.copy.open()


async def taken_over(pair: Pair, generation: Generation) -> Path:
    await pair.copy.promote(pair.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.ALL)
    await pair.copy.attach(pair.volume, epoch=2, grow=False)
    return pair.copy.data_path(pair.volume, 2)


async def test_a_takeover_has_what_only_records_told(pair: Pair) -> None:
    place = await pair.begin()
    wanted = {f"file-{number}": os.urandom(5000 * number) for number in range(1, 6)}
    for name, content in wanted.items():
        place, encoded = await pair.synced(place, name, content)
        pair.copy.keep(place, encoded)
    there = await taken_over(pair, place.generation)
    assert {file.name: file.read_bytes() for file in there.iterdir()} == wanted


async def test_records_outlast_the_daemon_of_a_copy(pair: Pair, workplace: Path) -> None:
    place = await pair.begin()
    place, encoded = await pair.synced(place, "file", b"kept")
    pair.copy.keep(place, encoded)
    await restart_copy(pair, workplace)
    assert (await pair.copy.inspect(pair.volume)).last == place
    there = await taken_over(pair, place.generation)
    assert (there / "file").read_bytes() == b"kept"


async def test_a_record_without_the_one_before_is_refused(pair: Pair) -> None:
    place = await pair.begin()
    first, _ = await pair.synced(place, "one", b"1")
    second, encoded = await pair.synced(first, "two", b"2")
    with pytest.raises(NotFollowing):
        pair.copy.keep(second, encoded)
    assert (await pair.copy.inspect(pair.volume)).last is None


async def test_a_generation_that_is_confirmed_frees_the_records_before_it(pair: Pair) -> None:
    place = await pair.begin()
    first = place.generation
    place, encoded = await pair.synced(place, "one", b"1")
    pair.copy.keep(place, encoded)
    generation = await pair.holder.snapshot(pair.volume, epoch=1)
    await pair.send(generation, base=first)
    await pair.copy.settle(pair.volume, generation)
    assert (await pair.copy.inspect(pair.volume)).last is None
    later = replace(place, generation=generation, included=place.number)
    later, encoded = await pair.synced(later, "two", b"2")
    pair.copy.keep(later, encoded)
    there = await taken_over(pair, generation)
    assert sorted(file.name for file in there.iterdir()) == ["one", "two"]


async def test_a_run_begins_with_a_new_generation(pair: Pair) -> None:
    before = await pair.holder.snapshot(pair.volume, epoch=1)
    assert await pair.holder.snapshot(pair.volume, epoch=1) == before
    assert await pair.holder.watch(pair.volume, epoch=1) is None
    assert await pair.holder.snapshot(pair.volume, epoch=1) > before


async def test_what_copies_may_have_beyond_it_is_ended_by_a_new_generation(pair: Pair) -> None:
    await pair.holder.detach(pair.volume, epoch=1)
    before = await pair.holder.snapshot(pair.volume, epoch=1)
    assert await pair.holder.snapshot(pair.volume, epoch=1) == before
    await pair.holder.renew(pair.volume, epoch=1)
    assert await pair.holder.snapshot(pair.volume, epoch=1) > before


async def test_what_is_not_mounted_is_not_told(pair: Pair) -> None:
    assert isinstance(await pair.holder.cut(pair.nowhere), Doubt)
    await pair.begin()
    await pair.holder.detach(pair.volume, epoch=1)
    assert isinstance(await pair.holder.cut(pair.nowhere), Doubt)
    assert isinstance(await pair.holder.watch(pair.volume, epoch=1), Doubt)


@pytest.mark.parametrize("restarted", [False, True])
async def test_records_outlast_what_they_stand_on(
    pair: Pair, workplace: Path, restarted: bool
) -> None:
    """A generation that was on its way when the copy was set aside has not all that was confirmed."""
    place = await pair.begin()
    first, encoded = await pair.synced(place, "one", b"1")
    pair.copy.keep(first, encoded)
    coming = await pair.holder.snapshot(pair.volume, epoch=1)
    place, encoded = await pair.synced(replace(first, generation=coming, included=1), "two", b"2")
    pair.copy.keep(place, encoded)
    await pair.copy.quarantine(pair.volume)
    if restarted:
        await restart_copy(pair, workplace)
    assert (await pair.copy.inspect(pair.volume)).generations == ()
    place, encoded = await pair.synced(place, "three", b"3")
    with pytest.raises(NotFollowing):
        pair.copy.keep(place, encoded)
    await pair.send(coming)
    await pair.copy.settle(pair.volume, coming)
    await pair.copy.drop_quarantined(pair.volume)
    pair.copy.keep(place, encoded)
    there = await taken_over(pair, coming)
    found = {file.name: file.read_bytes() for file in there.iterdir()}
    assert found == {"one": b"1", "two": b"2", "three": b"3"}


async def test_a_takeover_that_a_disk_broke_off_in_the_midst_can_be_repeated(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut does: what is half made never counts as the live image."""
    place = await pair.begin()
    for name in ("one", "two"):
        place, encoded = await pair.synced(place, name, name.encode())
        pair.copy.keep(place, encoded)
    whole = KeptRecords.put_on_top

    def half(self: KeptRecords, image: Path, places: list[LinePlace]) -> None:
        whole(self, image, places[:1])
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(KeptRecords, "put_on_top", half)
        with pytest.raises(StorageError, match="put the records"):
            await pair.copy.promote(
                pair.volume, place.generation, epoch=2, size_bytes=None, on_top=OnTop.ALL
            )
    assert (await pair.copy.inspect(pair.volume)).live == ()
    there = await taken_over(pair, place.generation)
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {
        "one": b"one",
        "two": b"two",
    }


async def test_more_than_a_record_may_have_is_a_doubt_and_the_next_run_goes_on(pair: Pair) -> None:
    first = await pair.begin()
    with (pair.data / "much").open("wb") as file:
        file.write(os.urandom(2 * MOST_BYTES))
        os.fsync(file.fileno())
    doubt = await pair.holder.cut(replace(first, number=1))
    assert isinstance(doubt, Doubt)
    assert doubt.too_much
    assert await pair.holder.watch(pair.volume, epoch=1) is None
    generation = await pair.holder.snapshot_disk(pair.volume, epoch=1)
    await pair.send(generation, base=first.generation)
    place = replace(first, run=new_run(), generation=generation)
    place, encoded = await pair.synced(place, "small", b"2")
    pair.copy.keep(place, encoded)
    there = await taken_over(pair, generation)
    assert (there / "small").read_bytes() == b"2"
    assert (there / "much").stat().st_size == 2 * MOST_BYTES


async def test_a_generation_of_what_is_on_the_disk_waits_for_nothing_that_is_in_memory(
    pair: Pair,
) -> None:
    place = replace(await pair.begin(), number=1)
    content = os.urandom(8192)
    (pair.data / "unsynced").write_bytes(content)
    before = await pair.holder.snapshot_disk(pair.volume, epoch=1)
    found = await pair.holder.cut(place)
    assert isinstance(found, Cut)
    assert not has(found, content)
    assert await pair.holder.snapshot(pair.volume, epoch=1) > before
    found = await pair.holder.cut(place)
    assert isinstance(found, Cut)
    assert has(found, content)


def has(cut: Cut, content: bytes) -> bool:
    return any(content in bytes(one.content) for one in cut.ranges if isinstance(one, Data))


async def test_of_what_the_disk_refused_there_is_no_generation(pair: Pair) -> None:
    await pair.begin()
    await pair.holder.note_refused(pair.volume, epoch=1)
    with pytest.raises(StorageError, match="refused"):
        await pair.holder.snapshot_disk(pair.volume, epoch=1)


async def test_records_that_were_dropped_are_gone_after_a_restart_too(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    for name in ("one", "two"):
        place, encoded = await pair.synced(place, name, b"1")
        pair.copy.keep(place, encoded)
    for _ in range(2):
        await pair.copy.drop_records(pair.volume)
        assert pair.volume not in (await pair.copy.journal()).volumes
    await restart_copy(pair, workplace)
    assert pair.volume not in (await pair.copy.journal()).volumes
    place, encoded = await pair.synced(place, "three", b"1")
    with pytest.raises(NotFollowing):
        pair.copy.keep(place, encoded)


async def test_a_copy_whose_journal_was_moved_away_waits_for_a_generation_made_after_that(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    first, encoded = await pair.synced(place, "one", b"1")
    pair.copy.keep(first, encoded)
    journal = pair.copy._mountpoint / JOURNAL
    journal.rename(journal.with_name("away"))
    await restart_copy(pair, workplace)
    assert "another journal" in await pair.copy.missing(pair.volume)
    on_its_way = await pair.holder.snapshot(pair.volume, epoch=1)
    await pair.send(on_its_way, base=place.generation)
    await pair.copy.settle(pair.volume, on_its_way)
    assert await pair.copy.missing(pair.volume)
    second, encoded = await pair.synced(
        replace(first, generation=on_its_way, included=1), "two", b"2"
    )
    with pytest.raises(NotFollowing, match="may lack records"):
        pair.copy.keep(second, encoded)
    later = await pair.holder.snapshot(pair.volume, epoch=1)
    await pair.send(later, base=on_its_way)
    await pair.copy.settle(pair.volume, later)
    third, encoded = await pair.synced(replace(second, generation=later, included=2), "three", b"3")
    pair.copy.keep(third, encoded)
    assert await pair.copy.missing(pair.volume) == ""
    journal.with_name("away").unlink()


async def test_what_a_copy_is_found_to_lack_is_remembered_until_it_is_mended(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    await pair.copy.lack(pair.volume)
    await restart_copy(pair, workplace)
    assert "set back" in await pair.copy.missing(pair.volume)
    assert pair.volume in (await pair.copy.journal()).damaged
    with pytest.raises(Corrupt, match="may lack"):
        await taken_over(pair, place.generation)
    await pair.copy.mend_records(pair.volume)
    await restart_copy(pair, workplace)
    assert await pair.copy.missing(pair.volume) == ""
    await taken_over(pair, place.generation)


async def test_a_refusal_of_an_earlier_loss_does_not_end_a_later_one(
    pair: Pair, workplace: Path
) -> None:
    """The earlier one ended by a generation, and the holder was told nothing of the later one."""
    content = os.urandom(8192)
    place, encoded = await pair.synced(await pair.begin(), "damaged", content)
    pair.copy.keep(place, encoded)
    await pair.copy.close()
    flip(pair.copy._mountpoint / JOURNAL, content)
    await restart_copy(pair, workplace)
    place, encoded = await pair.synced(place, "refused", b"2")
    with pytest.raises(NotFollowing):
        pair.copy.keep(place, encoded)
    generation = await pair.holder.snapshot(pair.volume, epoch=1)
    await pair.send(generation, base=place.generation)
    await pair.copy.settle(pair.volume, generation)
    place = replace(place, generation=generation, included=place.number)
    place, encoded = await pair.synced(place, "kept", b"3")
    pair.copy.keep(place, encoded)
    await pair.copy.lack(pair.volume)
    place, encoded = await pair.synced(place, "refused again", b"4")
    with pytest.raises(NotFollowing):
        pair.copy.keep(place, encoded)
    assert await pair.copy.missing(pair.volume)


async def test_a_generation_that_comes_while_a_copy_is_looked_at_hides_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await pair.begin()
    place, encoded = await pair.synced(place, "file", b"1")
    pair.copy.keep(place, encoded)
    later = await pair.holder.snapshot(pair.volume, epoch=1)
    real = SubvolumeDriver._inspect

    def inspect(self: SubvolumeDriver, home: Home) -> LocalCopy:
        found = real(self, home)
        pair.copy._kept_records.settle(pair.volume, later)
        return found

    monkeypatch.setattr(SubvolumeDriver, "_inspect", inspect)
    there = await pair.copy.inspect(pair.volume)
    assert not lacks_confirmed(
        there.generations,
        there.last,
        generation=place.generation,
        record=(place.run, place.generation, place.number),
    )


async def test_a_volume_that_is_deleted_may_lack_nothing_any_more(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    journal = pair.copy._mountpoint / JOURNAL
    journal.rename(journal.with_name("away"))
    await restart_copy(pair, workplace)
    assert await pair.copy.missing(pair.volume)
    await pair.copy.delete(pair.volume)
    assert await pair.copy.missing(pair.volume) == ""
    await restart_copy(pair, workplace)
    await pair.send(place.generation)
    assert await pair.copy.missing(pair.volume) == ""
    journal.with_name("away").unlink()


@pytest.mark.parametrize(("damaged", "left"), [(2, ["one"]), (3, ["one", "two"])])
async def test_a_takeover_without_a_damaged_record_needs_a_persons_word(
    pair: Pair, workplace: Path, damaged: int, left: list[str]
) -> None:
    """Nobody has asked whether something is missing: the driver does it."""
    place, encoded = await pair.begin(), b""
    contents = [os.urandom(8192) for _ in range(3)]
    for name, content in zip(("one", "two", "three"), contents, strict=True):
        place, encoded = await pair.synced(place, name, content)
        pair.copy.keep(place, encoded)
    await pair.copy.close()
    flip(pair.copy._mountpoint / JOURNAL, contents[damaged - 1])
    await restart_copy(pair, workplace)
    for _ in range(2):
        with pytest.raises(Corrupt, match=f"record {damaged} of run") as refusal:
            await taken_over(pair, place.generation)
        assert "--accept-loss" in refusal.value.remedy
    assert (await pair.copy.inspect(pair.volume)).live == ()
    lost = await pair.copy.lost(pair.volume, place.generation)
    assert f"record {damaged} of run" in lost
    await pair.copy.promote(
        pair.volume, place.generation, epoch=2, size_bytes=None, on_top=OnTop.WHAT_IS_HERE
    )
    await pair.copy.attach(pair.volume, epoch=2, grow=False)
    there = pair.copy.data_path(pair.volume, 2)
    assert sorted(file.name for file in there.iterdir()) == sorted(left)


async def test_damage_that_is_found_while_records_are_put_on_top_ends_that(pair: Pair) -> None:
    """The journal knows nothing of it before it reads them."""
    content = os.urandom(8192)
    place, encoded = await pair.synced(await pair.begin(), "one", content)
    pair.copy.keep(place, encoded)
    flip(pair.copy._mountpoint / JOURNAL, content)
    assert await pair.copy.missing(pair.volume) == ""
    assert "record 1 of run" in await pair.copy.lost(pair.volume, place.generation)
    with pytest.raises(Corrupt, match="record 1 of run") as refusal:
        await taken_over(pair, place.generation)
    assert "--accept-loss" in refusal.value.remedy
    assert (await pair.copy.inspect(pair.volume)).live == ()


async def test_what_was_given_away_is_promoted_without_a_look_at_the_journal(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    journal = pair.copy._mountpoint / JOURNAL
    journal.rename(journal.with_name("away"))
    await restart_copy(pair, workplace)
    assert await pair.copy.missing(pair.volume)
    last = await pair.holder.seal(pair.volume, epoch=1)
    await pair.send(last, base=place.generation)
    await pair.copy.promote(pair.volume, last, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert [tree.epoch for tree in (await pair.copy.inspect(pair.volume)).live] == [2]
    journal.with_name("away").unlink()


def flip(journal: Path, content: bytes) -> None:
    """A disk changes one bit of a journal."""
    with journal.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as whole:
            at = whole.find(content)
            assert at > 0
            whole[at] ^= 1
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- what an operator sees ---------------------------------------------------------------------------


async def test_the_journal_tells_what_each_volume_needs_of_it(pair: Pair) -> None:
    place = await pair.begin()
    place, encoded = await pair.synced(place, "one", b"1")
    pair.copy.keep(place, encoded)
    state = await pair.copy.journal()
    assert (state.trouble, state.unreadable, dict(state.damaged)) == (None, False, {})
    assert len(encoded) <= state.volumes[pair.volume] < len(encoded) + 8192
    assert state.live_bytes == sum(state.volumes.values())
    assert state.most_bytes is not None
    assert state.total_bytes is not None
    assert state.live_bytes < state.most_bytes < state.total_bytes


_TAKES = """
import ctypes, fcntl, os, sys, threading, time
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
threading.Thread(target=time.sleep, args=(600,)).start()
print("taken", flush=True)
if sys.argv[2] == "ends":
    ctypes.CDLL(None).pthread_exit(None)
time.sleep(600)
"""
"""Takes a file's lock. Then its main thread may end and another one stay, as of a daemon that was killed while that waits for
a disk."""


@contextmanager
def taken(path: Path, *, ends: bool) -> Iterator[int]:
    """Another process has the lock of a file; gives its number."""
    arguments = [sys.executable, "-c", _TAKES, str(path), "ends" if ends else "stays"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"taken\n"
            while ends and ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
                pass
            yield process.pid
        finally:
            process.kill()


async def opened_late(copy: ImageDriver) -> JournalState:
    async with asyncio.timeout(20):
        while (state := await copy.journal()).taken:
            await asyncio.sleep(0.05)
    return state


@pytest.mark.parametrize("ends", [False, True], ids=["lives", "has ended, but for a thread"])
async def test_a_journal_that_another_process_has_is_opened_once_that_is_gone(
    pair: Pair, workplace: Path, ends: bool
) -> None:
    """Until then the copy goes on by generations, and may lack records, for all that it knows."""
    place = await pair.begin()
    place, encoded = await pair.synced(place, "file", b"kept")
    pair.copy.keep(place, encoded)
    await pair.copy.close()
    with taken(pair.copy.pool / JOURNAL, ends=ends) as pid:
        await restart_copy(pair, workplace)
        state = await pair.copy.journal()
        assert (state.taken, state.unreadable) == (True, True)
        assert state.trouble is not None
        assert f"has the journal {pair.copy.pool / JOURNAL} open: {pid} (" in state.trouble.message
        assert ends == ("which has ended" in state.trouble.message)
        assert "another process" in await pair.copy.missing(pair.volume)
        with pytest.raises(JournalFull):
            pair.copy.keep(place, encoded)
        assert (await pair.copy.inspect(pair.volume)).generations == (place.generation,)
    state = await opened_late(pair.copy)
    assert (state.trouble, state.unreadable) == (None, False)
    assert await pair.copy.missing(pair.volume) == ""
    assert (await pair.copy.inspect(pair.volume)).last == place
    await restart_copy(pair, workplace)
    there = await taken_over(pair, place.generation)
    assert (there / "file").read_bytes() == b"kept"


async def test_what_was_found_lacking_meanwhile_is_noted_when_the_journal_is_opened(
    pair: Pair, workplace: Path
) -> None:
    place = await pair.begin()
    place, encoded = await pair.synced(place, "file", b"kept")
    pair.copy.keep(place, encoded)
    await pair.copy.close()
    with taken(pair.copy.pool / JOURNAL, ends=False):
        await restart_copy(pair, workplace)
        await pair.copy.lack(pair.volume)
    await opened_late(pair.copy)
    await restart_copy(pair, workplace)
    assert await pair.copy.missing(pair.volume) != "", "it is on the disk"


async def test_a_driver_that_is_closed_meanwhile_leaves_the_journal_to_the_next(
    pair: Pair, workplace: Path
) -> None:
    await pair.begin()
    await pair.copy.close()
    with taken(pair.copy.pool / JOURNAL, ends=False):
        await restart_copy(pair, workplace)
        await pair.copy.end_journal()
    assert (await pair.copy.journal()).taken
    await restart_copy(pair, workplace)
    assert not (await pair.copy.journal()).taken


async def test_a_trace_that_another_process_uses_is_a_doubt_with_what_to_do(pair: Pair) -> None:
    tracer = Tracer(pair.trace)
    try:
        doubt = await pair.holder.watch(pair.volume, epoch=1)
    finally:
        tracer.close()
    assert doubt is not None
    assert "another process uses the trace" in doubt.reason
    assert f"fuser -v /sys/kernel/tracing/instances/{pair.trace}" in doubt.remedy
    await pair.begin()


@pytest.mark.parametrize(("setting", "wrong"), [("write_cache", "write through"), ("iostats", "0")])
async def test_a_device_with_wrong_settings_is_a_doubt_until_its_remedy(
    pair: Pair, setting: str, wrong: str
) -> None:
    place = await pair.begin()
    device = os.stat(pair.data).st_dev
    file = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/{setting}")
    file.write_text(wrong)
    doubt = await pair.holder.cut(pair.nowhere)
    assert isinstance(doubt, Doubt)
    assert wrong in doubt.reason
    await asyncio.to_thread(subprocess.run, doubt.remedy, shell=True, check=True)
    place = await pair.begin()
    await pair.synced(place, "file", b"1")


async def test_a_file_system_that_was_told_not_to_flush_is_a_doubt_until_its_remedy(
    pair: Pair,
) -> None:
    """Its writes are in order, and nothing in the trace says in which."""
    await pair.begin()
    remount = ["mount", "-o", "remount,nobarrier", str(pair.data.parent)]
    await asyncio.to_thread(subprocess.run, remount, check=True)
    doubt = await pair.holder.cut(pair.nowhere)
    assert isinstance(doubt, Doubt)
    assert "nobarrier" in doubt.reason
    await asyncio.to_thread(subprocess.run, doubt.remedy, shell=True, check=True)
    place = await pair.begin()
    await pair.synced(place, "file", b"1")


@pytest.fixture
def folder(pools: list[Path]) -> Iterator[Path]:
    """Of a pool, without a journal."""
    path = pools[2] / f"kept-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def test_a_pool_that_is_too_small_has_no_journal_and_says_what_it_needs(folder: Path) -> None:
    kept = KeptRecords(folder, pool_bytes=64 << 20, volumes=["v"])
    state = kept.state()
    assert state.trouble is not None
    assert "too small" in state.trouble.message
    assert state.trouble.remedy
    assert (state.total_bytes, state.unreadable, kept.missing("v")) == (None, False, "")


def test_without_a_journal_memory_knows_what_a_copy_lacks(folder: Path) -> None:
    kept = KeptRecords(folder, pool_bytes=64 << 20, volumes=["v"])
    kept.lack("v")
    assert "set back" in kept.missing("v")
    assert "v" in kept.state().damaged
    kept.mend("v")
    assert (kept.missing("v"), dict(kept.state().damaged)) == ("", {})


def test_a_journal_that_cannot_be_read_says_so_and_what_may_be_missing(folder: Path) -> None:
    nocow.make_empty(folder / JOURNAL)
    (folder / JOURNAL).write_bytes(b"?" * (1 << 20))
    kept = KeptRecords(folder, pool_bytes=1 << 30, volumes=["v"])
    state = kept.state()
    assert state.trouble is not None
    assert (state.total_bytes, state.unreadable) == (None, True)
    assert "move it away and restart pannierd" in state.trouble.remedy
    assert kept.missing("v") == state.trouble.message
    place = LinePlace(
        volume="v", epoch=1, run=new_run(), number=1, generation=Generation(1, 1), included=0
    )
    with pytest.raises(JournalFull, match="no journal"):
        kept.keep(Home("v", folder / "v"), place, b"")
