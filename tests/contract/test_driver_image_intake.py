"""A generation of an image is taken in as a whole or not at all, and the next one on top of what is there already."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_driver_kit import Nodes, image_nodes, pools, read_stream, workplace, write_stream

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import LocalCopy
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import intake, nocow, partial
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.extents import difference, extents, unshared
from pannier.storage.image.identity import identity_of, last_change_of
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.written import written_image

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


@pytest.fixture
def holder(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    return nodes.a


@pytest.fixture
def copy(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.b, ImageDriver)
    return nodes.b


async def written(nodes: Nodes, *, name: str = "file", blocks: int = 5) -> Generation:
    """The generation after a file was written."""
    with (nodes.a.data_path(nodes.volume, 1) / name).open("wb", buffering=0) as file:
        file.write(os.urandom(blocks * BLOCK_BYTES))
        os.fsync(file.fileno())
    return await nodes.a.snapshot(nodes.volume, epoch=1)


async def same(nodes: Nodes, one: ImageDriver, other: ImageDriver, generation: Generation) -> bool:
    """Whether both have the same bytes under the same identity, and the second the sum of each."""
    mine, theirs = [await each.verify(nodes.volume, generation) for each in (one, other)]
    assert theirs.proved
    trees = [each._home(nodes.volume).tree(generation) for each in (one, other)]
    assert ioctl.is_read_only(trees[1])
    assert identity_of(trees[0]) == identity_of(trees[1])
    return mine.digest == theirs.digest


def workbench(driver: ImageDriver, volume: str) -> Path:
    return driver._home(volume).workbench


@pytest.fixture
async def young(nodes: Nodes, workplace: Path) -> AsyncIterator[Nodes]:
    """Node b has a pool of its own, of which copies are quickly made."""
    mountpoint = workplace / "young"
    await create_pool(workplace / "young.img", mountpoint=mountpoint, size_bytes=256 << 20)
    driver = ImageDriver(mountpoint, staging=workplace / "staging-young")
    await driver.open()
    yield replace(nodes, b=driver)
    await driver.close()
    assert await close_pool(mountpoint)
    (workplace / "young.img").unlink()


STEPS = ("create_snapshot", "create_subvolume", "destroy_subvolume")


@pytest.mark.parametrize("warm", [True, False])
async def test_power_that_fails_at_any_step_leaves_all_or_nothing(
    young: Nodes,
    holder: ImageDriver,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: bool,
) -> None:
    """The image of the pool as it is before and after each step, without what only memory has.

    Args:
        warm: the workbench is still there from the generation before.
    """
    nodes, volume, disk = young, young.volume, workplace / "young.img"
    assert isinstance(nodes.b, ImageDriver)
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, nodes.b, first)
    second = await written(nodes)
    stream = await read_stream(holder, volume, second, first)
    if not warm:
        await nodes.b.close()
        await nodes.b.open()
    assert workbench(nodes.b, volume).exists() == warm
    cuts: list[Path] = []

    def cut() -> None:
        cuts.append(workplace / f"step-{len(cuts)}.img")
        subprocess.run(["cp", "--sparse=always", disk, cuts[-1]], check=True)

    for step in STEPS:
        _cut_around(monkeypatch, ioctl, step, cut)
    for step in ("drop_note", "mark"):
        _cut_around(monkeypatch, intake, step, cut)
    await write_stream(nodes.b, volume, second, stream, first)
    cut()
    monkeypatch.undo()
    found = []
    for each in cuts:
        after = ImageDriver(workplace / "after", staging=workplace / "staging-after", source=each)
        await after.open()
        try:
            assert os.listdir(after._home(volume).path / "incoming") == []
            copy = await after.inspect(volume)
            found.append(second in copy.generations)
            assert copy.begun is None
            assert first in copy.generations
            for generation in copy.generations:
                assert await same(nodes, holder, after, generation)
        finally:
            await after.close()
            assert await close_pool(workplace / "after")
            each.unlink()
    assert found == sorted(found), "it was there and then not any more"
    assert found[0] is False
    assert found[-1] is True


def _cut_around(patch: pytest.MonkeyPatch, module: Any, step: str, cut: Callable[[], None]) -> None:
    real = getattr(module, step)

    def cutting(*args: object, **kwargs: object) -> object:
        cut()
        result = real(*args, **kwargs)
        cut()
        return result

    patch.setattr(module, step, cutting)


async def test_a_difference_is_applied_to_the_workbench_and_named_by_one_snapshot(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.create()
    generations = [await written(nodes)]
    await nodes.transfer(holder, copy, generations[0])
    commits: list[str] = []
    for step in ("create_snapshot", "set_received", "set_read_only", "sync_filesystem"):
        _cut_around(monkeypatch, ioctl, step, lambda step=step: commits.append(step))  # type: ignore[misc]
    for _ in range(3):
        generations.append(await written(nodes))
        stream = await read_stream(holder, nodes.volume, *reversed(generations[-2:]))
        commits.clear()
        await write_stream(copy, nodes.volume, generations[-1], stream, generations[-2])
        assert set(commits) == {"create_snapshot"}
        assert len(commits) == 2  # before it and after it
    monkeypatch.undo()
    for generation in generations:
        assert await same(nodes, holder, copy, generation)


async def test_a_workbench_that_somebody_changed_is_not_used(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, copy, first)
    with (workbench(copy, nodes.volume) / IMAGE).open("r+b") as image:
        image.write(b"wrong")
        os.fsync(image.fileno())
    second = await written(nodes)
    await nodes.transfer(holder, copy, second, first)
    assert await same(nodes, holder, copy, second)


async def test_a_difference_to_an_older_generation_is_not_applied_to_the_workbench(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    await nodes.create()
    first, second = await written(nodes), await written(nodes, name="other")
    await nodes.transfer(holder, copy, first)
    await nodes.transfer(holder, copy, second, first)
    third = await written(nodes)
    await nodes.transfer(holder, copy, third, first)
    assert await same(nodes, holder, copy, third)


async def test_a_generation_that_an_earlier_version_received_is_a_base(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    """That one has its identity from the kernel, in a subvolume that is no snapshot of a workbench."""
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, copy, first)
    home = copy._home(nodes.volume)
    tree, work = home.tree(first), workbench(copy, nodes.volume)
    identity = identity_of(tree)
    ioctl.destroy_subvolume(tree)
    ioctl.set_received(work, uuid=identity, ctransid=0)
    ioctl.set_read_only(work, read_only=True)
    tree.parent.rmdir()
    work.parent.rename(tree.parent)
    assert identity_of(tree) == identity
    second = await written(nodes)
    await nodes.transfer(holder, copy, second, first)
    assert await same(nodes, holder, copy, second)


async def test_what_is_made_of_a_received_generation_has_an_identity_of_its_own(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, copy, first)
    await copy.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert not workbench(copy, nodes.volume).exists()
    (await nodes.attached(copy, epoch=2) / "new").write_bytes(b"new")
    second = await copy.snapshot(nodes.volume, epoch=2)
    home = copy._home(nodes.volume)
    assert identity_of(home.tree(second)) == ioctl.subvolume_info(home.tree(second)).uuid
    await nodes.transfer(copy, holder, second, first)
    assert (await holder.verify(nodes.volume, second)).digest == (
        await copy.verify(nodes.volume, second)
    ).digest


async def test_no_workbench_remains_without_its_generation(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    await nodes.create()
    first = await written(nodes)
    for _ in range(2):
        await nodes.transfer(holder, copy, first)
        assert workbench(copy, nodes.volume).exists()
        await copy.delete_generation(nodes.volume, first)
        assert not workbench(copy, nodes.volume).exists()


async def test_what_the_disk_refused_gets_no_name(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, copy, first)
    second = await written(nodes)

    def refuses(_tree: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(intake, "_check_written", refuses)
        with pytest.raises(StorageError):
            await nodes.transfer(holder, copy, second, first)
    assert (await copy.inspect(nodes.volume)).generations == (first,)
    assert os.listdir(copy._home(nodes.volume).path / "incoming") == []
    await nodes.transfer(holder, copy, second, first)
    assert await same(nodes, holder, copy, second)


async def test_a_note_that_the_disk_refuses_ends_the_transfer(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made in a thread of its own; what that was told must not be lost."""
    await nodes.create()
    first = await written(nodes, blocks=1024)

    def refuses(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(partial, "EACH_BYTES", 1 << 20)
        patch.setattr(partial, "write_file", refuses)
        with pytest.raises(StorageError):
            await nodes.transfer(holder, copy, first)
    assert (await copy.inspect(nodes.volume)).generations == ()
    assert os.listdir(copy._home(nodes.volume).path / "incoming") == []


async def test_what_both_generations_have_need_not_be_compared(
    nodes: Nodes, holder: ImageDriver
) -> None:
    await nodes.create()
    data = nodes.a.data_path(nodes.volume, 1) / "file"
    generations = [await written(nodes, blocks=2000)]
    for step in range(3):
        with data.open("r+b", buffering=0) as file:
            for at in range(step, 2000, 97):
                os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), at * BLOCK_BYTES)
            os.truncate(data, (1990 - step) * BLOCK_BYTES)
            os.fsync(file.fileno())
        generations.append(await nodes.a.snapshot(nodes.volume, epoch=1))
    trees = [holder._home(nodes.volume).tree(each) for each in generations]
    files = [os.open(tree / IMAGE, os.O_RDONLY) for tree in trees]
    try:
        size = os.fstat(files[0]).st_size
        for base, newer in itertools.permutations(range(len(files)), 2):
            made = last_change_of(trees[base])
            every = extents(files[newer]), extents(files[base])
            few = unshared(files[newer], files[base], made=made)
            assert sum(map(len, few)) < sum(map(len, every))
            assert difference(few[0], size, few[1], made=made) == difference(
                every[0], size, every[1], made=made
            )
    finally:
        for each in files:
            os.close(each)


