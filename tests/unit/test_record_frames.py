"""Frames of records: what is framed is read, and nothing is copied that need not be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.errors import InvalidInput, JournalFull, NotFollowing, PannierError
from pannier.transport.record_frames import (
    FAILED_BYTES,
    HEAD,
    JOINED_BYTES,
    RECORD_BYTES,
    RecordKind,
    failed_frame,
    join,
    parse_failed,
    parse_head,
    record_frame,
    split_record,
    taken_frame,
)

SIZES = st.lists(st.sampled_from([0, 1, 4096, JOINED_BYTES - 1, JOINED_BYTES, 70_000]), max_size=12)


@given(SIZES)
def test_joined_pieces_are_the_same_bytes(sizes: list[int]) -> None:
    pieces = [bytes([n]) * size for n, size in enumerate(sizes)]
    assert b"".join(join(pieces)) == b"".join(pieces)


@given(SIZES)
def test_two_neighbours_that_would_fit_into_one_piece_are_one(sizes: list[int]) -> None:
    joined = [len(piece) for piece in join([bytes(size) for size in sizes])]
    assert all(a + b > JOINED_BYTES for a, b in itertools.pairwise(joined))


def test_a_large_piece_is_not_copied() -> None:
    large = bytes(1 << 20)
    frame = record_frame(1, "vol", [b"head", large, b"tail"])
    assert any(piece is large for piece in frame)
    assert len(frame) == 3


def test_a_small_record_is_one_piece() -> None:
    assert len(record_frame(1, "vol", [b"head", bytes(4096), bytes(4096)])) == 1


@given(st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=300), max_size=5))
def test_a_record_is_what_was_framed(number: int, pieces: list[bytes]) -> None:
    frame = b"".join(record_frame(number, "some-volume", pieces))
    head = parse_head(frame[: HEAD.size])
    assert (head.kind, head.number) == (RecordKind.RECORD, number)
    assert head.length == len(frame) - HEAD.size
    name, encoded = split_record(memoryview(frame)[HEAD.size :])
    assert name == "some-volume"
    assert encoded == b"".join(pieces)


@given(st.binary(max_size=20))
def test_a_body_that_is_no_record_is_refused_or_split(body: bytes) -> None:
    try:
        name, encoded = split_record(memoryview(body))
    except InvalidInput:
        return
    assert bytes([len(name)]) + name.encode() + bytes(encoded) == body


def test_a_record_is_as_long_as_it_may_be_and_no_longer() -> None:
    longest = RECORD_BYTES - 4
    record_frame(1, "vol", [bytes(longest)])
    with pytest.raises(InvalidInput, match="send a generation"):
        record_frame(1, "vol", [bytes(longest + 1)])


@pytest.mark.parametrize(
    ("kind", "length"),
    [(0, RECORD_BYTES + 1), (1, 1), (2, FAILED_BYTES + 1), (3, 1), (4, 0), (255, 0)],
)
def test_a_head_of_another_kind_or_length_is_refused(kind: int, length: int) -> None:
    with pytest.raises(InvalidInput, match=f"kind {kind} with {length} bytes"):
        parse_head(HEAD.pack(kind, length, 1))


def test_an_answer_has_the_number_of_its_record() -> None:
    head = parse_head(taken_frame(7))
    assert (head.kind, head.length, head.number) == (RecordKind.TAKEN, 0, 7)


@pytest.mark.parametrize("error", [JournalFull("full"), NotFollowing("lacks", remedy="resend")])
def test_a_failure_comes_back_as_its_own_class(error: PannierError) -> None:
    frame = failed_frame(9, error)
    head = parse_head(frame[: HEAD.size])
    assert (head.kind, head.number, head.length) == (RecordKind.FAILED, 9, len(frame) - HEAD.size)
    back = parse_failed(frame[HEAD.size :], peer="node birch")
    assert type(back) is type(error)
    assert (back.message, back.remedy) == (f"node birch: {error.message}", error.remedy)


@pytest.mark.parametrize("character", ["x", "\0", "\U0001f600"])
def test_the_longest_failure_fits(character: str) -> None:
    frame = failed_frame(1, PannierError(character * 9000, remedy=character * 9000))
    parse_head(frame[: HEAD.size])


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}", b'{"type":"done"}', b"\xff"])
def test_a_failure_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        parse_failed(body, peer="node birch")
