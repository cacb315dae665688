"""The contract of :class:`pannier.storage.base.Driver`, on real file systems. Needs root."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from test_driver_kit import (
    ROOT,
    Nodes,
    btrfs_nodes,
    directory_nodes,
    fill_with_difficulties,
    image_nodes,
    pools,
    portrait,
    read_stream,
    workplace,
    write_stream,
)

from pannier.core.errors import Corrupt, InvalidInput, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import CloningDriver, LiveTree, LocalCopy, RollingBackDriver

__all__ = ["btrfs_nodes", "directory_nodes", "image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture(params=["btrfs", "image", "directory"])
def nodes(request: pytest.FixtureRequest) -> Nodes:
    found: Nodes = request.getfixturevalue(f"{request.param}_nodes")
    return found


async def test_an_unknown_volume_is_nothing(nodes: Nodes) -> None:
    assert await nodes.a.inspect(nodes.volume) == LocalCopy()
    assert nodes.volume not in await nodes.a.volumes()
    assert await nodes.a.used_bytes(nodes.volume) == 0


async def test_a_created_tree_is_empty_with_its_owner_and_mode(nodes: Nodes) -> None:
    data = await nodes.create()
    assert os.listdir(data) == []
    found = data.stat()
    assert (found.st_uid, found.st_gid) == (ROOT.uid, ROOT.gid)
    assert stat.S_IMODE(found.st_mode) == ROOT.mode
    assert await nodes.a.inspect(nodes.volume) == LocalCopy(live=(LiveTree(1, sealed=False),))
    assert nodes.volume in await nodes.a.volumes()


async def test_creating_again_keeps_what_is_there(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "precious").write_text("x")
    assert await nodes.create() == data
    assert (data / "precious").read_text() == "x"


@pytest.mark.parametrize("volume", ["", ".", "..", "../x", "a/b", ".hidden"])
async def test_an_id_that_leaves_its_directory_is_refused(nodes: Nodes, volume: str) -> None:
    with pytest.raises(InvalidInput):
        await nodes.a.create(volume, epoch=1, root=ROOT, size_bytes=None)


async def test_generations_count_up_from_one(nodes: Nodes) -> None:
    data = await nodes.create()
    for sequence in (1, 2, 3):
        (data / "f").write_text(str(sequence))
        assert (await nodes.save(nodes.a, epoch=1)).number == (1, sequence)
        await nodes.resume(nodes.a, epoch=1)


async def test_without_a_change_it_is_the_same_generation_again(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    first = await nodes.save(nodes.a, epoch=1)
    await nodes.resume(nodes.a, epoch=1)
    assert await nodes.save(nodes.a, epoch=1) == first
    await nodes.resume(nodes.a, epoch=1)
    (data / "f").write_text("y")
    assert await nodes.save(nodes.a, epoch=1) > first, "a number may be left out"


async def test_a_small_overwrite_in_place_is_a_change(nodes: Nodes) -> None:
    """The size stays, and the time may stay within a tick of the clock."""
    data = await nodes.create()
    with (data / "f").open("wb", buffering=0) as file:
        file.write(b"a" * 8192)
        for sequence in range(1, 5):
            assert (await nodes.save(nodes.a, epoch=1)).number == (1, sequence)
            await nodes.resume(nodes.a, epoch=1)
            os.pwrite(file.fileno(), bytes([sequence]), 4000)


async def test_sealing_twice_gives_the_same_generation(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    assert await nodes.a.seal(nodes.volume, epoch=1) == generation
    found = await nodes.a.inspect(nodes.volume)
    assert found.live == (LiveTree(1, sealed=True),)
    assert found.generations == (generation,)


async def test_unsealing_allows_writes_and_may_be_repeated(nodes: Nodes) -> None:
    data = await nodes.create()
    await nodes.a.unseal(nodes.volume, epoch=1)
    await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.unseal(nodes.volume, epoch=1)
    await nodes.resume(nodes.a, epoch=1)
    (data / "f").write_text("x")
    assert (await nodes.a.inspect(nodes.volume)).live == (LiveTree(1, sealed=False),)
    assert (await nodes.a.seal(nodes.volume, epoch=1)).number == (1, 2)


async def test_a_sealed_tree_becomes_what_a_generation_is(nodes: Nodes) -> None:
    driver = nodes.a
    if not isinstance(driver, RollingBackDriver):
        pytest.skip("this driver does not go back")
    data = await nodes.create()
    (data / "f").write_text("before")
    first = await driver.seal(nodes.volume, epoch=1)
    await nodes.resume(driver, epoch=1)
    (data / "f").write_text("after")
    with pytest.raises(StorageError, match="is not sealed"):
        await driver.roll_back(nodes.volume, first, epoch=1)
    last = await driver.seal(nodes.volume, epoch=1)
    with pytest.raises(Corrupt):
        await driver.roll_back(nodes.volume, Generation(1, 9), epoch=1)
    await driver.roll_back(nodes.volume, first, epoch=1)
    assert (await driver.inspect(nodes.volume)).live == (LiveTree(1, sealed=False),)
    assert ((await nodes.attached(driver, epoch=1)) / "f").read_text() == "before"
    newest = await driver.seal(nodes.volume, epoch=1)
    assert (await driver.inspect(nodes.volume)).generations == (first, last, newest)


async def test_another_volume_begins_with_a_generation(nodes: Nodes) -> None:
    driver = nodes.a
    if not isinstance(driver, CloningDriver):
        pytest.skip("this driver makes no clones")
    data = await nodes.create()
    (data / "f").write_text("before")
    first, base = await driver.seal(nodes.volume, epoch=1), Generation(0, 1, "0f3a94c1")
    await nodes.resume(driver, epoch=1)
    there = replace(nodes, volume=f"{nodes.volume}-clone")
    try:
        with pytest.raises(Corrupt):
            await driver.clone(
                nodes.volume, Generation(1, 9), volume=there.volume, base=base, unborn=True
            )
        for _ in range(2):
            await driver.clone(nodes.volume, first, volume=there.volume, base=base, unborn=True)
        assert await driver.unborn() == {there.volume}
        await driver.promote(there.volume, base, epoch=1, size_bytes=None, on_top=OnTop.NOTHING)
        assert await driver.snapshot(there.volume, epoch=1) == base
        await driver.born(there.volume)
        assert await driver.unborn() == frozenset()
        copy = await there.attached(driver, epoch=1)
        (data / "f").write_text("after")
        assert (copy / "f").read_text() == "before"
    finally:
        await driver.delete(there.volume)


async def test_what_has_no_live_tree_cannot_be_sealed(nodes: Nodes) -> None:
    with pytest.raises(StorageError, match="no live tree"):
        await nodes.a.seal(nodes.volume, epoch=1)
    with pytest.raises(StorageError):
        await nodes.a.snapshot(nodes.volume, epoch=1)


async def test_an_unsealed_tree_is_not_dropped(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    with pytest.raises(StorageError, match="seal it first"):
        await nodes.a.drop_live(nodes.volume, epoch=1)
    assert (data / "f").read_text() == "x"


async def test_a_dropped_tree_leaves_its_generation(nodes: Nodes) -> None:
    await nodes.create()
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.drop_live(nodes.volume, epoch=1)
    await nodes.a.drop_live(nodes.volume, epoch=1)
    found = await nodes.a.inspect(nodes.volume)
    assert (found.live, found.generations) == ((), (generation,))


async def test_a_whole_transfer_keeps_everything(nodes: Nodes) -> None:
    data = await nodes.create()
    fill_with_difficulties(data)
    before = portrait(data)
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    sent = await nodes.transfer(nodes.a, nodes.b, generation)
    assert sent < 16 << 20, "holes must not travel"
    assert (await nodes.b.inspect(nodes.volume)).generations == (generation,)
    await nodes.b.promote(
        nodes.volume, generation, epoch=2, size_bytes=200 << 20, on_top=OnTop.NOTHING
    )
    there = await nodes.attached(nodes.b, epoch=2)
    assert portrait(there) == before
    assert (there / "sparse").stat().st_blocks * 512 < 1 << 20


async def test_a_difference_brings_over_every_kind_of_change(nodes: Nodes) -> None:
    data = await nodes.create()
    fill_with_difficulties(data)
    (data / "gone-dir" / "below").mkdir(parents=True)
    (data / "gone-dir" / "below" / "f").write_text("x")
    (data / "becomes-dir").write_text("file")
    (data / "becomes-file").mkdir()
    (data / "becomes-file" / "f").touch()
    first = await nodes.save(nodes.a, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.resume(nodes.a, epoch=1)
    change_every_way(data)
    before = portrait(data)
    second = await nodes.a.seal(nodes.volume, epoch=1)
    sent = await nodes.transfer(nodes.a, nodes.b, second, first)
    assert sent < 1 << 20, "the unchanged 3 MiB file must not travel"
    await nodes.b.promote(nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(await nodes.attached(nodes.b, epoch=2)) == before


def change_every_way(data: Path) -> None:
    shutil.rmtree(data / "gone-dir")
    (data / "becomes-dir").unlink()
    (data / "becomes-dir").mkdir()
    (data / "becomes-dir" / "f").write_text("now")
    shutil.rmtree(data / "becomes-file")
    (data / "becomes-file").write_text("now")
    (data / "dir").rename(data / "renamed")
    (data / "hard-1").unlink()
    os.link(data / "hard-3", data / "hard-4")
    (data / "setuid").chmod(0o4711)
    os.setxattr(data / "setuid", "user.more", b"1")
    os.removexattr(data / "plain.txt", "user.note")
    os.chown(data / "empty", 1, 2)
    (data / "symlink").unlink()
    (data / "symlink").symlink_to("elsewhere")
    (data / "fifo").unlink()
    with (data / "sparse").open("r+b") as file:
        file.seek(8 << 20)
        file.write(b"more")
        file.truncate(24 << 20)
    data.chmod(0o700)


async def test_promoting_again_keeps_what_was_written_since(nodes: Nodes) -> None:
    await nodes.create()
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    ((await nodes.attached(nodes.b, epoch=2)) / "new").write_text("x")
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert ((await nodes.attached(nodes.b, epoch=2)) / "new").read_text() == "x"
    live = (await nodes.b.inspect(nodes.volume)).live
    assert live == (LiveTree(2, sealed=False),)


async def test_a_promoted_tree_without_a_change_is_still_its_generation(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert await nodes.b.seal(nodes.volume, epoch=2) == generation


async def test_a_holder_may_take_its_own_sealed_tree_up_again(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    again = await nodes.attached(nodes.a, epoch=2)
    (again / "f").write_text("y")
    assert LiveTree(2, sealed=False) in (await nodes.a.inspect(nodes.volume)).live


async def test_what_is_not_here_cannot_be_promoted_or_sent(nodes: Nodes) -> None:
    await nodes.create()
    missing = Generation(1, 9)
    with pytest.raises(Corrupt, match="not here"):
        await nodes.a.promote(nodes.volume, missing, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    with pytest.raises(StorageError, match="not here"):
        async with nodes.a.send(nodes.volume, missing, base=None):
            pass


async def test_a_volume_moves_there_and_back_and_on(nodes: Nodes) -> None:
    """A to B, back to A as a difference, and A relays to C what B has written."""
    data = await nodes.create()
    fill_with_difficulties(data)
    first = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.a.drop_live(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.c, first)

    await nodes.b.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    at_b = await nodes.attached(nodes.b, epoch=2)
    (at_b / "from-b").write_text("b")
    (at_b / "empty").unlink()
    before = portrait(at_b)
    second = await nodes.b.seal(nodes.volume, epoch=2)
    assert second.number == (2, 1)
    assert await nodes.transfer(nodes.b, nodes.a, second, first) < 1 << 20
    assert await nodes.transfer(nodes.a, nodes.c, second, first) < 1 << 20

    for driver, epoch in ((nodes.a, 3), (nodes.c, 4)):
        await driver.promote(
            nodes.volume, second, epoch=epoch, size_bytes=None, on_top=OnTop.NOTHING
        )
        assert portrait(await nodes.attached(driver, epoch=epoch)) == before


async def test_the_difference_can_be_sent_after_the_base_became_the_live_tree(nodes: Nodes) -> None:
    await nodes.create()
    first = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.b.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    found = await nodes.b.inspect(nodes.volume)
    assert first in found.generations + found.bases


@pytest.mark.parametrize("cut", [1, 10, 13, 500, -1, -100])
async def test_a_stream_cut_short_leaves_nothing(nodes: Nodes, cut: int) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(5000))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, generation)
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, generation, stream[:-cut])
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()
    await write_stream(nodes.b, nodes.volume, generation, stream)
    assert (await nodes.b.inspect(nodes.volume)).generations == (generation,)


async def test_a_flipped_bit_anywhere_is_found(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(3000))
    (data / "g").symlink_to("f")
    before = portrait(data)
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, generation)
    for position in random.Random(7).sample(range(len(stream)), 12):
        broken = bytearray(stream)
        broken[position] ^= 1 << (position % 8)
        with pytest.raises(Corrupt):
            await write_stream(nodes.b, nodes.volume, generation, bytes(broken))
        assert await nodes.b.inspect(nodes.volume) == LocalCopy()
    await write_stream(nodes.b, nodes.volume, generation, stream)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(await nodes.attached(nodes.b, epoch=2)) == before


@pytest.mark.parametrize("garbage", [b"", b"x", b"hello world" * 100000])
async def test_garbage_is_not_a_stream(nodes: Nodes, garbage: bytes) -> None:
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, Generation(1, 1), garbage)
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()


async def test_a_difference_to_another_base_is_refused(nodes: Nodes) -> None:
    data = await nodes.create()
    generations = []
    for text in ("one", "two", "three"):
        (data / "f").write_text(text)
        generations.append(await nodes.a.seal(nodes.volume, epoch=1))
        await nodes.transfer(
            nodes.a, nodes.b, generations[-1], generations[-2] if generations[1:] else None
        )
        await nodes.resume(nodes.a, epoch=1)
    (data / "f").write_text("four")
    fourth = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, fourth, generations[1])
    before = await nodes.b.inspect(nodes.volume)
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, fourth, stream, generations[2])
    assert (await nodes.b.inspect(nodes.volume)).generations == before.generations
    whole = await read_stream(nodes.a, nodes.volume, fourth)
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, fourth, whole, generations[2])


async def test_receiving_again_swallows_the_stream(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(4 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, generation)
    for _ in range(2):
        await write_stream(nodes.b, nodes.volume, generation, stream)
    assert (await nodes.b.inspect(nodes.volume)).generations == (generation,)


async def test_an_error_in_the_middle_of_receiving_leaves_nothing(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(4 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, generation)

    async def break_off() -> None:
        async with nodes.b.receive(nodes.volume, generation, base=None) as fd:
            os.write(fd, stream[:60_000])
            raise ConnectionAbortedError("the peer went away")

    with pytest.raises(ConnectionAbortedError, match="the peer went away"):
        await break_off()
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()
    await write_stream(nodes.b, nodes.volume, generation, stream)


async def test_a_lost_connection_after_the_last_byte_is_still_an_error(nodes: Nodes) -> None:
    """Also where it looks like a broken pipe: the caller's own connection, not the driver's."""
    await nodes.create()
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, generation)

    async def lose_the_peer() -> None:
        async with nodes.b.receive(nodes.volume, generation, base=None) as fd:
            os.write(fd, stream)
            raise ConnectionResetError("the peer's acknowledgement")

    with pytest.raises(ConnectionResetError):
        await lose_the_peer()
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()


async def test_cancelling_stops_both_ends(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(8 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    started = asyncio.Event()

    async def move() -> None:
        async with (
            nodes.a.send(nodes.volume, generation, base=None) as source,
            nodes.b.receive(nodes.volume, generation, base=None) as target,
        ):
            os.write(target, os.read(source, 60_000))
            started.set()
            await asyncio.Event().wait()

    moving = asyncio.create_task(move())
    await started.wait()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()
    await nodes.transfer(nodes.a, nodes.b, generation)


async def test_a_reader_that_stops_early_hears_of_it(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(8 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    with pytest.raises(StorageError):
        async with nodes.a.send(nodes.volume, generation, base=None) as fd:
            os.read(fd, 1000)


async def test_a_broken_transfer_leaves_the_base_whole(nodes: Nodes) -> None:
    data = await nodes.create()
    fill_with_difficulties(data)
    first = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.resume(nodes.a, epoch=1)
    before = portrait(data)
    (data / "big").write_bytes(os.urandom(1 << 20))
    second = await nodes.a.seal(nodes.volume, epoch=1)
    stream = await read_stream(nodes.a, nodes.volume, second, first)
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, second, stream[:-9], first)
    await nodes.b.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(await nodes.attached(nodes.b, epoch=2)) == before


async def test_writing_to_a_promoted_tree_changes_no_generation(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "same").write_bytes(b"a" * 100_000)
    first = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    await nodes.resume(nodes.a, epoch=1)
    (data / "new").write_text("x")
    second = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, second, first)
    await nodes.b.promote(nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    with ((await nodes.attached(nodes.b, epoch=2)) / "same").open("r+b") as file:
        file.write(b"overwritten in place")
    for generation in (await nodes.b.inspect(nodes.volume)).generations:
        await nodes.transfer(nodes.b, nodes.c, generation)
        await nodes.c.promote(
            nodes.volume, generation, epoch=5, size_bytes=None, on_top=OnTop.NOTHING
        )
        assert ((await nodes.attached(nodes.c, epoch=5)) / "same").read_bytes() == b"a" * 100_000
        await nodes.c.delete(nodes.volume)


async def test_a_stray_and_the_new_history_lie_side_by_side(nodes: Nodes) -> None:
    """After a takeover the former holder has writes that nobody else has: they stay."""
    data = await nodes.create()
    (data / "f").write_text("common")
    common = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, common)
    await nodes.resume(nodes.a, epoch=1)
    await nodes.b.promote(nodes.volume, common, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    ((await nodes.attached(nodes.b, epoch=2)) / "f").write_text("new history")
    new = await nodes.b.seal(nodes.volume, epoch=2)
    (data / "f").write_text("stray")
    stray = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.drop_live(nodes.volume, epoch=1)
    base = common if common in (await nodes.a.inspect(nodes.volume)).generations else None
    await nodes.transfer(nodes.b, nodes.a, new, base)
    assert {stray, new} <= set((await nodes.a.inspect(nodes.volume)).generations)
    await nodes.a.promote(nodes.volume, stray, epoch=9, size_bytes=None, on_top=OnTop.NOTHING)
    assert ((await nodes.attached(nodes.a, epoch=9)) / "f").read_text() == "stray"


async def test_deleting_a_generation_and_never_giving_its_number_again(nodes: Nodes) -> None:
    data = await nodes.create()
    for text in "abc":
        (data / "f").write_text(text)
        last = await nodes.a.seal(nodes.volume, epoch=1)
        await nodes.resume(nodes.a, epoch=1)
    for generation in (await nodes.a.inspect(nodes.volume)).generations:
        await nodes.a.delete_generation(nodes.volume, generation)
        await nodes.a.delete_generation(nodes.volume, generation)
    assert (await nodes.a.inspect(nodes.volume)).generations == ()
    await nodes.a.open()
    (data / "f").write_text("d")
    assert (await nodes.a.seal(nodes.volume, epoch=1)).number == (1, last.sequence + 1)


async def test_a_deleted_generation_can_come_back(nodes: Nodes) -> None:
    await nodes.create()
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    for _ in range(2):
        await nodes.transfer(nodes.a, nodes.b, generation)
        assert (await nodes.b.inspect(nodes.volume)).generations == (generation,)
        await nodes.b.delete_generation(nodes.volume, generation)


async def test_a_deleted_volume_is_gone_for_ever(nodes: Nodes) -> None:
    data = await nodes.create()
    fill_with_difficulties(data)
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    for driver in (nodes.a, nodes.b):
        await driver.delete(nodes.volume)
        await driver.delete(nodes.volume)
        assert await driver.inspect(nodes.volume) == LocalCopy()
        assert nodes.volume not in await driver.volumes()
    data = await nodes.create()
    assert os.listdir(data) == []


async def test_opening_again_changes_nothing(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_text("x")
    await nodes.save(nodes.a, epoch=1)
    before = await nodes.a.inspect(nodes.volume), portrait(data)
    await nodes.a.open()
    assert (await nodes.a.inspect(nodes.volume), portrait(data)) == before


async def test_sizes_are_told(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(20 << 20))
    await nodes.a.seal(nodes.volume, epoch=1)
    assert 19 << 20 < await nodes.a.used_bytes(nodes.volume) < 24 << 20
    found = await nodes.a.capacity()
    assert 0 < found.free_bytes < found.total_bytes


async def test_a_sound_disk_has_not_failed(nodes: Nodes) -> None:
    await nodes.create()
    for by_writing in (False, True, True):
        await nodes.a.check_disk(by_writing=by_writing)
    assert await nodes.a.volumes() == (nodes.volume,)


async def test_what_the_disk_completes_is_counted(nodes: Nodes) -> None:
    """Where anybody counts it: no block device need be under a directory."""
    before = nodes.a.writes_done()
    await nodes.a.check_disk(by_writing=True)
    after = nodes.a.writes_done()
    if before is None or after is None:
        assert nodes.a.name == "directory"
    else:
        assert before < after


async def test_a_received_volume_counts_what_it_takes(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(20 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    assert 19 << 20 < await nodes.b.used_bytes(nodes.volume) < 24 << 20


async def test_paths_longer_than_the_kernel_takes_at_once(nodes: Nodes) -> None:
    data = await nodes.create()
    fd = os.open(data, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    if nodes.a.name == "btrfs":  # btrfs receive gives up at PATH_MAX, and says so
        with pytest.raises(StorageError):
            await nodes.transfer(nodes.a, nodes.b, generation)
    else:
        await nodes.transfer(nodes.a, nodes.b, generation)
        assert (await nodes.b.inspect(nodes.volume)).generations == (generation,)
