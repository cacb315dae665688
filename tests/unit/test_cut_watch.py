"""What was told of a device and not claimed yet: all of it, in bounded memory."""

from __future__ import annotations

import random
import threading

from pannier.cut import watch as module
from pannier.cut.ring import TraceEvent
from pannier.cut.spans import BLOCK_BYTES
from pannier.cut.tracefs import filter_text
from pannier.cut.watch import MOST_SPANS, Watch


def event(block: int, *, may_be_hole: bool = False) -> TraceEvent:
    return TraceEvent(1, 5, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES, may_be_hole)


def test_many_writes_to_the_same_places_take_little_and_lose_nothing() -> None:
    watch, rng = Watch(1, threading.Lock()), random.Random(1)
    expected: set[int] = set()
    for _ in range(50_000):
        block = rng.randrange(0, 2000, 2)
        expected.add(block)
        watch.note(event(block))
        assert len(watch._plain) < 3 * module._FOLD
    assert {start // BLOCK_BYTES for start, _ in watch.claim().plain} == expected
    assert not watch.claim()
    assert not watch.gap


def test_a_discard_that_was_joined_before_a_write_is_no_hole_there() -> None:
    watch = Watch(1, threading.Lock())
    watch.note(event(7, may_be_hole=True))
    for k in range(module._FOLD):
        watch.note(event(100 + 2 * k))
    watch.note(event(7))
    assert (7 * BLOCK_BYTES, 8 * BLOCK_BYTES) in watch.claim().plain


def test_too_many_places_are_a_gap_until_it_is_cleared() -> None:
    watch = Watch(1, threading.Lock())
    for k in range(MOST_SPANS + module._FOLD):
        watch.note(event(2 * k))
    assert str(MOST_SPANS) in watch.gap
    assert watch.claim().count < MOST_SPANS
    watch.clear()
    assert not watch.gap


def test_the_first_reason_of_a_gap_stays() -> None:
    watch = Watch(1, threading.Lock())
    watch.miss("first")
    watch.miss("second")
    assert watch.gap == "first"


def test_a_filter_names_the_devices_while_they_fit_into_a_page() -> None:
    assert filter_text([9, 4]) == 'nr_sector > 0 && !(rwbs ~ "R*") && (dev == 4 || dev == 9)'
    many = filter_text(list(range(7 << 20, (7 << 20) + 1000)))
    assert len(many) < 4096
    assert f"dev >= {7 << 20} && dev <= {(7 << 20) + 999}" in many
