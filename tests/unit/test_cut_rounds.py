"""Is what a cut reads a state that a disk could be in after a power cut? A model, with every order of steps.

Writers put blocks on a disk, each at a moment between its issue and its completion. Flushers flush: what had completed
when a flush was issued is on the disk in every state that has anything issued after that flush was counted. The cut
takes one step, others take some, and so on, by a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from pannier.core.line import Data, Range
from pannier.cut.doubt import Doubtful, DoubtKind
from pannier.cut.rounds import ROUNDS, Source, gather
from pannier.cut.spans import BLOCK_BYTES, Written, overlay, written

BLOCKS = 6
HISTORIES = 3000
Way = Callable[[Source], Sequence[Range]]


class Disk:
    """Blocks with the number of the write that they have, and whoever writes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.has = [0] * BLOCKS
        self.issued_after = {0: 0}
        """By write: flushes counted when it was issued."""
        self.completed = [0] * BLOCKS
        """By block: the newest write whose event was told."""
        self.told: set[int] = set()
        self.counted = 0
        self.covered: list[list[int]] = []
        """By flush: what had completed when it was issued."""
        self._on_its_way: dict[int, int] = {}
        self._flush: list[int] | None = None

    def step(self) -> None:
        """One thing happens."""
        what = self.rng.randrange(6)
        if what <= 1:
            self._issue()
        elif what == 2 and self._on_its_way:
            block, number = self.rng.choice(list(self._on_its_way.items()))
            self.has[block] = number
        elif what == 3 and self._on_its_way:
            block, number = self.rng.choice(list(self._on_its_way.items()))
            self.has[block] = number
            self.completed[block] = number
            self.told.add(block)
            del self._on_its_way[block]
        elif what == 4 and self._flush is None:
            self._flush = list(self.completed)
        elif what == 5 and self._flush is not None:
            self.covered.append(self._flush)
            self._flush = None
            self.counted += 1

    def steps(self, busy: float) -> None:
        while self.rng.random() < busy:
            self.step()

    def is_possible(self, state: list[int]) -> bool:
        """Whether a power cut could leave this state."""
        seen = max(self.issued_after[number] for number in state)
        return all(
            have >= must
            for flush in self.covered[:seen]
            for have, must in zip(state, flush, strict=True)
        )

    def _issue(self) -> None:
        block = self.rng.randrange(BLOCKS)
        if block not in self._on_its_way:  # overlapping requests are in no order at all
            number = len(self.issued_after)
            self.issued_after[number] = self.counted
            self._on_its_way[block] = number


class Traced:
    """The disk as a cut sees it."""

    def __init__(self, disk: Disk, busy: float) -> None:
        self.disk, self.busy = disk, busy

    def drain(self) -> tuple[int, Written]:
        self.disk.steps(self.busy)
        flushes = self.flushes()
        return flushes, self.told()

    def told(self) -> Written:
        self.disk.steps(self.busy)
        new, self.disk.told = self.disk.told, set()
        return written([(k * BLOCK_BYTES, (k + 1) * BLOCK_BYTES) for k in new], [])

    def read(self, what: Written) -> list[Range]:
        found: list[Range] = []
        for start, end in what.plain:
            numbers = []
            for block in range(start // BLOCK_BYTES, end // BLOCK_BYTES):
                self.disk.steps(self.busy)
                numbers.append(self.disk.has[block].to_bytes(8, "big") * (BLOCK_BYTES // 8))
            found.append(Data(start, b"".join(numbers)))
        return found

    def flushes(self) -> int:
        self.disk.steps(self.busy)
        return self.disk.counted


class DrainedTooEarly(Traced):
    """Counts the flushes after it drained."""

    def drain(self) -> tuple[int, Written]:
        told = self.told()
        return self.flushes(), told


def read_once(source: Source) -> Sequence[Range]:
    _, new = source.drain()
    return source.read(new)


def new_ones_never_read_again(source: Source) -> Sequence[Range]:
    """Asks again until the number is the same, and keeps what it read first."""
    content: Sequence[Range] = ()
    for _ in range(ROUNDS):
        before, new = source.drain()
        content = overlay(source.read(new), content)
        if source.flushes() == before:
            return content
    raise Doubtful(DoubtKind.RESTLESS, "")


def faults(way: Way, kind: type[Traced] = Traced) -> tuple[int, int]:
    """Cuts that are impossible, or lack what had completed before them; and all that were whole."""
    wrong = whole = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        disk = Disk(rng)
        state = list(disk.has)
        source = kind(disk, rng.choice((0.3, 0.6, 0.85)))
        for _ in range(3):  # cuts on top of each other
            disk.steps(0.9)
            acknowledged = list(disk.completed)
            try:
                ranges = way(source)
            except Doubtful:
                break
            for one in ranges:
                assert isinstance(one, Data)
                for at in range(0, len(one.content), BLOCK_BYTES):
                    number = int.from_bytes(bytes(one.content[at : at + 8]), "big")
                    state[(one.start + at) // BLOCK_BYTES] = number
            whole += 1
            is_lacking = any(have < must for have, must in zip(state, acknowledged, strict=True))
            wrong += is_lacking or not disk.is_possible(state)
    return wrong, whole


def test_every_cut_is_a_state_that_a_power_cut_could_leave() -> None:
    wrong, whole = faults(gather)
    assert wrong == 0
    assert whole > HISTORIES


@pytest.mark.parametrize("way", [read_once, new_ones_never_read_again])
def test_the_model_finds_the_fault_of_other_ways(way: Way) -> None:
    wrong, _ = faults(way)
    assert wrong > 0


def test_the_model_finds_out_that_flushes_are_counted_too_late() -> None:
    wrong, _ = faults(gather, DrainedTooEarly)
    assert wrong > 0


class Restless:
    """A flush completes during each reading."""

    def __init__(self) -> None:
        self.count = 0

    def drain(self) -> tuple[int, Written]:
        return self.count, written([(0, BLOCK_BYTES)], [])

    def read(self, what: Written) -> list[Range]:
        self.count += 1
        return [Data(0, bytes(BLOCK_BYTES))]

    def flushes(self) -> int:
        return self.count


def test_it_gives_up_after_some_rounds() -> None:
    restless = Restless()
    with pytest.raises(Doubtful) as raised:
        gather(restless)
    assert raised.value.doubt.reason is DoubtKind.RESTLESS
    assert restless.count == ROUNDS
