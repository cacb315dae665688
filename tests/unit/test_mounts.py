"""Bind mounts for Docker: real mounts, in a directory of their own."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pannier.agent.mounts import MountTable
from pannier.core.errors import Conflict, InvalidInput, StorageError, VolumeInUse
from pannier.host.mountinfo import below, own_mounts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts and guards are taken away at the end, whatever happened."""
    yield tmp_path
    for mount in reversed(own_mounts()):
        if below(mount.point, str(tmp_path)) is not None:
            subprocess.run(["umount", "-l", mount.point], check=False)
    subprocess.run(["chattr", "-R", "-i", str(tmp_path)], check=False, capture_output=True)


@pytest.fixture
def table(place: Path) -> MountTable:
    return MountTable(place / "mounts")


@pytest.fixture
def source(place: Path) -> Path:
    directory = place / "data with space"
    directory.mkdir()
    (directory / "file").write_text("content")
    return directory


def count(path: Path) -> int:
    return sum(mount.point == str(path) for mount in own_mounts())


@needs_root
def test_mounts_once(table: MountTable, source: Path) -> None:
    assert not table.is_mounted("v1", source)
    path = table.mount("v1", source)
    assert path == table.root / "v1"
    assert table.mount("v1", source) == path
    assert count(path) == 1
    assert (path / "file").read_text() == "content"
    assert table.is_mounted("v1", source)
    assert {name: mount.point for name, mount in table.mounted().items()} == {"v1": str(path)}
    table.unmount("v1")
    table.unmount("v1")
    assert count(path) == 0
    assert table.mounted() == {}


@needs_root
def test_threads_that_mount_at_once_mount_once(table: MountTable, source: Path) -> None:
    """A cancelled task leaves its thread behind, beside that of the next attempt."""
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: table.mount("v1", source), range(64)))
    assert paths == {table.path("v1")}
    assert count(table.path("v1")) == 1


@needs_root
def test_another_program_finds_it_after_a_restart(table: MountTable, source: Path) -> None:
    table.mount("v1", source)
    again = MountTable(table.root)
    assert again.is_mounted("v1", source)
    assert again.mount("v1", source) == table.path("v1")
    assert count(table.path("v1")) == 1


@needs_root
def test_nothing_can_be_written_where_a_volume_should_be(table: MountTable, source: Path) -> None:
    path = table.mount("v1", source)
    assert table.unguarded == frozenset()
    (path / "ok").write_text("through the mount")
    table.unmount("v1")
    assert path.stat().st_mode & 0o7777 == 0o700
    for attempt in (lambda: (path / "x").write_text("y"), lambda: (path / "d").mkdir()):
        with pytest.raises(PermissionError) as caught:
            attempt()
        assert caught.value.errno == errno.EPERM
    table.mount("v1", source)  # the guard is no hindrance
    assert table.prepared() == {"v1"}
    assert not table.forget("v1"), "something is mounted there"
    assert (path / "ok").exists()
    table.unmount("v1")
    assert table.forget("v1")
    assert not path.exists()
    assert table.prepared() == frozenset()
    assert table.forget("v1")


@needs_root
def test_says_where_the_guard_is_not_possible(place: Path, source: Path) -> None:
    fs = place / "ramfs"
    fs.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(fs)], check=True)
    table = MountTable(fs / "mounts")
    path = table.mount("v1", source)
    assert table.unguarded == {"v1"}
    table.unmount("v1")
    assert path.stat().st_mode & 0o7777 == 0
    assert table.mount("v1", source) == path
    table.unmount("v1")
    table.forget("v1")
    assert table.unguarded == frozenset()
    assert not path.exists()


@needs_root
def test_another_source_is_replaced_only_when_asked(
    table: MountTable, source: Path, place: Path
) -> None:
    other = place / "other"
    other.mkdir()
    path = table.mount("v1", source)
    with pytest.raises(Conflict, match="v1"):
        table.mount("v1", other)
    assert table.is_mounted("v1", source)
    assert table.replace("v1", other) == path
    assert table.is_mounted("v1", other)
    assert not table.is_mounted("v1", source)
    assert count(path) == 1
    assert table.replace("v1", other) == path


@needs_root
def test_a_directory_made_anew_under_the_old_name_is_another(
    table: MountTable, source: Path
) -> None:
    table.mount("v1", source)
    (source / "file").unlink()
    source.rmdir()
    source.mkdir()
    assert not table.is_mounted("v1", source)


@needs_root
def test_a_process_on_the_node_keeps_it_mounted(table: MountTable, source: Path) -> None:
    path = table.mount("v1", source)
    with open(path / "file"):
        with pytest.raises(VolumeInUse, match="fuser"):
            table.unmount("v1")
        assert table.is_mounted("v1", source)
        table.unmount("v1", detach=True)
    assert count(path) == 0


@needs_root
def test_mounts_on_top_of_each_other_all_go(table: MountTable, source: Path, place: Path) -> None:
    path = table.mount("v1", source)
    other = place / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", str(other), str(path)], check=True)
    assert not table.is_mounted("v1", source)
    assert table.mounted()["v1"].root.endswith("/other")
    table.unmount("v1")
    assert count(path) == 0


@needs_root
def test_a_source_that_is_not_there_is_an_error(table: MountTable, place: Path) -> None:
    with pytest.raises(StorageError, match="not a directory"):
        table.mount("v1", place / "gone")
    assert not table.path("v1").exists()


@needs_root
def test_keeps_what_is_in_an_unguarded_directory(table: MountTable) -> None:
    table.path("v1").mkdir()
    (table.path("v1") / "precious").write_text("x")
    with pytest.raises(StorageError, match="cannot be removed"):
        table.forget("v1")
    assert (table.path("v1") / "precious").exists()


@needs_root
def test_a_link_instead_of_the_directory_is_refused(
    table: MountTable, source: Path, place: Path
) -> None:
    table.path("v1").symlink_to(place)
    with pytest.raises(StorageError, match="cannot be prepared"):
        table.mount("v1", source)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".", "x\0y"])
def test_a_name_cannot_lead_elsewhere(place: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        MountTable(place / "mounts").path(name)


@needs_root
def test_btrfs_subvolumes(place: Path) -> None:
    image, pool = place / "pool.img", place / "pool"
    pool.mkdir()
    with open(image, "wb") as file:
        file.truncate(128 * 2**20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(pool)], check=True)
    for name in ("a", "b"):
        subprocess.run(
            ["btrfs", "subvolume", "create", str(pool / name)], check=True, capture_output=True
        )
    table = MountTable(place / "mounts")
    table.mount("v1", pool / "a")
    assert table.is_mounted("v1", pool / "a")
    assert not table.is_mounted("v1", pool / "b")
    assert table.mounted()["v1"].fstype == "btrfs"
    table.unmount("v1")
