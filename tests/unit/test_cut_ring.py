"""Sub-buffers of the kernel's trace, as recorded from Linux 6.18, and those that a record cannot be made of at will.

In ``golden/cut`` is one recording in two forms: the ring's bytes, and ``trace``, the kernel's own words for them.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from pathlib import Path

import pytest

from pannier.core.errors import Unavailable
from pannier.cut.ring import Layout, TraceEvent, kernel_number, layout, parse

GOLDEN = Path(__file__).parent / "golden/cut"
WHERE = layout((GOLDEN / "header_page").read_text(), (GOLDEN / "format").read_text())
TOLD = re.compile(r" (\d+)\.(\d{6}): block_rq_complete: (\d+),(\d+) (\w+) \(\) (\d+) \+ (\d+) ")


def told_by_the_kernel() -> list[tuple[int, int, int, int, str]]:
    """Device, microseconds, sector, sectors and kind of each event with a range, in time's order."""
    found = TOLD.findall((GOLDEN / "trace").read_text())
    return [
        (int(major) << 20 | int(minor), int(s) * 1_000_000 + int(us), int(sector), int(count), kind)
        for s, us, major, minor, kind, sector, count in found
        if int(count) and "R" not in kind
    ]


def test_events_are_what_the_kernel_says_of_them() -> None:
    events: list[TraceEvent] = []
    for page in sorted(GOLDEN.glob("page-*")):
        found, is_missing = parse(page.read_bytes(), WHERE)
        assert not is_missing
        events.extend(found)
    expected = told_by_the_kernel()
    assert len(expected) > 80
    assert {kind for *_, kind in expected} == {"WS", "DS", "NS"}
    assert sorted((e.device, e.start // 512, e.sectors) for e in events) == sorted(
        (device, sector, count) for device, _, sector, count, _ in expected
    )
    for event, (_, us, sector, _, kind) in zip(sorted(events, key=at), expected, strict=True):
        assert event.start == sector * 512
        assert abs(event.at_ns // 1000 - us) <= 1  # the kernel rounds
        assert event.may_be_hole == (kind != "WS")


def at(event: TraceEvent) -> int:
    return event.at_ns


def test_the_recording_has_a_pause_longer_than_an_event_can_tell() -> None:
    """More than 134 ms are a time of its own in the ring."""
    times = [us for _, us, *_ in told_by_the_kernel()]
    assert max(b - a for a, b in itertools.pairwise(times)) > 134_000


def test_a_sub_buffer_before_which_events_are_missing_says_so() -> None:
    page = bytearray((GOLDEN / "page-2").read_bytes())
    whole, _ = parse(bytes(page), WHERE)
    (used,) = struct.unpack_from("<I", page, 8)
    for flags in (1 << 31, 3 << 30):
        struct.pack_into("<I", page, 8, used | flags)
        assert parse(bytes(page), WHERE) == (whole, True)


def page_of(*items: bytes, now: int = 1000) -> bytes:
    body = b"".join(items)
    return (struct.pack("<QQ", now, len(body)) + body).ljust(WHERE.page_bytes, b"\0")


def write_of(
    sector: int, count: int, kind: bytes = b"WS", *, delta: int = 0, ident: int | None = None
) -> bytes:
    body = bytearray(48)
    struct.pack_into("<H", body, 0, WHERE.event_id if ident is None else ident)
    struct.pack_into("<IxxxxQI", body, 8, 7 << 20 | 3, sector, count)
    body[34 : 34 + len(kind)] = kind
    return struct.pack("<I", 12 | delta << 5) + bytes(body)


def test_times_are_added_up_and_set() -> None:
    extend = struct.pack("<II", 30 | 5 << 5, 2)  # 2 << 27 | 5
    stamp = struct.pack("<II", 31 | 7 << 5, 3)
    found, _ = parse(
        page_of(write_of(8, 8, delta=1), extend, write_of(16, 8), stamp, write_of(24, 8, delta=4)),
        WHERE,
    )
    assert [e.at_ns for e in found] == [1001, 1001 + (2 << 27 | 5), (3 << 27 | 7) + 4]


def test_a_whole_time_keeps_the_upper_bits_of_the_one_before() -> None:
    stamp = struct.pack("<II", 31 | 7 << 5, 3)
    found, _ = parse(page_of(stamp, write_of(8, 8), now=1 << 59 | 99), WHERE)
    assert found[0].at_ns == 1 << 59 | 3 << 27 | 7


def test_an_event_that_was_taken_back_is_passed_over_and_padding_ends_the_page() -> None:
    taken_back = struct.pack("<II", 29 | 1 << 5, 20) + bytes(16)
    to_the_end = struct.pack("<I", 29)
    found, _ = parse(page_of(taken_back, write_of(8, 8), to_the_end, write_of(16, 8)), WHERE)
    assert [e.start for e in found] == [8 * 512]


def test_a_long_event_has_its_length_in_a_word_of_its_own() -> None:
    long = struct.pack("<II", 0, 204) + struct.pack("<H", WHERE.event_id + 1) + bytes(198)
    found, _ = parse(page_of(long, write_of(8, 8)), WHERE)
    assert [e.start for e in found] == [8 * 512]


@pytest.mark.parametrize(
    ("kind", "is_told", "may_be_hole"),
    [
        (b"W", True, False),
        (b"WFSM", True, False),
        (b"FWFS", True, False),
        (b"D", True, True),
        (b"DE", True, True),
        (b"N", True, True),
        (b"WZS", True, True),
        (b"ZR", True, True),
        (b"R", False, False),
        (b"RA", False, False),
    ],
)
def test_all_but_reads_are_told(kind: bytes, is_told: bool, may_be_hole: bool) -> None:
    found, _ = parse(page_of(write_of(8, 8, kind)), WHERE)
    assert [e.may_be_hole for e in found] == ([may_be_hole] if is_told else [])


def test_events_without_a_range_and_others_events_are_passed_over() -> None:
    page = page_of(write_of(0, 0, b"FF"), write_of(8, 8, ident=WHERE.event_id + 1))
    assert parse(page, WHERE) == ([], False)


@pytest.mark.parametrize("page", [b"", b"\0" * 15, struct.pack("<QQ", 1, 5000).ljust(4096, b"\0")])
def test_what_is_no_sub_buffer_is_an_error(page: bytes) -> None:
    with pytest.raises(ValueError, match="sub-buffer"):
        parse(page, WHERE)


def test_an_event_that_ends_behind_the_page_is_an_error() -> None:
    torn = page_of(write_of(8, 8))[: 16 + 30]
    with pytest.raises(ValueError, match="sub-buffer"):
        parse(torn.ljust(46, b"\0"), WHERE)


def test_larger_sub_buffers_and_other_offsets_are_read_as_described() -> None:
    header = (GOLDEN / "header_page").read_text().replace("size:4080", "size:65520")
    form = (
        (GOLDEN / "format")
        .read_text()
        .replace("char rwbs[10];\toffset:34;\tsize:10", "char rwbs[8];\toffset:32;\tsize:8")
    )
    other: Layout = layout(header, form)
    assert other.page_bytes == 65536
    item = bytearray(write_of(8, 8, b""))
    item[4 + 32 : 4 + 34] = b"DS"
    found, _ = parse(page_of(bytes(item)), other)
    assert found[0].may_be_hole


@pytest.mark.parametrize(
    "gone", ["nr_sector", "rwbs", "ID:", "sector_t sector;\toffset:16;\tsize:8"]
)
def test_a_kernel_whose_event_is_another_one_is_refused(gone: str) -> None:
    form = (
        (GOLDEN / "format")
        .read_text()
        .replace(gone, gone.replace("8", "4") if "8" in gone else "other")
    )
    with pytest.raises(Unavailable):
        layout((GOLDEN / "header_page").read_text(), form)


@pytest.mark.parametrize(("major", "minor"), [(7, 0), (7, 255), (7, 256), (259, 70_000)])
def test_the_kernels_number_of_a_device(major: int, minor: int) -> None:
    assert kernel_number(os.makedev(major, minor)) == major << 20 | minor
