"""A journal through power cuts: nothing that was confirmed is lost, no record is invented, and order is kept."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_disk import MemoryDisk, append, append_together, empty, opened, place, record

from pannier.core.errors import JournalFull, StorageError
from pannier.core.generation import Generation
from pannier.core.line import LinePlace, is_settled
from pannier.storage.journal.journal import Journal

VOLUMES = ("v-1", "v-2", "v-3")


@dataclass
class Line:
    """What is known of a volume's records: ``tried`` were given to the journal, ``kept`` were confirmed."""

    tried: list[LinePlace] = field(default_factory=list)
    kept: list[LinePlace] = field(default_factory=list)
    generation: int = 1
    number: int = 0

    def needed(self) -> list[LinePlace]:
        newest = Generation(1, self.generation, "0f3a94c1")
        return [each for each in self.kept if not is_settled(each, newest)]


@dataclass
class World:
    """A journal, its disk, and what it must hold."""

    chance: random.Random
    disk: MemoryDisk = field(default_factory=lambda: MemoryDisk(empty()))
    lines: dict[str, Line] = field(default_factory=lambda: {name: Line() for name in VOLUMES})
    journal: Journal = field(init=False)
    sizes: dict[LinePlace, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = opened(self.disk, volumes=VOLUMES)

    def append(self, volume: str) -> None:
        line = self.lines[volume]
        at = place(volume, line.number + 1, after=line.generation)
        self.sizes[at] = self.chance.choice((1, 1, 2, 3))
        line.tried.append(at)
        try:
            append(self.journal, at, blocks=self.sizes[at])
        except JournalFull:
            line.tried.pop()
            return
        line.number += 1
        line.kept.append(at)

    def append_together(self, volume: str) -> None:
        line = self.lines[volume]
        count = self.chance.randint(2, 5)
        group = [place(volume, line.number + 1 + at, after=line.generation) for at in range(count)]
        line.tried += group
        line.number += count
        self.sizes.update(dict.fromkeys(group, 1))
        errors = append_together(self.journal, group)
        for at, error in zip(group, errors, strict=True):
            if error is None:
                line.kept.append(at)
        for error in errors:
            if isinstance(error, StorageError):
                raise error

    def settle(self, volume: str) -> None:
        self.lines[volume].generation += 1
        self._settle(volume)

    def _settle(self, volume: str) -> None:
        self.journal.settle(volume, Generation(1, self.lines[volume].generation, "0f3a94c1"))

    def drop(self, volume: str) -> None:
        line = self.lines[volume]
        line.kept.clear()  # from here on none of them needs to be there
        try:
            self.journal.drop(volume)
        except JournalFull:
            return
        line.tried.clear()  # and from here on none may

    def power(self) -> None:
        """The machine boots after a power cut."""
        self.boot(MemoryDisk(self.disk.after_power_cut(self.chance), cut_after=self._cut()))

    def restart(self) -> None:
        """The process ends and is started again."""
        self.boot(self.disk.after_restart(cut_after=self._cut()))

    def _cut(self) -> int | None:
        return None if self.chance.random() < 0.2 else self.chance.randrange(60)

    def boot(self, disk: MemoryDisk) -> None:
        """Each volume is settled anew, and its line goes on."""
        self.disk = disk
        self.journal = opened(self.disk, volumes=VOLUMES)
        for line in self.lines.values():
            line.number = max([line.number, *(each.number for each in line.tried)])
        self.check(settled=False)
        for volume in VOLUMES:
            self._settle(volume)
        self.check(settled=True)

    def check(self, *, settled: bool) -> None:
        assert self.journal.damaged() == {}
        for volume, line in self.lines.items():
            there = self.journal.places(volume)
            assert set(there) <= set(line.tried)
            assert [each for each in there if each in line.needed()] == line.needed()
            assert there == sorted(there, key=lambda each: each.number)
            if settled:
                assert set(there) - set(line.needed()) <= set(line.tried) - set(line.kept)
            for each in there:
                assert self.journal.read(each) == record(each, blocks=self.sizes[each])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append"] * 6
            + ["append together"] * 3
            + ["settle", "settle", "drop", "close", "restart", "cut"]
        ),
        st.sampled_from(VOLUMES),
    ),
    min_size=10,
    max_size=120,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(0, 1 << 32))
def test_what_was_confirmed_survives_and_nothing_else_appears(
    steps: list[tuple[str, str]], seed: int
) -> None:
    world = World(random.Random(seed))
    for what, volume in steps:
        try:
            match what:
                case "append":
                    world.append(volume)
                case "append together":
                    world.append_together(volume)
                case "settle":
                    world.settle(volume)
                case "drop":
                    world.drop(volume)
                case "close":
                    world.journal.close()
                    world.restart()
                case "restart":
                    world.restart()
                case "cut":
                    world.power()
        except StorageError:
            world.chance.choice([world.power, world.restart])()
    world.power()


@pytest.mark.parametrize("before", range(1, 16))
def test_power_may_go_at_each_step_of_a_group_that_begins_a_segment(before: int) -> None:
    """None of it is damage, whatever of it reached the disk."""
    chance = random.Random(before)
    for cut in range(9):
        disk = MemoryDisk(empty())
        journal = opened(disk)
        living = place("v-2", 1)
        append(journal, living)
        for number in range(1, before + 1):
            append(journal, place("v-1", number))
            journal.settle("v-1", Generation(1, 2 if number < before else 1))
        last = place("v-1", before)
        disk.cut_after(cut)
        group = [place("v-3", number) for number in (1, 2, 3, 4)]
        errors = append_together(journal, group)
        kept = [at for at, error in zip(group, errors, strict=True) if error is None]
        for _ in range(30):
            again = opened(MemoryDisk(disk.after_power_cut(chance)), volumes=VOLUMES)
            assert again.damaged() == {}
            assert again.places("v-2") == [living]
            assert again.last("v-1") == last
            assert again.places("v-3")[: len(kept)] == kept
