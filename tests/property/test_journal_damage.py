"""Damage in a journal: every flipped bit is harmless or told, for the right volumes, until it is mended."""

from __future__ import annotations

import random
from contextlib import suppress
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_disk import SMALL, MemoryDisk, append, append_together, empty, opened, place, record

from pannier.core.errors import Corrupt, JournalFull, NewerFormat, NotFound, StorageError
from pannier.core.generation import Generation
from pannier.core.line import LinePlace
from pannier.storage.journal.journal import Journal
from pannier.storage.journal.layout import BLOCK_BYTES, SUPER_BYTES, read_superblock

VOLUMES = ("v-1", "v-2", "v-9")
FIRST, SECOND = Generation(1, 1, "0f3a94c1"), Generation(1, 2, "0f3a94c1")


def closed_journal(count: int, *, laps: bool = False) -> tuple[bytes, list[LinePlace]]:
    """A journal that was closed, and its records, of v-1 and v-2 in turns."""
    disk = MemoryDisk(empty())
    journal = opened(disk)
    if laps:
        for number in range(1, 40):
            append(journal, place("v-2", number, after=0))
            journal.settle("v-2", FIRST)
    places = [place(f"v-{1 + number % 2}", number) for number in range(1, count + 1)]
    for at in places:
        append(journal, at)
    journal.close()
    return bytes(disk.content), places


CLOSED = [closed_journal(5), closed_journal(7, laps=True)]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(CLOSED), st.data())
def test_a_flipped_bit_is_harmless_or_told(
    closed: tuple[bytes, list[LinePlace]], data: st.DataObject
) -> None:
    content, places = bytearray(closed[0]), closed[1]
    blocks = [at for at in range(0, len(content), BLOCK_BYTES) if any(content[at : at + 400])]
    at = data.draw(st.sampled_from(blocks)) + data.draw(
        st.one_of(st.integers(0, 300), st.integers(0, BLOCK_BYTES - 1))
    )
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    disk = MemoryDisk(content)
    try:
        journal = opened(disk, volumes=VOLUMES)
    except Corrupt:
        assert at >= SUPER_BYTES  # the head of the only segment
        return
    assert read_superblock(bytes(content), what="the journal") == SMALL
    for _ in range(2):  # the first opening does not hide it from the second
        told = journal.damaged()
        for volume in ("v-1", "v-2"):
            mine = [each for each in places if each.volume == volume]
            there = [each for each in journal.places(volume) if each.generation == FIRST]
            assert [each for each in mine if each in there] == there
            if there != mine:
                assert volume in told
            for each in there:
                assert journal.read(each) == record(each)
        journal.close()
        journal = opened(MemoryDisk(disk.content), volumes=VOLUMES)
        assert journal.damaged() == told


def damaged_content(places: list[LinePlace], at: LinePlace, content: bytes) -> bytearray:
    """The content of one record is another."""
    damaged = bytearray(content)
    where = damaged.find(f"{at.volume} {at.number} {at.run}".encode())
    assert where > 0
    damaged[where] ^= 1
    return damaged


def test_a_known_record_is_lost_for_its_volume_until_a_newer_generation() -> None:
    content, places = closed_journal(5)
    disk = MemoryDisk(damaged_content(places, places[4], content))
    journal = opened(disk, volumes=VOLUMES)
    assert list(journal.damaged()) == ["v-2"]
    assert journal.last("v-2") == places[2]
    journal.settle("v-2", FIRST)
    assert list(journal.damaged()) == ["v-2"]
    journal.settle("v-2", SECOND)
    assert journal.damaged() == {}


def test_what_cannot_be_told_apart_concerns_all_until_each_is_mended() -> None:
    content, _ = closed_journal(5)
    damaged = bytearray(content)
    damaged[SMALL.start(1) + 2 * BLOCK_BYTES + 30] ^= 1  # the head of the first record
    journal = opened(MemoryDisk(damaged), volumes=VOLUMES)
    disk = journal._medium
    assert isinstance(disk, MemoryDisk)
    assert set(journal.damaged()) == set(VOLUMES)
    journal.settle("v-1", SECOND)
    assert set(journal.damaged()) == set(VOLUMES)
    journal.mended("v-1")
    journal.drop("v-2")
    again = opened(MemoryDisk(disk.flushed), volumes=VOLUMES)
    assert set(again.damaged()) == {"v-9"}
    again.mended("v-9")
    assert again.damaged() == {}


