"""Copying files out of a tree: all that they are is kept, nothing is overwritten, and no link leads out."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pannier.core.errors import AlreadyExists, InvalidInput, NotFound, StorageError
from pannier.storage.slow_reading import ReadingStopped
from pannier.storage.tree.take_out import DRAFT, PartOfTree, take_out

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of any owner are made")
Take = Callable[[str], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"content")
    os.chown(root / "a" / "file", 1000, 1001)
    os.chmod(root / "a" / "file", 0o4640)
    os.setxattr(root / "a" / "file", "user.note", b"kept")
    os.utime(root / "a" / "file", ns=(1, 1_600_000_000_123_456_789))
    os.link(root / "a" / "file", root / "a" / "b" / "same")
    os.symlink("../../outside", root / "a" / "link")
    os.symlink("a", root / "way")
    os.mkfifo(root / "a" / "pipe")
    with (root / "a" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    os.chmod(root / "a", 0o750)
    os.utime(root / "a", ns=(1, 1_500_000_000_000_000_000))
    (tmp_path / "outside").write_bytes(b"secret")
    return root


@pytest.fixture
def to(tmp_path: Path) -> Path:
    place = tmp_path / "to"
    place.mkdir()
    return place


@pytest.fixture
def take(tree: Path, to: Path) -> Iterator[Take]:
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)

    def call(path: str) -> Path:
        source = PartOfTree(root=root, path=path, name="vol")
        return take_out(source, to, note=lambda count: None, stop=threading.Event())

    yield call
    os.close(root)
    assert not [name for name in os.listdir(to) if name.startswith(DRAFT)]


def looks(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    return (found.st_uid, found.st_gid, stat.filemode(found.st_mode), found.st_mtime_ns)


def test_a_file_comes_out_as_it_is(tree: Path, take: Take) -> None:
    out = take("/a/file")
    assert out.read_bytes() == b"content"
    assert looks(out) == looks(tree / "a" / "file")
    assert os.getxattr(out, "user.note") == b"kept"


def test_a_directory_comes_out_with_all_in_it(tree: Path, take: Take) -> None:
    out = take("a")
    assert sorted(os.listdir(out)) == sorted(os.listdir(tree / "a"))
    for name in (".", "file", "b", "link", "pipe", "sparse"):
        assert looks(out / name) == looks(tree / "a" / name), name
    assert os.readlink(out / "link") == "../../outside"
    assert (out / "b" / "same").samefile(out / "file")
    assert (out / "sparse").stat().st_blocks < 100
    with (out / "sparse").open("rb") as file:
        assert os.pread(file.fileno(), 6, 1 << 29) == b"middle"


def test_all_of_it_has_the_volumes_name(tree: Path, to: Path, take: Take) -> None:
    assert take("/") == to / "vol"
    assert sorted(os.listdir(to / "vol")) == ["a", "way"]


def test_a_link_comes_out_as_a_link(take: Take) -> None:
    assert os.readlink(take("a/link")) == "../../outside"


@pytest.mark.parametrize("path", ["a/../../outside", "../outside", "way/file", "a/link/x", "a/.."])
def test_no_path_leads_out_or_through_a_link(path: str, to: Path, take: Take) -> None:
    with pytest.raises(InvalidInput, match="leads through a symbolic link, or out of"):
        take(path)
    assert os.listdir(to) == []


def test_nothing_is_overwritten(to: Path, take: Take) -> None:
    for make in (Path.touch, Path.mkdir):
        make(to / "file")
        with pytest.raises(AlreadyExists, match="nothing is overwritten"):
            take("a/file")
        assert os.listdir(to) == ["file"]
        (to / "file").unlink() if make is Path.touch else (to / "file").rmdir()
    os.symlink("nowhere", to / "file")
    with pytest.raises(AlreadyExists):
        take("a/file")


def test_what_is_not_there_is_told(take: Take) -> None:
    for path in ("none", "a/file/none", "a" * 300):
        with pytest.raises((NotFound, StorageError)):
            take(path)
    with pytest.raises(InvalidInput, match="too long"):
        take("a/" * 3000)


def test_the_place_has_to_be_a_directory(tree: Path, tmp_path: Path) -> None:
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for place in (tmp_path / "none", tmp_path / "outside", Path("relative")):
        with pytest.raises(InvalidInput, match="not the absolute path of a directory"):
            take_out(
                PartOfTree(root=root, path="a", name="vol"),
                place,
                note=lambda count: None,
                stop=threading.Event(),
            )
    os.close(root)


def test_it_stops_and_leaves_nothing(tree: Path, to: Path) -> None:
    """Whoever waited has gone after the first bytes."""
    root, stop = os.open(tree, os.O_RDONLY | os.O_DIRECTORY), threading.Event()
    with pytest.raises(ReadingStopped):
        take_out(
            PartOfTree(root=root, path="a", name="vol"),
            to,
            note=lambda count: stop.set(),
            stop=stop,
        )
    os.close(root)
    assert os.listdir(to) == []
