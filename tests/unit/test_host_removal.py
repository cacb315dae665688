"""Files are removed below a directory, and nowhere else, whatever links are in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier.host.removal import remove_within


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("x")
    (root / "a" / "out").symlink_to(tmp_path / "outside")
    (root / "file").write_text("x")
    return root


def test_a_file_and_a_directory_with_all_in_it_go(root: Path) -> None:
    remove_within(root, "/file")
    remove_within(root, "a//b/")
    assert sorted(each.name for each in root.rglob("*")) == ["a", "out"]


def test_a_link_goes_and_what_it_leads_to_stays(root: Path) -> None:
    remove_within(root, "a/out")
    remove_within(root, "a")
    assert (root.parent / "outside" / "kept").exists()


def test_a_directory_with_a_link_in_it_goes_without_what_that_leads_to(root: Path) -> None:
    remove_within(root, "a")
    assert (root.parent / "outside" / "kept").exists()


def test_nothing_is_reached_through_a_link(root: Path) -> None:
    with pytest.raises(OSError, match="out"):
        remove_within(root, "a/out/kept")
    assert (root.parent / "outside" / "kept").exists()


@pytest.mark.parametrize("path", ["", "/", ".", "..", "../outside", "a/../../outside", "a/b/.."])
def test_what_names_nothing_below_is_refused(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="names nothing"):
        remove_within(root, path)
    assert (root / "a" / "b" / "file").exists()


def test_what_is_not_there_is_told(root: Path) -> None:
    for path in ("none", "a/none/x", "file/x"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            remove_within(root, path)