def test_a_loss_outlives_the_segment_that_it_was_in() -> None:
    content, places = closed_journal(5)
    damaged = bytearray(content)
    damaged[SMALL.start(1) + 2 * BLOCK_BYTES + 30] ^= 1
    disk = MemoryDisk(damaged)
    journal = opened(disk, volumes=VOLUMES)
    journal.mended("v-1")
    for number in range(10, 100):  # some laps
        append(journal, place("v-5", number, after=0))
        journal.settle("v-5", FIRST)
    kept = [each for each in places[1:] if each.volume == "v-2"]
    for _ in range(2):
        assert set(journal.damaged()) == {"v-2", "v-9"}
        assert journal.places("v-2")[-len(kept) :] == kept
        journal = opened(MemoryDisk(disk.flushed), volumes=VOLUMES)


def test_what_is_damaged_while_it_is_open_is_told_by_reading_and_by_moving() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    lost = place("v-1", 1)
    append(journal, lost)
    where = disk.content.find(b"v-1 1 0000")
    disk.content[where] ^= 1
    with pytest.raises(Corrupt, match="damaged"):
        journal.read(lost)
    for number in range(1, 40):
        append(journal, place("v-5", number, after=0))
        journal.settle("v-5", FIRST)
    assert list(journal.damaged()) == ["v-1"]
    assert list(opened(MemoryDisk(disk.content)).damaged()) == ["v-1"]


def test_a_disk_without_a_superblock_or_of_a_newer_format_is_refused() -> None:
    content = empty()
    with pytest.raises(Corrupt):
        read_superblock(bytes(SUPER_BYTES), what="the journal")
    second = bytearray(content)
    second[8] ^= 1  # the version in the first copy: the second one counts
    assert read_superblock(bytes(second), what="the journal") == SMALL


# -- another journal had the records -------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(8))
def test_a_stranger_tells_all_only_when_a_power_cut_leaves_what_it_tells(steps: int) -> None:
    disk = MemoryDisk(empty(), cut_after=steps)
    journal = opened(disk, volumes=VOLUMES, stranger=True)
    assert set(journal.damaged()) == set(VOLUMES)
    for seed in range(8):
        again = opened(MemoryDisk(disk.after_power_cut(random.Random(seed))))
        if journal.tells_all:
            assert set(again.damaged()) == set(VOLUMES)


def test_a_stranger_whose_disk_takes_everything_tells_all() -> None:
    assert opened(MemoryDisk(empty()), volumes=VOLUMES, stranger=True).tells_all


def test_what_was_healed_is_lost_again_in_a_journal_that_is_a_stranger_twice() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk, volumes=VOLUMES, stranger=True)
    journal.mended("v-1")
    journal.close()
    assert set(opened(MemoryDisk(disk.flushed)).damaged()) == {"v-2", "v-9"}
    twice = MemoryDisk(disk.flushed)
    opened(twice, volumes=VOLUMES, stranger=True)
    again = opened(MemoryDisk(twice.flushed))
    assert set(again.damaged()) == set(VOLUMES)
    for volume in VOLUMES:
        again.mended(volume)
    assert again.damaged() == {}


def test_what_a_copy_is_found_to_lack_is_durable_and_ends_for_each_volume_by_itself() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk, volumes=VOLUMES)
    append(journal, place("v-1", 1))
    journal.lack("v-1")
    journal.lack("v-2")
    again = opened(MemoryDisk(disk.after_power_cut(random.Random(1))), volumes=VOLUMES)
    assert set(again.damaged()) == {"v-1", "v-2"}
    again.settle("v-1", SECOND)
    again.mended("v-2")
    assert set(again.damaged()) == {"v-1"}
    again.lack("v-2")
    again.lack("v-2")
    again.mended("v-1")
    assert set(again.damaged()) == {"v-2"}


def test_what_a_copy_lacks_is_known_in_memory_also_where_the_disk_refuses() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk, volumes=VOLUMES)
    disk.cut_after(0)
    with pytest.raises(StorageError):
        journal.lack("v-1")
    assert set(journal.damaged()) == {"v-1"}


