"""In what two snapshots of an image differ: against a model that looks at every block."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pannier.storage.image.extents import Extent, Range, difference

BLOCKS = 24
MADE = 5

blocks = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(0, 40), st.integers(1, 9))),
    min_size=BLOCKS,
    max_size=BLOCKS,
)
"""For each block of a file its place on the disk and the transaction that wrote it, or None."""
sizes = st.integers(0, BLOCKS)


def extents_of(places: list[tuple[int, int] | None]) -> list[Extent]:
    """As few extents as a file system would have: what lies in a row and was written at once."""
    found: list[Extent] = []
    for number, block in enumerate(places):
        if block is None:
            continue
        place, written = block
        last = found[-1] if found else None
        if (
            last
            and last.end == number
            and last.written == written
            and last.place + last.end - last.start == place
        ):
            found[-1] = Extent(last.start, number + 1, last.place, written)
        else:
            found.append(Extent(number, number + 1, place, written))
    return found


@given(blocks, sizes, blocks)
def test_each_block_that_may_differ_is_in_a_range_and_no_other(
    newer: list[tuple[int, int] | None], size: int, base: list[tuple[int, int] | None]
) -> None:
    ranges = difference(extents_of(newer), size, extents_of(base), made=MADE)
    told = {number: each.zero for each in ranges for number in range(each.start, each.end)}
    for number in range(BLOCKS):
        mine, theirs = newer[number], base[number]
        if number >= size or mine is None is theirs:
            assert number not in told
        elif mine is None:
            assert told[number]
        elif theirs is not None and mine[0] == theirs[0] and max(mine[1], theirs[1]) <= MADE:
            assert number not in told
        else:
            assert not told[number]


@given(blocks, sizes, blocks)
def test_ranges_are_in_order_and_as_long_as_can_be(
    newer: list[tuple[int, int] | None], size: int, base: list[tuple[int, int] | None]
) -> None:
    ranges = difference(extents_of(newer), size, extents_of(base), made=MADE)
    for one, next_one in pairwise(ranges):
        assert one.end < next_one.start or (one.end == next_one.start and one.zero != next_one.zero)


@given(blocks, sizes)
def test_a_whole_image_is_what_was_written(newer: list[tuple[int, int] | None], size: int) -> None:
    found = difference(extents_of(newer), size)
    assert not any(each.zero for each in found)
    told = {number for each in found for number in range(each.start, each.end)}
    assert told == {number for number in range(size) if newer[number] is not None}


def test_what_was_written_to_a_place_that_the_base_had_is_not_the_bases() -> None:
    """A balance moves an extent away, and its place is given to another one."""
    base, newer = [Extent(0, 8, 100, 3)], [Extent(0, 8, 100, 7)]
    assert difference(newer, 8, base, made=5) == (Range(0, 8, zero=False),)
    older, later = (
        newer,
        base,
    )  # a snapshot of an earlier time is sent as the difference to a later one
    assert difference(later, 8, older, made=5) == (Range(0, 8, zero=False),)
