"""The journal's file as bytes: a golden file of each format is read by every later version.

A golden file is never changed: it is what some node has on its disk. A new format gets a new file.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from pannier.core.errors import Corrupt
from pannier.core.generation import Generation
from pannier.core.line import Data, LinePlace, LineRecord, decode, encode
from pannier.storage.journal.format import (
    Frame,
    FrameHead,
    FrameKind,
    Gap,
    Region,
    content_of,
    frame_head,
    loss_content,
    moved_content,
    read_frame,
    read_loss,
    read_moved,
    scan,
)
from pannier.storage.journal.layout import (
    BLOCK_BYTES,
    FEWEST_SEGMENTS,
    SEGMENT_BYTES,
    SUPER_BYTES,
    Geometry,
    SegmentHead,
    read_segment_head,
    read_superblock,
    segment_head,
    superblock,
    whole_blocks,
)
from pannier.storage.journal.room import largest_frame, most_live, most_of_volume, segments_in

GOLDEN = Path(__file__).parent / "golden" / "journal" / "1.gz"
GEOMETRY = Geometry(identity=b"0123456789abcdef", segments=4, segment_bytes=8 * BLOCK_BYTES)
PLACE = LinePlace(
    volume="db",
    epoch=3,
    run="0123456789abcdef",
    number=7,
    generation=Generation(3, 2, "0f3a94c1"),
    included=6,
    acknowledged=5,
)
RECORD = LineRecord(place=PLACE, size=1 << 20, ranges=(Data(BLOCK_BYTES, b"x" * BLOCK_BYTES),))
REGION = Region(number=4, start=4096, end=8192)


def golden_journal() -> bytes:
    """Segment 5 of a journal, after segment 4 was damaged."""
    identity = GEOMETRY.identity
    segment = bytearray(segment_head(identity, SegmentHead(number=5, previous_end=20480)))
    record = b"".join(encode(RECORD))
    frames: list[tuple[FrameKind, LinePlace | None, str, bytes]] = [
        (FrameKind.MOVED, None, "", moved_content(20480)),
        (FrameKind.LOSS, None, "", loss_content(REGION, ["db", "web"])),
        (FrameKind.RECORD, PLACE, "db", record),
        (FrameKind.DROP, None, "old", b""),
        (FrameKind.MENDED, None, "web", b""),
        (FrameKind.CLOSED, None, "", b""),
    ]
    segment_size = GEOMETRY.segment_bytes
    for arrival, (kind, place, volume, content) in enumerate(frames, 41):
        head = FrameHead(kind=kind, arrival=arrival, synced=BLOCK_BYTES, volume=volume, place=place)
        encoded = frame_head(identity, 5, len(segment), head, [content]) + content
        segment += encoded.ljust(whole_blocks(len(encoded)), b"\0")
    whole = bytearray(GEOMETRY.size_bytes)
    whole[:SUPER_BYTES] = superblock(GEOMETRY)
    start = GEOMETRY.start(5)
    whole[start : start + segment_size] = segment.ljust(segment_size, b"\0")
    return bytes(whole)


def segment_of(content: bytes) -> bytes:
    start = GEOMETRY.start(5)
    return content[start : start + GEOMETRY.segment_bytes]


def test_a_golden_journal_is_read_and_written_as_it_is() -> None:
    content = gzip.decompress(GOLDEN.read_bytes())
    assert content == golden_journal()
    assert read_superblock(content[:SUPER_BYTES], what="it") == GEOMETRY
    segment = segment_of(content)
    head = read_segment_head(GEOMETRY.identity, segment[:BLOCK_BYTES], what="it")
    assert head == SegmentHead(number=5, previous_end=20480)
    found = list(scan(GEOMETRY.identity, 5, segment))
    frames = [each for each in found if isinstance(each, Frame)]
    assert frames == found
    assert [frame.head.kind for frame in frames] == [5, 2, 1, 3, 4, 6]
    contents = [content_of(frame, segment) or memoryview(b"") for frame in frames]
    assert read_moved(contents[0]) == 20480
    assert read_loss(contents[1]) == (REGION, {"db", "web"})
    assert decode(contents[2]) == RECORD
    assert frames[2].head.place == PLACE
    assert [frame.head.volume for frame in frames] == ["", "", "db", "old", "web", ""]


@pytest.mark.parametrize(
    ("identity", "number", "moved"),
    [(b"x" * 16, 5, 0), (GEOMETRY.identity, 1, 0), (GEOMETRY.identity, 5, BLOCK_BYTES)],
    ids=["of another journal", "of another lap", "at another place"],
)
def test_a_frame_is_one_only_where_it_was_written(identity: bytes, number: int, moved: int) -> None:
    segment = segment_of(golden_journal())
    there = bytes(moved) + segment
    assert read_frame(GEOMETRY.identity, 5, BLOCK_BYTES, segment) is not None
    assert read_frame(identity, number, BLOCK_BYTES + moved, there) is None


def test_what_follows_damage_is_found() -> None:
    segment = bytearray(segment_of(golden_journal()))
    segment[2 * BLOCK_BYTES] ^= 1
    segment[4 * BLOCK_BYTES] ^= 1
    gaps = [
        (each.start, each.end, each.frame and each.frame.head.place)
        for each in scan(GEOMETRY.identity, 5, bytes(segment))
        if isinstance(each, Gap)
    ]
    assert gaps == [
        (2 * BLOCK_BYTES, 3 * BLOCK_BYTES, None),
        (3 * BLOCK_BYTES, 5 * BLOCK_BYTES, PLACE),
    ]


def test_a_head_that_is_damaged_is_none() -> None:
    block = segment_head(GEOMETRY.identity, SegmentHead(number=5, previous_end=20480))
    for at in range(48):
        damaged = bytearray(block)
        damaged[at] ^= 1
        assert read_segment_head(GEOMETRY.identity, bytes(damaged), what="it") is None
    both = bytearray(superblock(GEOMETRY))
    both[20] ^= 1
    assert read_superblock(bytes(both), what="it") == GEOMETRY
    both[20 + BLOCK_BYTES] ^= 1
    with pytest.raises(Corrupt):
        read_superblock(bytes(both), what="it")


def test_a_segment_has_room_for_the_largest_records() -> None:
    usual = replace(GEOMETRY, segments=FEWEST_SEGMENTS, segment_bytes=SEGMENT_BYTES)
    assert largest_frame(usual) == 9 << 19
    assert 2 * largest_frame(usual) <= most_of_volume(usual) < most_live(usual)
    assert segments_in(usual.size_bytes) == FEWEST_SEGMENTS
