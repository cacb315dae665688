"""When writers stand still: before the pool is full, and not with every megabyte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.room import Room, RoomLevel, RoomPlan, plan, shrinking

MIB, GIB = 1 << 20, 1 << 30


def decide(
    free: int, *, images: int = 1, before: RoomLevel = RoomLevel.AMPLE, rate: float = 0.0
) -> RoomPlan:
    room = Room(total_bytes=1 << 40, free_bytes=free, dirty_bytes=4 * GIB, images=images)
    return plan(room, before=before, rate=rate, shortest=0.1, longest=2.0)


def test_much_room_limits_nothing_and_is_looked_at_now_and_then() -> None:
    found = decide(100 * GIB)
    assert (found.level, found.limits, found.next_look) == (RoomLevel.AMPLE, None, 2.0)


def test_what_memory_holds_already_is_limited_while_there_is_still_room_for_all_of_it() -> None:
    found = decide(4 * GIB)
    assert found.level is RoomLevel.SCARCE
    assert found.limits is not None
    assert found.limits.dirty_bytes == 64 * MIB


def test_writers_stand_still_while_there_is_room_for_what_they_wrote() -> None:
    found = decide(100 * MIB)
    assert found.level is RoomLevel.FULL
    assert found.needed_bytes > 100 * MIB


def test_they_go_on_only_when_there_is_more_room_than_they_were_stopped_for() -> None:
    needed = decide(100 * MIB).needed_bytes
    between = needed - 1
    assert decide(between).level is RoomLevel.SCARCE
    assert decide(between, before=RoomLevel.FULL).level is RoomLevel.FULL
    assert decide(needed, before=RoomLevel.FULL).level is RoomLevel.SCARCE


@pytest.mark.parametrize(("images", "each"), [(0, 64), (1, 64), (4, 16), (1000, 4)])
def test_the_memory_is_shared_by_all_of_them(images: int, each: int) -> None:
    limits = decide(GIB, images=images).limits
    assert limits is not None
    assert limits.dirty_bytes == each * MIB


@given(
    free=st.integers(0, 1 << 40),
    images=st.integers(0, 500),
    rate=st.floats(0, float(4 << 30)),
    before=st.sampled_from(list(RoomLevel)),
)
def test_until_the_next_look_a_disk_at_its_full_speed_does_not_fill_the_pool(
    free: int, images: int, rate: float, before: RoomLevel
) -> None:
    found = decide(free, images=images, rate=rate, before=before)
    if found.level is RoomLevel.FULL:
        return
    limits = found.limits.dirty_bytes * images if found.limits is not None else 0
    memory = limits if found.level is RoomLevel.SCARCE else 4 * GIB
    assert free - rate * found.next_look >= memory


@given(free=st.integers(0, 1 << 40), images=st.integers(0, 500))
def test_two_writers_cannot_fill_a_pool_however_late_the_next_look_comes(
    free: int, images: int
) -> None:
    found = decide(free, images=images)
    if found.limits is not None:
        assert found.limits.growth_bytes * min(images, 2) <= max(0, free - MIB)


@given(free=st.integers(0, 1 << 40), before=st.sampled_from(list(RoomLevel)))
def test_more_room_is_never_worse(free: int, before: RoomLevel) -> None:
    order = [RoomLevel.FULL, RoomLevel.SCARCE, RoomLevel.AMPLE]
    less, more = decide(free, before=before), decide(free + GIB, before=before)
    assert order.index(less.level) <= order.index(more.level)


def test_a_rate_is_what_a_disk_can_do_and_is_forgotten_in_time() -> None:
    level = RoomLevel.SCARCE
    assert shrinking(0.0, taken=300 * MIB, seconds=0.5, level=level) == 600 * MIB
    assert shrinking(600 * MIB, taken=0, seconds=600.0, level=level) == 300 * MIB
    assert shrinking(600 * MIB, taken=-GIB, seconds=0.0, level=level) == 600 * MIB
    assert shrinking(0.0, taken=500 * GIB, seconds=0.1, level=level) == 4 * GIB


def test_while_nobody_can_write_the_disk_seems_slow_and_is_not() -> None:
    assert shrinking(2.0 * GIB, taken=0, seconds=3600.0, level=RoomLevel.FULL) == 2 * GIB


def test_a_small_pool_is_not_always_full() -> None:
    room = Room(total_bytes=GIB, free_bytes=300 * MIB, dirty_bytes=GIB, images=1)
    found = plan(room, before=RoomLevel.AMPLE, rate=4.0 * GIB, shortest=0.1, longest=2.0)
    assert found.level is RoomLevel.SCARCE
