"""What the btrfs driver does when its disk does not give back what was written. Needs root."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_driver_kit import Nodes, btrfs_nodes, overwrite, pools, portrait, workplace

from pannier.core.errors import Corrupt, StorageError, Unreadable
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import CheckedDriver, LocalCopy
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.layout import Home

__all__ = ["btrfs_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture
def nodes(btrfs_nodes: Nodes) -> Nodes:
    return btrfs_nodes


@pytest.fixture
def here(nodes: Nodes) -> BtrfsDriver:
    assert isinstance(nodes.b, BtrfsDriver)
    assert isinstance(nodes.b, CheckedDriver)
    return nodes.b


@pytest.fixture
def home(nodes: Nodes, here: BtrfsDriver) -> Home:
    return here._home(nodes.volume)


async def copied(nodes: Nodes, content: bytes) -> Generation:
    """A generation on both nodes: a large file, one within the metadata, and what cannot be read."""
    data = await nodes.create()
    (data / "folder").mkdir()
    (data / "folder" / "large").write_bytes(content)
    (data / "small").write_text("small")
    (data / "link").symlink_to("nowhere")
    os.mkfifo(data / "pipe")
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    return generation


async def test_a_whole_generation_is_verified(nodes: Nodes, here: BtrfsDriver) -> None:
    generation = await copied(nodes, os.urandom(3 << 20))
    await here.verify(nodes.volume, generation)
    assert await here.inspect(nodes.volume) == LocalCopy(generations=(generation,))
    assert os.listdir(here.data_path(nodes.volume, 1).parents[1] / "incoming") == []


async def test_a_damaged_file_is_named(nodes: Nodes, here: BtrfsDriver) -> None:
    content = os.urandom(1 << 20)
    generation = await copied(nodes, content)
    overwrite(here, content[8192:12288])
    with pytest.raises(Corrupt, match="folder/large"):
        await here.verify(nodes.volume, generation)
    await nodes.a.verify(nodes.volume, generation)  # type: ignore[attr-defined]


async def test_what_the_holder_cannot_read_is_told_as_its_own_trouble(
    nodes: Nodes, here: BtrfsDriver
) -> None:
    content = os.urandom(1 << 20)
    await copied(nodes, content)
    (nodes.a.data_path(nodes.volume, 1) / "small").write_text("changed")
    base, later = Generation(1, 1), await nodes.a.snapshot(nodes.volume, epoch=1)
    assert isinstance(nodes.a, BtrfsDriver)
    overwrite(nodes.a, content[8192:12288])
    with pytest.raises(Unreadable):
        await nodes.transfer(nodes.a, here, later)
    await nodes.transfer(nodes.a, here, later, base)
    assert later in (await here.inspect(nodes.volume)).generations, "it is not in the difference"


async def test_a_generation_may_be_deleted_while_it_is_verified(
    nodes: Nodes, here: BtrfsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pannier.storage.slow_reading.BYTES_PER_SECOND", 10 << 20)
    generation = await copied(nodes, os.urandom(5 << 20))
    verifying = asyncio.create_task(here.verify(nodes.volume, generation))
    await asyncio.sleep(0.2)
    await here.delete_generation(nodes.volume, generation)
    assert not verifying.done()
    await verifying


async def test_one_that_is_not_here_is_no_damage(nodes: Nodes, here: BtrfsDriver) -> None:
    await copied(nodes, b"content")
    with pytest.raises(StorageError) as error:
        await here.verify(nodes.volume, Generation(1, 99))
    assert not isinstance(error.value, Corrupt)


async def test_what_is_set_aside_does_not_count_and_can_come_anew(
    nodes: Nodes, here: BtrfsDriver
) -> None:
    content = os.urandom(1 << 20)
    generation = await copied(nodes, content)
    overwrite(here, content[:4096])
    for _ in range(2):  # repeated, and damaged again
        await here.quarantine(nodes.volume)
        assert (await here.inspect(nodes.volume)).generations == ()
        await nodes.transfer(nodes.a, nodes.b, generation)
        await here.verify(nodes.volume, generation)
    await here.drop_quarantined(nodes.volume)
    await here.drop_quarantined(nodes.volume)
    await here.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    data = here.data_path(nodes.volume, 2)
    assert portrait(data) == portrait(nodes.a.data_path(nodes.volume, 1))


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["small", "large"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_comes_meanwhile_on_top_of_damage_does_not_count_either(
    nodes: Nodes, home: Home, monkeypatch: pytest.MonkeyPatch, size: int, when: str
) -> None:
    """Quarantine begins right before and right after a received generation gets its name."""
    base = await copied(nodes, b"content")
    (nodes.a.data_path(nodes.volume, 1) / "more").write_bytes(os.urandom(size))
    following = await nodes.a.snapshot(nodes.volume, epoch=1)
    place = home.tree(following).parent
    named: list[str] = []

    def around(naming: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(first: Path, *rest: Any, **options: Any) -> Any:
            if place not in (options.get("target", Path()).parent, *rest):
                return naming(first, *rest, **options)
            named.append(str(place))
            if when == "before":
                home.quarantine()
            result = naming(first, *rest, **options)
            if when == "after":
                home.quarantine()
            return result

        return wrapped

    monkeypatch.setattr(ioctl, "create_snapshot", around(ioctl.create_snapshot))
    monkeypatch.setattr(Path, "rename", around(Path.rename))
    with pytest.raises(StorageError):
        await nodes.transfer(nodes.a, nodes.b, following, base)
    assert named
    assert home.generations() == ()
    monkeypatch.undo()
    await nodes.transfer(nodes.a, nodes.b, following)
    assert home.generations() == (following,)


async def test_power_fails_while_generations_are_set_aside(
    nodes: Nodes, here: BtrfsDriver, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is there until all are gone: so somebody sees that it is not done."""
    base = await copied(nodes, b"content")
    (nodes.a.data_path(nodes.volume, 1) / "more").write_text("more")
    following = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, following, base)
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        if source == home.tree(following).parent:
            raise OSError("power")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match="power"):
        await here.quarantine(nodes.volume)
    assert home.generations() == (following,)
    monkeypatch.undo()
    await here.quarantine(nodes.volume)
    assert home.generations() == ()
    await nodes.transfer(nodes.a, nodes.b, following)
    assert home.make_generation(home.tree(following), epoch=1, identity="") > following


async def test_devices_and_pipes_of_a_container_are_not_opened(
    nodes: Nodes, here: BtrfsDriver
) -> None:
    data = await nodes.create()
    null = os.stat("/dev/null").st_rdev
    os.mknod(data / "absent", 0o666 | stat.S_IFCHR, os.makedev(os.major(null), 250))
    os.mkfifo(data / "pipe")
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await here.verify(nodes.volume, generation)


async def test_a_live_tree_is_verified_as_it_is_now(nodes: Nodes, here: BtrfsDriver) -> None:
    content = os.urandom(1 << 20)
    generation = await copied(nodes, b"content")
    await here.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    (here.data_path(nodes.volume, 2) / "written").write_bytes(content)
    await here.verify(nodes.volume, None)
    overwrite(here, content[:4096])
    with pytest.raises(Corrupt, match="written"):
        await here.verify(nodes.volume, None)


async def test_what_was_set_aside_goes_with_the_volume(nodes: Nodes, here: BtrfsDriver) -> None:
    await copied(nodes, b"content")
    await here.quarantine(nodes.volume)
    await here.delete(nodes.volume)
    assert nodes.volume not in await here.volumes()
    assert not here.data_path(nodes.volume, 1).parents[1].exists()
