"""The drivers in memory keep the same contract as the real ones.

Left out are the contract's tests of what only a real file system has: owners, links, holes,
extended attributes, times, and paths that the kernel does not take at once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import test_driver as contract
import test_driver_mending as mending
from fake_driver import Disk, SingleTreeDriver, SnapshotDriver, SparseSnapshotDriver, Tree
from test_driver_kit import Nodes

_NEEDS_FILES = {
    "test_a_created_tree_is_empty_with_its_owner_and_mode",
    "test_a_whole_transfer_keeps_everything",
    "test_a_difference_brings_over_every_kind_of_change",
    "test_a_volume_moves_there_and_back_and_on",
    "test_a_broken_transfer_leaves_the_base_whole",
    "test_a_flipped_bit_anywhere_is_found",
    "test_a_deleted_volume_is_gone_for_ever",
    "test_paths_longer_than_the_kernel_takes_at_once",
}


class _Shown(SnapshotDriver):
    """Live trees as real directories of small files, for tests that write there."""

    def data_path(self, volume: str, epoch: int) -> Path:
        return Path(super().data_path(volume, epoch))

    def _gather(self, volume: str, epoch: int, tree: Tree) -> dict[str, bytes]:
        top = self.data_path(volume, epoch)
        found = {f.name: b"link " + bytes(f.readlink()) for f in top.iterdir() if f.is_symlink()}
        return found | {f.name: b"file " + f.read_bytes() for f in top.iterdir() if f.is_file()}

    def _show(self, volume: str, epoch: int, tree: Tree) -> None:
        top = self.data_path(volume, epoch)
        top.mkdir(parents=True)
        for name, value in tree.content.items():
            if value.startswith(b"link "):
                (top / name).symlink_to(value[5:].decode())
            else:
                (top / name).write_bytes(value[5:])

    def _hide(self, volume: str, epoch: int) -> None:
        shutil.rmtree(self.data_path(volume, epoch).parent)


class _ShownSparse(_Shown, SparseSnapshotDriver):
    pass


class _ShownSingleTree(_Shown, SingleTreeDriver):
    pass


@pytest.fixture(params=[_Shown, _ShownSparse, _ShownSingleTree])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Nodes:
    a, b, c = (request.param(Disk(), where=tmp_path / name) for name in "abc")
    return Nodes(a, b, c, "v-1")


def _shared() -> dict[str, object]:
    found = {n: test for n, test in vars(contract).items() if n.startswith("test_")}
    assert found.keys() >= _NEEDS_FILES, "the contract has changed: look at this list again"
    return {name: test for name, test in found.items() if name not in _NEEDS_FILES}


@pytest.fixture
def world(tmp_path: Path) -> mending.Damaged:
    """For what a driver that mends does."""
    a, b, c = (_ShownSparse(Disk(), where=tmp_path / name) for name in "abc")

    def spoil(driver: SparseSnapshotDriver, content: bytes) -> None:
        (home,) = driver.disk.homes.values()
        for generation, files in home.generations.items():
            for file, value in files.items():
                if content in value:
                    home.changed[generation, file] = value.replace(content, bytes(len(content)))

    return mending.Damaged(Nodes(a, b, c, "v-1"), a, b, spoil)  # type: ignore[arg-type]


globals().update(_shared())
globals().update({n: test for n, test in vars(mending).items() if n.startswith("test_")})
