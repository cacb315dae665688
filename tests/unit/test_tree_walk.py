"""Trees that are changed while they are walked: what is read is in the tree, and is one thing at a time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pannier.host.beneath import open_beneath
from pannier.storage.tree.check import check_tree
from pannier.storage.tree.manifest import FILE
from pannier.storage.tree.walk import CachedHasher, open_directory, remove_tree, scan


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (tmp_path / "outside" / "sub" / "secret").write_text("secret")
    made = tmp_path / "tree"
    made.mkdir()
    return made


@pytest.mark.parametrize("path", ["way", "way/sub", "real/way/sub"])
def test_no_link_is_followed_wherever_it_is_in_a_path(tree: Path, path: str) -> None:
    (tree / "way").symlink_to("../outside")
    (tree / "real").mkdir()
    (tree / "real" / "way").symlink_to("/etc/..")
    refusals = f"{os.strerror(errno.ELOOP)}|{os.strerror(errno.ENOTDIR)}"
    with pytest.raises(OSError, match=refusals), open_directory(tree, path):
        pass


@pytest.mark.parametrize("path", [b"..", b"../outside", b"real/../../outside", b"/etc"])
def test_no_path_leads_out_of_its_directory(tree: Path, path: bytes) -> None:
    (tree / "real").mkdir()
    directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            open_beneath(directory, path, os.O_PATH)
    finally:
        os.close(directory)


def test_what_is_read_of_a_name_is_of_one_file(tree: Path) -> None:
    """A process in the volume makes a link of the file between two looks at it."""
    inside, secret = tree / "file", tree.parent / "outside" / "sub" / "secret"
    inside.write_text("public")
    os.setxattr(inside, "user.whose", b"inside")
    os.setxattr(secret, "user.whose", b"outside")
    public = scan(tree, hasher=CachedHasher({})).entries["file"]

    class Changed(CachedHasher):
        def __call__(self, path: str, status: os.stat_result, found: int) -> str:
            inside.unlink()
            inside.symlink_to(secret)
            return super().__call__(path, status, found)

    entry = scan(tree, hasher=Changed({})).entries["file"]
    assert (entry.kind, entry) == (FILE, public)


def test_a_tree_of_any_depth_is_checked(tree: Path) -> None:
    """A volume's processes decide how deep it is: its copy must not be one that can never be checked."""
    at = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT, dir_fd=at))
    os.mkfifo("fifo", dir_fd=at)
    os.close(at)
    try:
        check_tree(tree, "generation 1.1 of volume v", threading.Event())
    finally:
        remove_tree(tree)
