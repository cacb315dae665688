"""Records of a line: what is written is read, what is damaged is noticed, and none is put after another's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.errors import Corrupt
from pannier.core.generation import Generation
from pannier.core.line import (
    Data,
    LinePlace,
    LineRecord,
    Tail,
    Zeros,
    decode,
    encode,
    follows,
    tail,
)

BLOCK = 4096
FIRST = Generation(3, 7, "0f3a94c1")
SECOND = Generation(3, 8, "1f3a94c1")
PLACE = LinePlace(
    volume="v-1", epoch=3, run="0123456789abcdef", number=1, generation=FIRST, included=0
)


@st.composite
def records(draw: st.DrawFn) -> LineRecord:
    ranges: list[Data | Zeros] = []
    at = 0
    for _ in range(draw(st.integers(0, 5))):
        at += BLOCK * draw(st.integers(0, 3))
        length = BLOCK * draw(st.integers(1, 3))
        if draw(st.booleans()):
            ranges.append(Data(at, bytes([draw(st.integers(0, 255))]) * length))
        else:
            ranges.append(Zeros(at, at + length))
        at += length
    place = replace(
        PLACE, number=draw(st.integers(1, 1 << 40)), acknowledged=draw(st.integers(0, 9))
    )
    return LineRecord(place=place, size=at, ranges=tuple(ranges))


@given(records())
def test_a_record_is_what_was_encoded(record: LineRecord) -> None:
    assert decode(b"".join(encode(record))) == record


@given(records(), st.data())
def test_a_flipped_bit_or_a_missing_end_is_noticed(record: LineRecord, data: st.DataObject) -> None:
    encoded = bytearray(b"".join(encode(record)))
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        decode(encoded)
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_a_record_follows_the_one_before_it_or_the_generation_that_has_all_before_it() -> None:
    second = replace(PLACE, number=2)
    assert follows(PLACE, last=None, newest=FIRST)
    assert follows(second, last=PLACE, newest=FIRST)
    assert not follows(second, last=None, newest=FIRST)
    assert not follows(PLACE, last=None, newest=SECOND)
    assert not follows(second, last=replace(PLACE, run="f" * 16), newest=FIRST)
    assert not follows(second, last=replace(PLACE, epoch=2), newest=FIRST)
    assert follows(replace(second, generation=SECOND, included=1), last=None, newest=SECOND)
    assert not follows(replace(second, generation=SECOND, included=1), last=None, newest=FIRST)
    set_back = replace(FIRST, identity="ffffffff")
    assert not follows(PLACE, last=None, newest=set_back)


def test_what_goes_on_top_of_a_generation() -> None:
    line = [
        PLACE,
        replace(PLACE, number=2),
        replace(PLACE, number=3, generation=SECOND, included=2),
    ]
    assert tail(line, FIRST) == Tail(places=tuple(line))
    assert tail(line, SECOND) == Tail(places=(line[2],))
    assert tail([], SECOND) == Tail(places=())
    found = tail(line[1:], FIRST)
    assert (found.places, "generation 3.7" in found.lacks) == ((), True)
    found = tail([line[0], replace(line[1], number=3)], FIRST)
    assert (found.places, "record 1" in found.lacks) == ((line[0],), True)


def test_what_came_under_a_takeover_is_not_put_on_top_of_its_base() -> None:
    """The second record was refused, and the generation that has it came when the base was chosen already."""
    third = replace(PLACE, number=3, generation=SECOND, included=2)
    assert tail([PLACE, third], FIRST) == Tail(places=(PLACE,))
    assert tail([third], FIRST) == Tail(places=())
    assert tail([PLACE, replace(third, number=4)], SECOND).lacks