# -- a torn tail --------------------------------------------------------------------------------------


def test_what_is_behind_a_torn_frame_never_comes_back() -> None:
    """The second of two was written whole, the first was not: neither was confirmed."""
    disk = MemoryDisk(empty(), cut_after=None)
    journal = opened(disk)
    append(journal, place("v-1", 1))
    before = disk.flushed
    append_together(journal, [place("v-1", 2), place("v-1", 3)])
    first = disk.content.find(b"v-1 2 0000")
    torn = bytearray(disk.content)
    torn[first] ^= 1
    disk = MemoryDisk(torn)
    journal = opened(disk, volumes=VOLUMES)
    assert journal.places("v-1") == [place("v-1", 1)]
    assert journal.damaged() == {}
    append(journal, place("v-1", 2, run="1" * 16))  # as long as the torn one
    again = opened(MemoryDisk(disk.flushed), volumes=VOLUMES)
    assert again.places("v-1") == [place("v-1", 1), place("v-1", 2, run="1" * 16)]
    assert again.damaged() == {}
    assert before != disk.flushed


def test_what_a_failed_flush_may_have_lost_is_written_again_by_the_next_process() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    disk.cut_after(1)
    with pytest.raises(Exception, match="cannot write the journal"):
        append(journal, place("v-1", 1))
    with pytest.raises(Exception, match="takes nothing any more"):
        append(journal, place("v-1", 2))
    assert journal.places("v-1") == []
    disk = disk.after_restart(cut_after=None)
    journal = opened(disk)
    assert journal.places("v-1") == [place("v-1", 1)]
    again = opened(MemoryDisk(disk.after_power_cut(random.Random(1))))
    assert again.places("v-1") == [place("v-1", 1)]


def fill_up(journal: Journal, volume: str) -> list[LinePlace]:
    """Keep records until there is no room."""
    kept: list[LinePlace] = []
    with suppress(JournalFull):
        for number in range(1, 1000):
            append(journal, place(volume, number))
            kept.append(place(volume, number))
    return kept


# -- the end ------------------------------------------------------------------------------------------


