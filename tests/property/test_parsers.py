"""Whatever bytes another node sends, a parser gives what it promises, or the error that it promises.

Valid messages are flipped, cut and repeated, and lengths in them are claimed to be 2**60. Where a checksum would refuse the
change, the checksum is made right: whoever sends harm can do that, too. The inputs that once got an error past a parser
are in FOUND.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pannier.api.ndjson import LineReader
from pannier.api.server import parse_body
from pannier.contract.bodies import Body
from pannier.contract.peers import PEER_OPERATIONS
from pannier.core.errors import Corrupt, InvalidInput, PannierError, StorageError
from pannier.core.generation import Generation
from pannier.core.line import MOST_BYTES, Data, LinePlace, LineRecord, Zeros
from pannier.core.line import decode as decode_record
from pannier.core.line import encode as encode_record
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.image.stream import Encoder, StreamHeader
from pannier.storage.image.stream import decode as decode_image
from pannier.storage.journal.format import Frame, FrameHead, FrameKind, frame_head, scan
from pannier.storage.journal.layout import BLOCK_BYTES, whole_blocks
from pannier.storage.tree.manifest import DIRECTORY, FILE, SYMLINK, Manifest, TreeEntry
from pannier.storage.tree.stream import Tree, receive_tree, send_tree
from pannier.storage.tree.walk import CachedHasher
from pannier.storage.tree.walk import scan as scan_tree
from pannier.transport import frames, record_frames

EXAMPLES = settings(max_examples=150, deadline=None)
CLAIM = struct.pack(">Q", 1 << 60)
DEEP = b"[" * 100_000
GENERATION = Generation(3, 7, "0f3a94c1")
PLACE = LinePlace(
    volume="v-1", epoch=3, run="0123456789abcdef", number=1, generation=GENERATION, included=0
)
IDENTITY = b"0123456789abcdef"


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid message with some damage."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "cut out", "repeat", "claim", "insert"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "cut out":
                del data[at : at + draw(st.integers(1, 20))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
            case "claim":
                data[at : at + len(CLAIM)] = CLAIM
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def mostly(*valid: bytes) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=300) | st.sampled_from(valid).flatmap(damaged)


# -- the transport -----------------------------------------------------------------------------------

MESSAGES: list[frames.Message] = [
    frames.Offered(
        volume_id="v-1", volume_name="v", driver="image", epoch=3, generation=str(GENERATION)
    ),
    frames.Have(
        (str(GENERATION), "3.6"),
        frames.BegunPart(generation="3.8", base="3.7", position=4096),
        frames.KeptRecord.of(PLACE),
    ),
    frames.Start(base=None),
    frames.End(bytes=9),
    frames.Done(),
    frames.Failed("conflict", "it is held", "ask its holder"),
]
BODIES = [frames.encode(message)[frames.HEADER.size :] for message in MESSAGES]


def read_message(body: bytes) -> None:
    message = frames.decode(body)
    if isinstance(message, frames.Offered):
        message.offer()
    elif isinstance(message, frames.Have | frames.Start):
        message.parsed()
    elif isinstance(message, frames.Failed):
        assert isinstance(message.error(peer="b"), PannierError)


def read_failed(body: bytes) -> None:
    assert isinstance(record_frames.parse_failed(body, peer="b"), PannierError)


FOUND = [
    b'{"type":"done","more":' + DEEP,
    b'{"type":"have","generations":["' + b"9" * 5000 + b'.1"]}',
    b'{"type":"end","bytes":' + b"9" * 5000 + b"}",
    b'{"type":"failed","code":"\\ud800","message":"","remedy":""}',
    b'{"type":"offer","volume_id":"\xff"}',
]


@pytest.mark.parametrize("body", FOUND, ids=range(len(FOUND)))
@pytest.mark.parametrize("parse", [read_message, read_failed])
def test_what_was_found_is_refused(parse: Callable[[bytes], None], body: bytes) -> None:
    with suppress(InvalidInput):
        parse(body)


@given(mostly(*BODIES))
@EXAMPLES
def test_messages(body: bytes) -> None:
    for parse in (read_message, read_failed):
        with suppress(InvalidInput):
            parse(body)


@given(st.binary(min_size=13, max_size=13))
@EXAMPLES
def test_heads_of_frames_bound_what_follows(head: bytes) -> None:
    with suppress(InvalidInput):
        kind = frames.check_header(*frames.HEADER.unpack(head[:5]))
        assert int.from_bytes(head[1:5]) <= frames.MESSAGE_BYTES
        assert kind in frames.Kind
    with suppress(InvalidInput):
        assert record_frames.parse_head(head).length <= MOST_BYTES + (1 << 20)


@given(mostly(b"\x03v-1record"))
@EXAMPLES
def test_records_in_frames(body: bytes) -> None:
    with suppress(InvalidInput):
        name, rest = record_frames.split_record(memoryview(body))
        assert 1 + len(name) + len(rest) == len(body)


# -- records -----------------------------------------------------------------------------------------

_CHECK_AT = 60
RECORD = b"".join(
    encode_record(
        LineRecord(place=PLACE, size=1 << 20, ranges=(Data(0, b"x" * 4096), Zeros(8192, 16384)))
    )
)


def sealed(record: bytes) -> bytes:
    """The same with the checksum that it should have."""
    check = zlib.crc32(
        record[_CHECK_AT + 4 :], zlib.crc32(record[:_CHECK_AT] + bytes(4)) if record else 0
    )
    return record[:_CHECK_AT] + struct.pack(">I", check) + record[_CHECK_AT + 4 :]


def test_a_seal_is_that_of_a_record() -> None:
    assert sealed(RECORD) == RECORD


@given(mostly(RECORD))
@EXAMPLES
def test_records(record: bytes) -> None:
    for each in (record, sealed(record)):
        with suppress(Corrupt):
            found = decode_record(each)
            ends = [(one.start, one.end) for one in found.ranges]
            assert all(0 <= start < end <= found.size <= 1 << 60 for start, end in ends)
            assert ends == sorted(ends)


# -- the stream of an image ----------------------------------------------------------------------------

NUMBERS = st.integers(0, 1 << 20) | st.sampled_from([1 << 60, (1 << 63) - 1, (1 << 64) - 1])


def read_image(stream: bytes) -> None:
    header, records = decode_image(io.BytesIO(stream).read, what="generation 3.7 of volume v")
    assert header.size <= 1 << 60
    at = header.position
    for record in records:
        assert at <= record.start <= record.end <= header.size
        at = record.end


@st.composite
def image_streams(draw: st.DrawFn) -> bytes:
    """Streams with the right checksums and any numbers."""
    encoder = Encoder()
    header = StreamHeader(size=draw(NUMBERS), identity="11" * 16, base=None, position=draw(NUMBERS))
    parts = [encoder.header(header)]
    for _ in range(draw(st.integers(0, 3))):
        start, length = draw(NUMBERS), draw(st.integers(0, 1 << 20))
        parts += map(bytes, encoder.record(Zeros(start, start + length)))
        parts += map(bytes, encoder.record(Data(start, b"data")))
    return b"".join([*parts, encoder.end()])


@given(image_streams() | image_streams().flatmap(damaged) | st.binary(max_size=100))
@EXAMPLES
def test_streams_of_images(stream: bytes) -> None:
    with suppress(Corrupt):
        read_image(stream)


def test_an_image_of_any_size_is_none() -> None:
    """Such a size is no offset of a file: setting it ended in an error that was none of ours."""
    header = StreamHeader(size=1 << 63, identity="11" * 16, base=None)
    encoder = Encoder()
    with pytest.raises(Corrupt):
        read_image(encoder.header(header) + encoder.end())


# -- the journal -----------------------------------------------------------------------------------------


def segment() -> bytes:
    made = bytearray(BLOCK_BYTES)
    for arrival in (1, 2):
        head = FrameHead(
            kind=FrameKind.RECORD, arrival=arrival, synced=BLOCK_BYTES, volume="v-1", place=PLACE
        )
        encoded = frame_head(IDENTITY, 1, len(made), head, [RECORD]) + RECORD
        made += encoded.ljust(whole_blocks(len(encoded)), b"\0")
    return bytes(made)


SEGMENT = segment()


@given(mostly(SEGMENT))
@EXAMPLES
def test_segments_of_journals(data: bytes) -> None:
    at = BLOCK_BYTES
    for found in scan(IDENTITY, 1, data):
        start = found.at if isinstance(found, Frame) else found.start
        assert start == at < found.end
        at = found.end


# -- trees -----------------------------------------------------------------------------------------------


def tree_stream() -> bytes:
    with tempfile.TemporaryDirectory(prefix="pannier-parsers-") as place:
        root = Path(place)
        (root / "d").mkdir()
        (root / "d" / "file").write_bytes(b"content" * 100)
        (root / "way").symlink_to("/etc")
        tree = Tree(root, scan_tree(root, hasher=CachedHasher({})))
        fd = os.memfd_create("stream")
        try:
            send_tree(fd, tree=tree, base=None)
            return os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)


TREE_STREAM = tree_stream()


def build(stream: bytes, place: Path) -> None:
    """Receive a stream, and see that all that came of it is where it belongs."""
    (place / "root").mkdir()
    fd = os.memfd_create("stream")
    try:
        os.write(fd, stream)
        os.lseek(fd, 0, os.SEEK_SET)
        with suppress(StorageError), told_as_storage_error("receive the tree"):
            receive_tree(fd, root=place / "root", base=None, share=False, stop=threading.Event())
    finally:
        os.close(fd)
    assert os.listdir(place) == ["root"]


@given(mostly(TREE_STREAM))
@EXAMPLES
def test_streams_of_trees(stream: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="pannier-parsers-") as place:
        build(stream, Path(place))


TEXTS = st.sampled_from(
    [
        "",
        "a",
        "b",
        "a/b",
        "a/..",
        "..",
        "../x",
        "/etc/x",
        "é",
        "\udcc3\udca9",
        "\ud800",
        "a\0",
        "n" * 300,
    ]
)
WHOLE = st.sampled_from([0, 1, -1, 0o4755, (1 << 32) - 1, 1 << 32, 1 << 60, 1 << 64, 1 << 200])


@st.composite
def tree_entries(draw: st.DrawFn) -> TreeEntry:
    return TreeEntry(
        path=draw(TEXTS),
        kind=draw(st.sampled_from([DIRECTORY, DIRECTORY, SYMLINK, "link", "fifo", FILE, "door"])),
        mode=draw(st.just(0o755) | WHOLE),
        uid=draw(st.just(0) | WHOLE),
        gid=draw(st.just(0) | WHOLE),
        mtime_ns=draw(st.just(0) | WHOLE),
        rdev=draw(st.just(0) | WHOLE),
        target=draw(TEXTS),
        xattrs=draw(st.just(()) | st.tuples(st.tuples(TEXTS, st.just("00")))),
    )


def described(manifest: Manifest) -> bytes:
    """The stream of a tree as a sender describes it, up to its first file, which there is not."""
    fd = os.memfd_create("stream")
    try:
        with suppress(OSError, ValueError):
            send_tree(fd, tree=Tree(Path("/nonexistent"), manifest), base=None)
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


@given(st.lists(tree_entries(), max_size=5))
@EXAMPLES
def test_descriptions_of_trees(entries: list[TreeEntry]) -> None:
    manifest = Manifest.of([TreeEntry(path="", kind=DIRECTORY, mode=0o755), *entries])
    with tempfile.TemporaryDirectory(prefix="pannier-parsers-") as place:
        build(described(manifest), Path(place))


# -- memory and time ---------------------------------------------------------------------------------------


def test_a_length_of_2_to_the_60_takes_no_memory(tmp_path: Path) -> None:
    """In each place of a record and of a tree's stream, of less than 1 KiB each."""
    tracemalloc.start()
    try:
        for at in range(len(RECORD) - 4096):
            with suppress(Corrupt):
                decode_record(sealed(RECORD[:at] + CLAIM + RECORD[at + 8 :]))
        for at in range(0, len(TREE_STREAM) - len(CLAIM), 3):
            place = tmp_path / str(at)
            place.mkdir()
            build(TREE_STREAM[:at] + CLAIM + TREE_STREAM[at + 8 :], place)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_line_that_comes_byte_by_byte_takes_no_time_for_each_byte_before() -> None:
    """What is copied is counted, not timed: 2 MiB here, and 32 GiB if each byte copied those before it."""
    lines = LineReader(limit_bytes=1 << 18)
    before = lines._rest
    for _ in range(1 << 18):
        assert lines.feed(b"x") == []
    assert lines._rest is before, "it grows in place"
    with pytest.raises(PannierError):
        lines.feed(b"x")


@given(st.lists(st.binary(max_size=5) | st.just(b"\n"), max_size=20))
@EXAMPLES
def test_lines_are_those_of_all_chunks_together(chunks: list[bytes]) -> None:
    lines = LineReader()
    found = [line for chunk in chunks for line in lines.feed(chunk)]
    *whole, _rest = b"".join(chunks).split(b"\n")
    assert found == [line for line in whole if line.strip()]


# -- bodies ------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "peers"
EXCHANGED = sorted(file.read_bytes() for file in GOLDEN.glob("*.json"))
BODY_KINDS = [row.body for row in PEER_OPERATIONS.rows if row.body is not None]


@given(mostly(*EXCHANGED), st.sampled_from(BODY_KINDS))
@EXAMPLES
def test_bodies(content: bytes, kind: type[Body]) -> None:
    with suppress(InvalidInput):
        assert isinstance(parse_body(content, kind, "POST /x"), kind)


@pytest.mark.parametrize("kind", BODY_KINDS)
def test_a_body_that_is_too_deep_is_refused(kind: type[Body]) -> None:
    with pytest.raises(InvalidInput):
        parse_body(b'{"more":' + DEEP, kind, "POST /x")
