"""One volume that cannot be tidied or removed keeps no other from its use. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_driver_kit import (
    ROOT,
    Nodes,
    btrfs_nodes,
    directory_nodes,
    pools,
    workplace,
)

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import Driver
from pannier.storage.btrfs import ioctl

__all__ = ["btrfs_nodes", "directory_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root
OTHER = "v-other"


@dataclass(frozen=True)
class Obstacle:
    """What keeps a tree from being removed, and can be taken away."""

    driver: str
    word: str
    """In the remedy."""

    def put(self, tree: Path) -> None:
        if self.driver == "btrfs":
            ioctl.create_subvolume(tree / "layer")
        else:
            (tree / "layer").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", tree / "layer"], check=True)

    def leave(self, home: Path) -> None:
        """As a crash in the middle of an earlier step leaves it."""
        tree = home / "incoming" / "9.9" / "tree"
        tree.parent.mkdir(exist_ok=True)
        if self.driver == "btrfs":
            ioctl.create_subvolume(tree)
        else:
            tree.mkdir()
        self.put(tree)

    def take_away(self, volumes: Path) -> None:
        for layer in volumes.glob("**/layer"):
            if self.driver == "btrfs":
                ioctl.destroy_subvolume(layer)
            else:
                subprocess.run(["umount", layer], check=True)
                layer.rmdir()


@pytest.fixture(params=[Obstacle("btrfs", "subvolume delete"), Obstacle("directory", "umount")])
def obstacle(request: pytest.FixtureRequest) -> Obstacle:
    return request.param


@pytest.fixture
async def nodes(
    obstacle: Obstacle, btrfs_nodes: Nodes, directory_nodes: Nodes
) -> AsyncIterator[Nodes]:
    nodes = btrfs_nodes if obstacle.driver == "btrfs" else directory_nodes
    yield nodes
    obstacle.take_away(volumes_of(nodes))
    await nodes.a.quarantined()
    await nodes.a.delete(OTHER)


def volumes_of(nodes: Nodes) -> Path:
    return nodes.a.data_path(nodes.volume, 1).parent.parent.parent


async def assert_usable(driver: Driver, volume: str) -> None:
    (driver.data_path(volume, 1) / "f").write_text("goes on")
    assert await driver.seal(volume, epoch=1) == Generation(1, 1)
    await driver.unseal(volume, epoch=1)
    assert [tree.epoch for tree in (await driver.inspect(volume)).live] == [1]


async def test_what_cannot_be_removed_keeps_no_other_volume_from_its_use(
    nodes: Nodes, obstacle: Obstacle
) -> None:
    data = await nodes.create()
    await nodes.a.create(OTHER, epoch=1, root=ROOT, size_bytes=None)
    obstacle.put(data)
    for _ in range(2):
        with pytest.raises(StorageError, match=nodes.volume):
            await nodes.a.delete(nodes.volume)
        await nodes.a.open()
        reasons = await nodes.a.quarantined()
        assert set(reasons) == {nodes.volume}
        assert "cannot be removed" in reasons[nodes.volume].message
        assert obstacle.word in reasons[nodes.volume].remedy
        assert await nodes.a.volumes() == (OTHER,)
    await assert_usable(nodes.a, OTHER)
    obstacle.take_away(volumes_of(nodes))
    assert await nodes.a.quarantined() == {}
    assert [path.name for path in volumes_of(nodes).iterdir()] == [OTHER]


async def test_a_volume_that_cannot_be_tidied_is_refused_alone_and_until_it_can(
    nodes: Nodes, obstacle: Obstacle
) -> None:
    data = await nodes.create()
    (data / "f").write_text("precious")
    await nodes.a.create(OTHER, epoch=1, root=ROOT, size_bytes=None)
    obstacle.leave(data.parent.parent)
    await nodes.a.open()
    assert set(await nodes.a.quarantined()) == {nodes.volume}
    assert await nodes.a.volumes() == tuple(sorted((nodes.volume, OTHER)))
    with pytest.raises(StorageError, match="is quarantined") as refusal:
        await nodes.a.inspect(nodes.volume)
    assert obstacle.word in refusal.value.remedy
    with pytest.raises(StorageError, match="is quarantined"):
        await nodes.a.promote(
            nodes.volume, Generation(1, 1), epoch=2, size_bytes=None, on_top=OnTop.NOTHING
        )
    await assert_usable(nodes.a, OTHER)
    obstacle.take_away(volumes_of(nodes))
    await assert_usable(nodes.a, nodes.volume)
    assert await nodes.a.quarantined() == {}


async def test_what_is_no_volume_at_all_keeps_none_from_its_use(nodes: Nodes) -> None:
    await nodes.create()
    stray = volumes_of(nodes) / "v-stray"
    (stray / "live-one").mkdir(parents=True)
    try:
        await nodes.a.open()
        assert nodes.volume in await nodes.a.volumes()
        await assert_usable(nodes.a, nodes.volume)
        assert set(await nodes.a.quarantined()) == {"v-stray"}
    finally:
        (stray / "live-one").rmdir()
        stray.rmdir()
    assert await nodes.a.quarantined() == {}
