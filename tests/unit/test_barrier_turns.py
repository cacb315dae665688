"""Listeners take turns: one that has always something to say makes no other one wait. Pipes play the listeners."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pannier.barrier import turns
from pannier.barrier.turns import Turns


@dataclass
class Talkers:
    """Pipes whose bytes are calls.

    Attributes:
        taken: by whom each call was, in order; a dot for each turn of the loop's other work.
        ended: who has hung up.
    """

    turns: Turns = field(default_factory=Turns)
    taken: str = ""
    ended: str = ""
    writers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)

    def make(self, name: str, calls: int) -> None:
        self.readers[name], self.writers[name] = os.pipe()
        self.call(name, calls)
        self.turns.add(self.readers[name], lambda events: self._told(name, events))

    def call(self, name: str, calls: int) -> None:
        os.write(self.writers[name], bytes(calls))

    def hang_up(self, name: str) -> None:
        os.close(self.writers.pop(name))

    def end(self, name: str) -> None:
        self.turns.remove(self.readers[name])
        os.close(self.readers.pop(name))

    def _told(self, name: str, events: int) -> None:
        if events & select.EPOLLIN:
            os.read(self.readers[name], 1)
            self.taken += name
        else:
            self.ended += name
            self.end(name)

    async def turn(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)
            self.taken += "."


@pytest.fixture
async def talkers() -> AsyncIterator[Talkers]:
    talkers = Talkers()
    yield talkers
    for name in list(talkers.readers):
        talkers.end(name)
    for name in list(talkers.writers):
        talkers.hang_up(name)


async def test_other_work_has_its_turn_after_some_calls(talkers: Talkers) -> None:
    talkers.make("a", 4096)
    await talkers.turn(20)
    longest = max(len(part) for part in talkers.taken.split("."))
    assert longest == turns._AT_ONCE


async def test_each_has_a_call_taken_before_any_has_a_second_one(talkers: Talkers) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"  # more than there are calls in a turn
    for name in names:
        talkers.make(name, 100)
    await talkers.turn(60)
    taken = talkers.taken.replace(".", "")
    rounds = [taken[at : at + len(names)] for at in range(0, len(taken), len(names))]
    assert len(rounds) > 10
    assert all(set(each) == set(names) for each in rounds[:-1])


async def test_a_call_is_taken_in_the_turn_after_it_came(talkers: Talkers) -> None:
    for name in "ab":
        talkers.make(name, 4096)
    talkers.make("z", 0)
    for _ in range(20):
        await talkers.turn(3)
        talkers.taken = ""
        talkers.call("z", 1)
        await talkers.turn(2)
        assert "z" in talkers.taken


async def test_who_rests_is_not_asked_and_its_end_is_told(talkers: Talkers) -> None:
    for name in "ab":
        talkers.make(name, 10)
        talkers.turns.rest(talkers.readers[name])
    await talkers.turn(5)
    assert "a" not in talkers.taken
    talkers.turns.go_on(talkers.readers["a"])
    await talkers.turn(5)
    assert talkers.taken.count("a") == 10
    assert "b" not in talkers.taken
    talkers.hang_up("b")
    await talkers.turn(5)
    assert talkers.ended == "b"


async def test_who_is_gone_is_not_told_of_what_another_descriptor_of_it_has(
    talkers: Talkers,
) -> None:
    talkers.make("a", 10)
    kept = os.dup(talkers.readers["a"])
    try:
        talkers.end("a")
        talkers.make("b", 1)  # may have the same number
        await talkers.turn(5)
        assert talkers.taken.replace(".", "") == "b"
    finally:
        os.close(kept)


async def test_two_that_end_in_one_turn_are_each_told_once(talkers: Talkers) -> None:
    for name in "ab":
        talkers.make(name, 0)
        talkers.hang_up(name)
    await talkers.turn(5)
    assert sorted(talkers.ended) == ["a", "b"]
