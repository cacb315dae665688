"""Reads and sync calls at once, by a kernel that can do it and by one that cannot."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pannier.host import together
from pannier.host.together import read_pieces, sync_files

PIECE = 4096
CONTENT = random.Random(3).randbytes(200 * PIECE)


@pytest.fixture(params=["at once", "one after the other"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be so in both ways."""
    if request.param == "at once":
        assert together._made() is not None, "this kernel must be able to do it"
    else:
        monkeypatch.setattr(together, "_free", [])
        monkeypatch.setattr(together, "_SETUP", -1)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """An open file with content."""
    (tmp_path / "file").write_bytes(CONTENT)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def read(fd: int, starts: list[int]) -> list[bytes]:
    """Pieces of a file, read at once."""
    memory = ctypes.create_string_buffer(PIECE * len(starts))
    address = ctypes.addressof(memory)
    asked = [(at, PIECE, address + PIECE * number) for number, at in enumerate(starts)]
    got = read_pieces(fd, asked)
    return [memory.raw[PIECE * at :][:size] for at, size in enumerate(got)]


@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 200])
def test_each_piece_is_where_it_was_asked_for(way: None, file: int, count: int) -> None:
    starts = random.Random(count).sample(range(0, len(CONTENT), PIECE), count)
    assert read(file, starts) == [CONTENT[at : at + PIECE] for at in starts]


def test_a_piece_at_the_end_is_short(way: None, file: int) -> None:
    end = len(CONTENT)
    found = read(file, [end - 1000, 0, end + PIECE])
    assert list(map(len, found)) == [1000, PIECE, 0]


def test_what_cannot_be_read_is_an_error(way: None, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "unreadable", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            read(fd, [0, PIECE])
    finally:
        os.close(fd)


@pytest.mark.parametrize("count", [1, 2, 70])
def test_each_file_is_told_its_own_error(way: None, tmp_path: Path, count: int) -> None:
    """One that cannot be synced, in the midst of others, some of which are not begun any more after it."""
    files = [os.open(tmp_path / str(at), os.O_WRONLY | os.O_CREAT) for at in range(count)]
    looked_at = os.open(tmp_path / "0", os.O_PATH)
    reader, writer = os.pipe()
    asked = [*files, looked_at, *files, writer, *files]
    try:
        found = sync_files(asked, data_only=[bool(at % 2) for at in range(len(asked))])
    finally:
        for fd in (*files, looked_at, reader, writer):
            os.close(fd)
    ok = [0] * count
    assert found == [*ok, errno.EBADF, *ok, errno.EINVAL, *ok]


@pytest.mark.parametrize("count", [1, 3])
def test_something_else_is_done_meanwhile_once(way: None, tmp_path: Path, count: int) -> None:
    files = [os.open(tmp_path / str(at), os.O_WRONLY | os.O_CREAT) for at in range(count)]
    done: list[int] = []
    try:
        found = sync_files(files, data_only=[True] * count, meanwhile=lambda: done.append(1))
    finally:
        for fd in files:
            os.close(fd)
    assert (found, done) == ([0] * count, [1])


def test_threads_do_not_disturb_each_other_and_leave_little_behind(way: None, file: int) -> None:
    starts = list(range(0, len(CONTENT), 3 * PIECE))
    with ThreadPoolExecutor(30) as threads:
        found = list(threads.map(lambda _: read(file, starts), range(300)))
    assert found == [[CONTENT[at : at + PIECE] for at in starts]] * 300
    assert len(together._free) <= together._MOST_IN_USE
