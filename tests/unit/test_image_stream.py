"""The stream of an image: what was sent is what is read, and damage anywhere is found."""

from __future__ import annotations

import io

import pytest

from pannier.core.errors import Corrupt
from pannier.core.line import Buffer, Data, Zeros
from pannier.storage.image.stream import Encoder, StreamHeader, decode

HEADER = StreamHeader(size=1 << 20, identity="11" * 16, base="22" * 16)
RECORDS: list[Zeros | Data] = [
    Data(0, b"first"),
    Zeros(4096, 8192),
    Data(8192, b"second" * 100),
    Data(9000, b""),
]


def encoded(header: StreamHeader = HEADER, *, without: int | None = None) -> bytes:
    encoder = Encoder()
    parts: list[Buffer] = [encoder.header(header)]
    for number, record in enumerate(RECORDS):
        pieces = encoder.record(record)
        if number != without:
            parts += pieces
    return b"".join([*parts, encoder.end()])


REST = StreamHeader(size=1 << 20, identity="11" * 16, base="22" * 16, position=4096)


def rest_of(header: StreamHeader, *records: Zeros | Data) -> bytes:
    encoder = Encoder()
    parts: list[Buffer] = [encoder.header(header)]
    for record in records:
        parts += encoder.record(record)
    return b"".join([*parts, encoder.end()])


def read(stream: bytes) -> tuple[StreamHeader, list[Zeros | Data]]:
    header, records = decode(io.BytesIO(stream).read, what="generation 1.1 of volume v")
    return header, list(records)


@pytest.mark.parametrize("base", ["22" * 16, None])
def test_what_is_sent_is_read(base: str | None) -> None:
    header = StreamHeader(size=1 << 20, identity="11" * 16, base=base)
    assert read(encoded(header)) == (header, RECORDS)


def test_every_flipped_bit_is_found() -> None:
    stream = encoded()
    for position in range(len(stream)):
        broken = bytearray(stream)
        broken[position] ^= 1 << position % 8
        with pytest.raises(Corrupt):
            read(bytes(broken))


def test_every_cut_is_found() -> None:
    stream = encoded()
    for length in range(len(stream)):
        with pytest.raises(Corrupt):
            read(stream[:length])


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_a_missing_record_is_found(number: int) -> None:
    with pytest.raises(Corrupt, match="damaged"):
        read(encoded(without=number))


def test_a_stream_may_begin_at_a_position() -> None:
    assert read(rest_of(REST, *RECORDS[1:])) == (REST, RECORDS[1:])


def test_every_flipped_bit_of_a_rest_is_found() -> None:
    stream = rest_of(REST, *RECORDS[1:])
    for position in range(len(stream)):
        broken = bytearray(stream)
        broken[position] ^= 1 << position % 8
        with pytest.raises(Corrupt):
            read(bytes(broken))


def test_a_stream_from_the_first_byte_on_has_the_format_that_older_nodes_know() -> None:
    assert encoded()[8:10] == b"\0\x01"
    assert rest_of(REST)[8:10] == b"\0\x02"


@pytest.mark.parametrize(
    "records",
    [
        [Data(0, b"x" * 4096)],
        [Zeros(0, 8192)],
        [Data(8192, b"x" * 4096), Data(4096, b"x" * 4096)],
        [Data(8192, b"x" * 4096), Zeros(8192, 12288)],
    ],
)
def test_records_that_are_not_in_order_are_refused(records: list[Zeros | Data]) -> None:
    """Or the end of the last one would not be how far everything is there."""
    with pytest.raises(Corrupt, match="damaged"):
        read(rest_of(REST, *records))


def test_more_after_the_end_is_found() -> None:
    with pytest.raises(Corrupt, match="damaged"):
        read(encoded() + b"x")


@pytest.mark.parametrize("record", [Data((1 << 20) - 2, b"xyz"), Zeros(4096, (1 << 20) + 1)])
def test_what_lies_outside_of_the_image_is_refused(record: Data | Zeros) -> None:
    encoder = Encoder()
    stream = encoder.header(HEADER) + b"".join(encoder.record(record)) + encoder.end()
    with pytest.raises(Corrupt, match="damaged"):
        read(stream)


def test_a_later_format_is_told_from_damage() -> None:
    stream = bytearray(encoded())
    stream[9] = 3
    with pytest.raises(Corrupt) as told:
        read(bytes(stream))
    assert "update" in told.value.remedy
