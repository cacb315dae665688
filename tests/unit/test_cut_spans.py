"""Spans and contents on top of each other, against sets of blocks."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pannier.core.line import Data, Range, Zeros
from pannier.cut.spans import BLOCK_BYTES, Span, merged, overlay, without, written

BLOCKS = 24
SPANS = st.lists(
    st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 5)).map(
        lambda s: (s[0] * BLOCK_BYTES, (s[0] + s[1]) * BLOCK_BYTES)
    ),
    max_size=8,
)


def blocks(spans: list[Span] | tuple[Span, ...]) -> set[int]:
    found: list[int] = []
    for start, end in spans:
        found.extend(range(start // BLOCK_BYTES, end // BLOCK_BYTES))
    assert len(found) == len(set(found)), "spans overlap"
    assert found == sorted(found)
    return set(found)


def union(spans: list[Span]) -> set[int]:
    return {k for start, end in spans for k in range(start // BLOCK_BYTES, end // BLOCK_BYTES)}


@given(SPANS)
def test_merged_is_the_union(spans: list[Span]) -> None:
    joined = merged(spans)
    assert blocks(joined) == union(spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(joined))


def test_merged_is_aligned_outward() -> None:
    assert merged([(512, 1024), (4096 + 512, 8192 + 1)]) == [(0, 3 * 4096)]


@given(SPANS, SPANS)
def test_without_is_the_difference(spans: list[Span], taken: list[Span]) -> None:
    assert blocks(without(merged(spans), merged(taken))) == union(spans) - union(taken)


@given(SPANS, SPANS, SPANS, SPANS)
def test_a_write_counts_more_than_a_discard(
    a: list[Span], b: list[Span], c: list[Span], d: list[Span]
) -> None:
    both = written(a, b) | written(c, d)
    assert blocks(both.plain) == union(a) | union(c)
    assert blocks(both.hollow) == (union(b) | union(d)) - union(a) - union(c)


def content(spans: list[Span], seed: int) -> list[Range]:
    found: list[Range] = []
    for k, (start, end) in enumerate(merged(spans)):
        if (k + seed) % 3:
            data = b"".join(
                bytes([seed, at // BLOCK_BYTES]) * 2048 for at in range(start, end, BLOCK_BYTES)
            )
            found.append(Data(start, data))
        else:
            found.append(Zeros(start, end))
    return found


def image(*layers: list[Range]) -> bytes:
    disk = bytearray(b"\xff" * (BLOCKS + 5) * BLOCK_BYTES)
    for layer in layers:
        for one in layer:
            disk[one.start : one.end] = (
                bytes(one.end - one.start) if isinstance(one, Zeros) else bytes(one.content)
            )
    return bytes(disk)


@given(SPANS, SPANS)
def test_overlay_is_one_after_the_other(older: list[Span], newer: list[Span]) -> None:
    first, second = content(older, 1), content(newer, 2)
    both = list(overlay(first, second))
    assert image(both) == image(first, second)
    assert all(a.end <= b.start for a, b in itertools.pairwise(both))
