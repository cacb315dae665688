"""The mount ids that Docker has given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pannier.agent.mountids import MountIds
from pannier.host.state_files import UnsyncedFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mounts.json"


def test_keeps_ids_with_their_age(path: Path) -> None:
    ids = MountIds(UnsyncedFile(path))
    ids.add("v", "one", 10.0)
    ids.add("v", "two", 12.5)
    ids.add("w", "one", 13.0)
    assert ids.ages("v", 20.0) == {"one": 10.0, "two": 7.5}
    assert ids.ages("x", 20.0) == {}
    assert ids.names() == {"v", "w"}
    ids.add("v", "one", 19.0)
    assert ids.ages("v", 20.0) == {"one": 1.0, "two": 7.5}


def test_outlasts_the_daemon(path: Path) -> None:
    ids = MountIds(UnsyncedFile(path))
    ids.add("v", "one", 10.0)
    ids.add("v", "two", 11.0)
    ids.add("w", "three", 12.0)
    ids.discard("v", "two")
    ids.forget("w")
    assert MountIds(UnsyncedFile(path)).ages("v", 10.0) == {"one": 0.0}
    assert MountIds(UnsyncedFile(path)).names() == {"v"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_unknown_ids_and_volumes_are_no_error(path: Path) -> None:
    ids = MountIds(UnsyncedFile(path))
    ids.discard("v", "one")
    ids.forget("v")
    ids.add("v", "one", 1.0)
    ids.discard("v", "two")
    ids.discard("v", "one")
    ids.discard("v", "one")
    assert ids.names() == frozenset()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1, "ids": {"v": ["one"]}}',
        b'{"format": 1, "ids": {"v": {"one": "x"}}}',
        b'{"ids": {}}',
        b'{"format": 2, "ids": {}}',
        b"\xff",
        b"[" * 99999,
    ],
)
def test_a_corrupt_file_counts_as_empty_and_is_logged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with capture_logs() as lines:
        ids = MountIds(UnsyncedFile(path))
    assert ids.names() == frozenset()
    assert [line["log_level"] for line in lines] == ["warning"]
    ids.add("v", "one", 1.0)
    assert MountIds(UnsyncedFile(path)).names() == {"v"}


@given(st.binary(max_size=100))
def test_no_content_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("ids") / "mounts.json"
    path.write_bytes(content)
    MountIds(UnsyncedFile(path)).add("v", "one", 1.0)
    assert "one" in MountIds(UnsyncedFile(path)).ages("v", 2.0)


def test_what_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a directory")
    with capture_logs() as lines:
        ids = MountIds(UnsyncedFile(tmp_path / "file" / "mounts.json"))
        ids.add("v", "one", 1.0)
    assert ids.ages("v", 3.0) == {"one": 2.0}
    assert {line["log_level"] for line in lines} == {"warning"}
