"""What gives its room on need: the order, and what is never in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.freeing import (
    Freeable,
    FreeableRecords,
    Rank,
    RecordsRank,
    beyond,
    in_order,
    is_crowded,
    may_free,
    rank_records,
    records_in_order,
    spare_generations,
)
from pannier.core.generation import Generation
from pannier.core.ownership import LocalState
from pannier.core.room import ImageLimits, Room, RoomLevel, plan
from pannier.core.volume import Beginning, Grant, Volume, VolumeSpec

MIB, GIB = 1 << 20, 1 << 30
OLD, BASE, NOW, NEXT = (Generation(*each) for each in ((1, 1), (1, 2), (2, 1), (2, 2)))
VOLUME = Volume(
    name="web",
    id="web.1",
    spec=VolumeSpec(),
    grant=Grant("a", 2),
    base=BASE,
    lineage=(Beginning(2, BASE),),
    created_at=0.0,
)
COPIED = replace(VOLUME, replicas=("b",))


def freeable(rank: Rank, age: int = 0) -> Freeable:
    return Freeable(rank=rank, age=age, volume=f"{rank.name}.{age}", name="v")


# -- the order --------------------------------------------------------------------------------------


@given(st.permutations([freeable(rank, age) for rank in Rank for age in range(3)]))
def test_the_trash_comes_first_the_oldest_before_all_and_strays_never(
    found: list[Freeable],
) -> None:
    ordered = in_order(found, level=RoomLevel.FULL)
    assert [(each.rank, each.age) for each in ordered] == [
        (rank, age) for rank in (Rank.REMOVED, Rank.SPARE, Rank.PART) for age in range(3)
    ]


def test_transfers_keep_their_parts_until_writers_stand_still() -> None:
    found = [freeable(Rank.PART), freeable(Rank.STRAY)]
    assert in_order(found, level=RoomLevel.SCARCE) == ()
    assert in_order(found, level=RoomLevel.FULL) == (found[0],)


def test_what_was_deleted_may_be_enough_once_the_kernel_has_given_it_back() -> None:
    assert may_free(coming=False, waited=0.0)
    assert not may_free(coming=True, waited=1.0)
    assert may_free(coming=True, waited=60.0), "a subvolume that is still open stays for ever"


@pytest.mark.parametrize(
    ("most", "gone"),
    [(0, ("a", "b", "c")), (2, ("a", "b", "c")), (3, ("a", "b")), (7, ("a",)), (8, ()), (99, ())],
)
def test_the_oldest_go_until_the_trash_is_small_enough(most: int, gone: tuple[str, ...]) -> None:
    assert beyond([("a", 1), ("b", 4), ("c", 3)], most_bytes=most) == gone


# -- generations that nobody needs --------------------------------------------------------------------


def spare(
    record: Volume,
    *generations: Generation,
    node: str,
    needed: frozenset[Generation] | None = None,
    live: dict[int, bool] | None = None,
) -> tuple[Generation, ...]:
    copy = LocalState({2: False} if live is None else live, frozenset(generations))
    return spare_generations(record, copy, node=node, needed=needed)


def test_a_holder_without_copies_needs_no_generation_beside_its_live_tree() -> None:
    assert spare(VOLUME, NOW, BASE, node="a") == (BASE, NOW)


@pytest.mark.parametrize("live", [{}, {2: True}, {1: False}])
def test_without_its_live_tree_it_needs_them(live: dict[int, bool]) -> None:
    """It is not made yet, or is being given away."""
    assert spare(VOLUME, BASE, NOW, node="a", live=live) == ()


def test_a_holder_keeps_what_its_copies_may_have() -> None:
    made = (OLD, BASE, NOW, NEXT)
    assert spare(COPIED, *made, node="a", needed=frozenset({BASE})) == (OLD,)
    assert spare(COPIED, *made, node="a", needed=frozenset()) == (OLD, BASE)
    assert spare(COPIED, *made, node="a", needed=None) == ()


def test_a_former_holder_can_lose_what_saves_the_way_back() -> None:
    assert spare(VOLUME, BASE, node="b", live={}) == (BASE,)


def test_a_copy_loses_nothing_and_neither_does_who_is_just_sent_something() -> None:
    assert spare(COPIED, BASE, NOW, node="b", live={}) == ()
    assert spare(VOLUME, BASE, NOW, node="b", live={}) == ()
    assert spare(VOLUME, BASE, node="b", live={1: True}) == ()


def test_strays_are_never_spare() -> None:
    beyond_base = Generation(1, 3)
    assert spare(VOLUME, beyond_base, node="b", live={}) == ()
    assert spare(VOLUME, BASE, beyond_base, node="a") == (BASE,)


def test_by_a_record_older_than_the_disk_nothing_goes() -> None:
    assert spare(VOLUME, BASE, Generation(3, 1), node="b", live={}) == ()
    assert spare(VOLUME, BASE, node="b", live={3: True}) == ()


# -- records in a journal -----------------------------------------------------------------------------


def rank(
    record: Volume, *, node: str, live: dict[int, bool] | None = None, holder_up: bool = True
) -> RecordsRank | None:
    return rank_records(
        record, LocalState(live or {}, frozenset({NOW})), node=node, holder_up=holder_up
    )


def test_the_records_of_a_copy_are_needed_until_the_volume_is_removed() -> None:
    removed = replace(COPIED, removed_at=1.0)
    for up in (True, False):
        assert rank(COPIED, node="b", holder_up=up) is None
    assert rank(removed, node="b") is RecordsRank.REMOVED
    assert rank(removed, node="b", holder_up=False) is RecordsRank.REMOVED_ALONE


def test_who_takes_a_volume_over_needs_its_records_until_its_live_tree_is_there() -> None:
    assert rank(COPIED, node="a", live={1: True}) is None
    assert rank(COPIED, node="a", live={2: False}) is RecordsRank.NOBODYS


def test_nobody_needs_the_records_of_what_is_not_copied_here_any_more() -> None:
    assert rank(VOLUME, node="b") is RecordsRank.NOBODYS
    assert rank(replace(VOLUME, removed_at=1.0), node="b") is RecordsRank.NOBODYS


def test_by_a_record_older_than_the_disk_no_records_go() -> None:
    assert rank(VOLUME, node="b", live={3: True}) is None


@given(st.permutations([(rank, age) for rank in RecordsRank for age in range(3)]))
def test_what_can_cost_something_gives_its_records_last(
    found: list[tuple[RecordsRank, int]],
) -> None:
    ordered = records_in_order(
        FreeableRecords(rank=rank, age=age, volume="v") for rank, age in found
    )
    assert [(each.rank, each.age) for each in ordered] == sorted(found)


def test_half_of_a_journal_stays_free_of_what_was_removed() -> None:
    assert not is_crowded(live_bytes=50, most_bytes=100)
    assert is_crowded(live_bytes=51, most_bytes=100)


# -- what files may count on --------------------------------------------------------------------------


def limits(free_bytes: int, *, gives_bytes: int) -> ImageLimits | None:
    room = Room(total_bytes=20 * GIB, free_bytes=free_bytes, dirty_bytes=5 * GIB, images=1)
    return plan(
        room, before=RoomLevel.AMPLE, rate=0.0, shortest=0.1, longest=2.0, gives_bytes=gives_bytes
    ).limits


def test_files_may_count_on_the_trash_as_long_as_there_is_time_to_free_it() -> None:
    without, with_trash = (limits(2 * GIB, gives_bytes=each) for each in (0, 9 * GIB))
    assert without is not None
    assert with_trash is not None
    assert with_trash.growth_bytes == without.growth_bytes + 9 * GIB
    assert limits(400 * MIB, gives_bytes=9 * GIB) == limits(400 * MIB, gives_bytes=0)