class HangingDisk(MemoryDisk):
    """A disk that does not answer from some moment on, until it is let go."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.hangs_at = ""
        self.hangs = Event()
        self.answers = Event()

    def write(self, start: int, content: memoryview) -> None:
        self._hang("write")
        super().write(start, content)

    def sync(self) -> None:
        self._hang("sync")
        super().sync()

    def _hang(self, where: str) -> None:
        if where == self.hangs_at:
            self.hangs.set()
            self.answers.wait()


def test_what_a_copy_is_found_to_lack_while_the_same_of_another_one_is_noted_is_noted_too() -> None:
    disk = HangingDisk(empty())
    journal = opened(disk, volumes=VOLUMES)
    disk.hangs_at = "sync"
    first = Thread(target=journal.lack, args=("v-1",))
    first.start()
    assert disk.hangs.wait(10)
    second = Thread(target=journal.lack, args=("v-2",))
    second.start()
    while not journal._waiting:
        second.join(0.001)
    disk.answers.set()
    first.join(10)
    second.join(10)
    again = opened(MemoryDisk(disk.flushed), volumes=VOLUMES)
    for each in (journal, again):
        assert set(each.damaged()) == {"v-1", "v-2"}
        each.mended("v-1")
        assert set(each.damaged()) == {"v-2"}


def test_what_a_copy_lacks_already_is_not_noted_again() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk, volumes=VOLUMES, stranger=True)
    before = journal.usage().live_bytes
    for _ in range(100):
        journal.lack("v-1")
        journal = opened(MemoryDisk(disk.flushed), volumes=VOLUMES)
    assert journal.usage().live_bytes == before
    journal.mended("v-1")
    assert set(journal.damaged()) == set(VOLUMES) - {"v-1"}


@pytest.mark.parametrize("where", ["write", "sync"])
def test_an_append_whose_answer_never_comes_does_not_hold_up_the_end(where: str) -> None:
    disk = HangingDisk(empty())
    journal = opened(disk)
    append(journal, place("v-1", 1))
    disk.hangs_at = where
    thread = Thread(target=append, args=(journal, place("v-1", 2)))
    thread.start()
    assert disk.hangs.wait(10)
    assert not journal.close(within=0.01)
    assert not disk.closed, "somebody writes to it"
    with pytest.raises(StorageError, match="is closed"):
        append(journal, place("v-1", 4))
    assert opened(MemoryDisk(disk.flushed)).places("v-1") == [place("v-1", 1)]
    disk.answers.set()
    thread.join(10)
    assert journal.close(within=10)
    assert disk.closed


def test_a_close_that_the_disk_does_not_answer_ends_as_a_power_cut_does() -> None:
    disk = HangingDisk(empty())
    journal = opened(disk)
    append(journal, place("v-1", 1))
    disk.hangs_at = "sync"
    assert not journal.close(within=0.01)
    again = opened(MemoryDisk(disk.after_power_cut(random.Random(1))))
    assert (again.places("v-1"), again.damaged()) == ([place("v-1", 1)], {})
    disk.answers.set()
    assert journal.close(within=10)


def test_what_waits_when_it_is_closed_is_written_before_the_end() -> None:
    disk = HangingDisk(empty())
    journal = opened(disk)
    disk.hangs_at = "sync"
    first = Thread(target=append, args=(journal, place("v-1", 1)))
    first.start()
    assert disk.hangs.wait(10)
    second = Thread(target=append, args=(journal, place("v-1", 2)))
    second.start()
    while not journal._waiting:
        second.join(0.001)
    assert not journal.close(within=0)
    disk.answers.set()
    assert journal.close(within=10)
    content = bytearray(disk.flushed)
    where = content.find(b"v-1 2 0000")
    content[where] ^= 1
    again = opened(MemoryDisk(content))
    assert list(again.damaged()) == ["v-1"], "CLOSED is behind it, so it was durable"


def test_a_disk_that_refuses_the_end_is_told() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    disk.cut_after(0)
    assert not journal.close()
    assert disk.closed


# -- room ---------------------------------------------------------------------------------------------


def test_a_full_journal_refuses_before_it_writes_and_a_generation_makes_room() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    kept: list[LinePlace] = []
    for volume in ("v-1", "v-2", "v-3"):
        kept += fill_up(journal, volume)
    usage = journal.usage()
    steps = disk.steps
    for volume in ("v-1", "v-2", "v-3"):
        with pytest.raises(JournalFull):
            append(journal, place(volume, 1000))
    assert disk.steps == steps
    assert [at for volume in usage.volumes for at in journal.places(volume)] == kept
    assert usage.live_bytes == sum(usage.volumes.values()) <= usage.most_bytes
    journal.settle("v-1", SECOND)
    append(journal, place("v-4", 1))
    assert [journal.read(each).place for each in journal.places("v-2")] == journal.places("v-2")
    with pytest.raises(NotFound):
        journal.read(kept[0])


def test_one_whose_holder_is_gone_does_not_pin_the_journal() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    kept = [place("v-1", number) for number in (1, 2, 3)]
    for at in kept:
        append(journal, at)
    for number in range(1, 200):
        append(journal, place("v-2", number, after=0), blocks=2)
        journal.settle("v-2", FIRST)
        assert journal.places("v-1") == kept
    assert [journal.read(each) for each in kept] == [record(each) for each in kept]
    assert opened(MemoryDisk(disk.flushed)).places("v-1") == kept


def test_a_record_that_is_there_is_not_written_again() -> None:
    disk = MemoryDisk(empty())
    journal = opened(disk)
    append(journal, place("v-1", 1))
    steps = disk.steps
    append(journal, place("v-1", 1))
    assert disk.steps == steps
    assert append_together(journal, [place("v-1", 2), place("v-1", 3)]) == [None, None]
    assert disk.steps == steps + 2  # one write, one flush


def test_a_newer_format_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pannier.storage.journal.layout.VERSION", 2)
    disk = MemoryDisk(empty())
    monkeypatch.undo()
    with pytest.raises(NewerFormat):
        read_superblock(bytes(disk.content), what="the journal")
    with pytest.raises(NewerFormat):
        opened(disk)
    assert disk.steps == 0