def test_long_and_short_pieces_are_written_side_by_side(pools: list[Path]) -> None:
    """Through the page cache and past it, next to each other, and one over the other."""
    tree = pools[0] / "pieces"
    tree.mkdir()
    try:
        nocow.make_empty(tree / IMAGE)
        wanted = bytearray(8 << 20)
        sizes = [4096, 128 << 10, 4096, 1 << 20, 64 << 10, 512, 300 << 10, 1 << 20, 100 << 10]
        with written_image(tree) as image:
            os.ftruncate(image.fd, len(wanted))
            for shift in (0, 4096, 100):
                at = shift
                for size in sizes:
                    content = os.urandom(size)
                    image.write(at, memoryview(content))
                    wanted[at : at + size] = content
                    at += size
            os.fsync(image.fd)
        assert (tree / IMAGE).read_bytes() == wanted
    finally:
        (tree / IMAGE).unlink()
        tree.rmdir()


async def test_a_copy_that_was_set_apart_is_received_anew_as_a_whole(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    await nodes.create()
    first = await written(nodes)
    await nodes.transfer(holder, copy, first)
    await nodes.transfer(holder, copy, second := await written(nodes), first)
    layer = copy._home(nodes.volume).path / "incoming" / "9.9" / "tree" / "layer"
    layer.parent.parent.mkdir()
    ioctl.create_subvolume(layer.parent)
    ioctl.create_subvolume(layer)
    await copy.open()
    with pytest.raises(StorageError, match="is quarantined"):
        await nodes.transfer(holder, copy, second)
    place = await copy.set_apart(nodes.volume)
    try:
        assert await copy.inspect(nodes.volume) == LocalCopy()
        await nodes.transfer(holder, copy, second)
        assert await same(nodes, holder, copy, second)
        assert ioctl.is_read_only(place / "generations" / str(first) / "tree")
    finally:
        for tree in (place / "incoming/9.9/tree/layer", *place.glob("*/*/tree")):
            ioctl.destroy_subvolume(tree)
        ioctl.destroy_subvolume(place)
