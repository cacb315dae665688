"""A block that a disk changed is put right in every generation that was received with it, and in no other."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_driver_kit import Nodes, image_nodes, overwrite, pools, read_stream, workplace

from pannier.core.errors import Corrupt, StorageError, Unreadable
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.host.files import exchange
from pannier.storage.blocks import BLOCK_BYTES, MendingDriver
from pannier.storage.btrfs import ioctl
from pannier.storage.image import check, mending
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.identity import identity_of, last_change_of
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


@pytest.fixture
def holder(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    assert isinstance(nodes.a, MendingDriver)
    return nodes.a


@pytest.fixture
def copy(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.b, ImageDriver)
    return nodes.b


class PowerFails(BaseException):
    """The process is no more."""


def block() -> bytes:
    """Some bytes that are nowhere else."""
    return os.urandom(BLOCK_BYTES)


async def written(nodes: Nodes, data: Path, content: bytes, name: str = "file") -> Generation:
    """The generation after a file was written."""
    with (data / name).open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    return await nodes.a.snapshot(nodes.volume, epoch=1)


async def two_generations(nodes: Nodes, wanted: bytes) -> tuple[Generation, Generation]:
    """What the copy has: the wanted block came with the first, and the second shares it."""
    data = await nodes.create()
    first = await written(nodes, data, block() + wanted + block())
    await nodes.transfer(nodes.a, nodes.b, first)
    second = await written(nodes, data, block(), "other")
    await nodes.transfer(nodes.a, nodes.b, second, first)
    return first, second


async def mended_from(source: ImageDriver, target: ImageDriver, volume: str, *at: int) -> None:
    """Let ``target`` have what it wants from ``source``."""
    newest = (await target.inspect(volume)).generations[-1]
    sums = await target.wanted(volume, newest, at)
    assert set(sums) == set(at)
    wanted = {start: known for start, known in sums.items() if known is not None}
    await target.mend(volume, await source.find(volume, wanted))


@contextmanager
def unreadable(monkeypatch: pytest.MonkeyPatch, *at: int) -> Iterator[None]:
    """The disk refuses to read these blocks of images, as the kernel tells it: short, or EIO."""
    real_preadv, real_pread = os.preadv, os.pread

    def upto(start: int, length: int) -> int:
        bad = [each for each in at if start <= each < start + length]
        if bad and min(bad) == start:
            raise OSError(errno.EIO, "Input/output error")
        return min(bad) - start if bad else length

    def is_image(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}").endswith(f"/{IMAGE}")

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        length = upto(offset, len(buffers[0])) if is_image(fd) else len(buffers[0])
        return real_preadv(fd, [buffers[0][:length]], offset)

    def pread(fd: int, length: int, offset: int) -> bytes:
        return real_pread(fd, upto(offset, length) if is_image(fd) else length, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", preadv)
        patched.setattr(os, "pread", pread)
        yield


# -- what is found ----------------------------------------------------------------------------------


async def test_every_damaged_block_is_told_and_the_rest_is_read(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    data, blocks = await nodes.create(), [block() for _ in range(600)]
    generation = await written(nodes, data, b"".join(blocks))
    await nodes.transfer(holder, copy, generation)
    for number in (3, 4, 599):
        overwrite(copy, blocks[number])
    found = await copy.verify(nodes.volume, generation)
    assert len(found.damaged) == 3
    first, second, _ = found.damaged
    assert second == first + BLOCK_BYTES
    assert sorted(found.damaged) == list(found.damaged)


async def test_blocks_behind_one_that_cannot_be_read_are_read_as_well(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives what is before a bad block, without an error."""
    data, blocks = await nodes.create(), [block() for _ in range(64)]
    generation = await written(nodes, data, b"".join(blocks))
    await nodes.transfer(holder, copy, generation)
    overwrite(copy, blocks[40])
    (behind,) = (await copy.verify(nodes.volume, generation)).damaged
    bad = behind - 20 * BLOCK_BYTES
    with unreadable(monkeypatch, bad):
        assert (await copy.verify(nodes.volume, generation)).damaged == (bad, behind)
        with pytest.raises(Corrupt):
            await copy.pieces(nodes.volume, generation, start=0, end=None, piece_bytes=1 << 20)
        await mended_from(holder, copy, nodes.volume, bad, behind)
    assert (await copy.verify(nodes.volume, generation)).proved


async def test_what_the_holder_cannot_read_is_told_as_its_own_trouble(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, blocks = await nodes.create(), [block() for _ in range(64)]
    generation = await written(nodes, data, b"".join(blocks))
    await nodes.transfer(holder, copy, generation)
    overwrite(copy, blocks[40])
    (bad,) = (await copy.verify(nodes.volume, generation)).damaged
    later = await written(nodes, data, block())
    with unreadable(monkeypatch, bad):
        with pytest.raises(Unreadable, match=f"block at {bad} cannot be read"):
            await nodes.transfer(holder, nodes.b, later)
        await nodes.transfer(holder, copy, later, generation)
    assert later in (await copy.inspect(nodes.volume)).generations, "it is not in the difference"


async def test_a_read_that_fails_once_is_repeated(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await nodes.create()
    generation = await written(nodes, data, block())
    real, left = os.preadv, [True]

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if left:
            left.clear()
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", preadv)
        await nodes.transfer(holder, copy, generation)
    assert not left
    assert (await copy.verify(nodes.volume, generation)).proved


async def test_a_block_that_cannot_be_read_and_has_no_checksum_is_wanted_in_vain(
    nodes: Nodes, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await nodes.create()
    generation = await written(nodes, data, block())
    with unreadable(monkeypatch, 0):
        assert (await holder.verify(nodes.volume, generation)).damaged == (0,)
        assert await holder.wanted(nodes.volume, generation, [0]) == {0: None}
    assert await holder.wanted(nodes.volume, generation, [0]) == {}


async def test_a_disk_that_lost_more_than_blocks_is_not_mended_block_by_block(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, blocks = await nodes.create(), [block() for _ in range(4)]
    generation = await written(nodes, data, b"".join(blocks))
    await nodes.transfer(holder, copy, generation)
    for each in blocks:
        overwrite(copy, each)
    monkeypatch.setattr(check, "MOST_DAMAGED", 3)
    with pytest.raises(Corrupt, match="more than 3 blocks"):
        await copy.verify(nodes.volume, generation)


async def test_pieces_of_zeros_count_as_holes(
    nodes: Nodes, holder: ImageDriver, copy: ImageDriver
) -> None:
    data = await nodes.create()
    generation = await written(nodes, data, bytes(BLOCK_BYTES) + block())
    await nodes.transfer(holder, copy, generation)
    (digests, others) = [
        {
            piece.start: piece.digest
            for piece in await driver.pieces(
                nodes.volume, generation, start=0, end=None, piece_bytes=BLOCK_BYTES
            )
            if piece.digest
        }
        for driver in (holder, copy)
    ]
    assert digests == others


# -- what is mended ---------------------------------------------------------------------------------


async def test_a_block_is_mended_in_every_generation_that_has_it(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    wanted = block()
    generations = await two_generations(nodes, wanted)
    digests = [(await holder.verify(nodes.volume, each)).digest for each in generations]
    before = [identity_of(copy._home(nodes.volume).tree(each)) for each in generations]
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, generations[1])).damaged
    await mended_from(holder, copy, nodes.volume, at)
    for each, digest in zip(generations, digests, strict=True):
        found = await copy.verify(nodes.volume, each)
        assert (found.proved, found.digest) == (True, digest)
    home = copy._home(nodes.volume)
    trees = [home.tree(each) for each in generations]
    assert [identity_of(tree) for tree in trees] == before
    assert all(ioctl.is_read_only(tree) for tree in trees)
    assert not home.mended.exists()
    assert (await copy.inspect(nodes.volume)).generations == generations


async def test_what_was_mended_goes_on_as_a_copy_and_as_a_holder(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    overwrite(copy, wanted)
    await mended_from(
        holder, copy, nodes.volume, *(await copy.verify(nodes.volume, second)).damaged
    )
    data = holder.data_path(nodes.volume, 1)
    third = await written(nodes, data, block(), "third")
    await nodes.transfer(holder, copy, third, second)
    assert (await copy.verify(nodes.volume, third)).proved
    await copy.promote(nodes.volume, third, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(copy, epoch=2)
    assert (there / "file").read_bytes()[BLOCK_BYTES : 2 * BLOCK_BYTES] == wanted
    (there / "more").write_bytes(block())
    fourth = await copy.snapshot(nodes.volume, epoch=2)
    assert await nodes.transfer(copy, holder, fourth, third) < 4 << 20
    mine, theirs = [await each.verify(nodes.volume, fourth) for each in (copy, holder)]
    assert mine.digest == theirs.digest


async def test_a_difference_on_top_of_what_was_mended_lacks_nothing(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    """What was mended lies elsewhere, and was written later than the base says: it is sent again."""
    wanted = block()
    first, second = await two_generations(nodes, wanted)
    await nodes.transfer(holder, nodes.c, first)
    tree = copy._home(nodes.volume).tree(first)
    before = last_change_of(tree)
    overwrite(copy, wanted)
    await mended_from(
        holder, copy, nodes.volume, *(await copy.verify(nodes.volume, second)).damaged
    )
    assert last_change_of(tree) == before < ioctl.subvolume_info(tree).ctransid
    await nodes.transfer(copy, nodes.c, second, first)
    assert isinstance(nodes.c, ImageDriver)
    assert (await nodes.c.verify(nodes.volume, second)).digest == (
        await holder.verify(nodes.volume, second)
    ).digest


async def test_a_block_that_was_written_anew_is_left_as_it_is(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    """The damaged generation is gone by the time that the right bytes are there."""
    wanted, newer = block(), block()
    data = await nodes.create()
    first = await written(nodes, data, wanted)
    await nodes.transfer(holder, copy, first)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, first)).damaged
    with (data / "file").open("r+b", buffering=0) as file:
        file.write(newer)
        os.fsync(file.fileno())
    second = await holder.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(holder, copy, second, first)
    await copy.delete_generation(nodes.volume, first)
    assert await copy.wanted(nodes.volume, second, [at]) == {}
    await copy.mend(nodes.volume, {at: wanted})
    found = await copy.verify(nodes.volume, second)
    assert (found.proved, found.digest) == (
        True,
        (await holder.verify(nodes.volume, second)).digest,
    )
    assert (await copy.inspect(nodes.volume)).generations == (second,)


async def test_mending_twice_is_mending_once(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, second)).damaged
    await copy.mend(nodes.volume, {at: wanted})
    tree = copy._home(nodes.volume).tree(second)
    before = ioctl.subvolume_info(tree).uuid
    await copy.mend(nodes.volume, {at: wanted})
    assert ioctl.subvolume_info(tree).uuid == before
    for _ in range(2):  # and it can be damaged again, in both of the places where it lies now
        overwrite(copy, wanted)
    assert (await copy.verify(nodes.volume, second)).damaged == (at,)
    await mended_from(holder, copy, nodes.volume, at)
    assert (await copy.verify(nodes.volume, second)).proved


STEPS = ["create_snapshot", "set_received", "set_read_only", "sync_filesystem", "exchange"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_power_fails_in_the_midst(
    nodes: Nodes,
    copy: ImageDriver,
    holder: ImageDriver,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: bool,
) -> None:
    """Whenever: every generation counts, is read-only, and is as it was or mended; the next try finishes it."""
    wanted = block()
    generations = await two_generations(nodes, wanted)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, generations[1])).damaged
    home = copy._home(nodes.volume)
    module = mending if step == "exchange" else ioctl
    real = exchange if step == "exchange" else getattr(ioctl, step)

    def fails(*args: Any, **named: Any) -> None:
        if after:
            real(*args, **named)
        raise PowerFails

    with monkeypatch.context() as patched:
        patched.setattr(module, step, fails)
        with pytest.raises(PowerFails):
            await copy.mend(nodes.volume, {at: wanted})
    again = ImageDriver(copy._mountpoint, staging=copy._staging)
    await again.open()
    assert (await again.inspect(nodes.volume)).generations == generations
    assert all(ioctl.is_read_only(home.tree(each)) for each in generations)
    assert not home.mended.exists()
    for each in generations:
        assert set((await again.verify(nodes.volume, each)).damaged) <= {at}
    await again.mend(nodes.volume, {at: wanted})
    for each in generations:
        assert (await again.verify(nodes.volume, each)).proved


async def received_meanwhile(nodes: Nodes, copy: ImageDriver) -> Generation:
    """A generation that was being received while its base was mended."""
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    data = nodes.a.data_path(nodes.volume, 1)
    third = await written(nodes, data, block() * 25, "third")
    stream = await read_stream(nodes.a, nodes.volume, third, second)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, second)).damaged
    async with copy.receive(nodes.volume, third, base=second) as pipe:
        os.write(pipe, stream[:60_000])
        while not (copy._home(nodes.volume).incoming(third) / "tree").exists():
            await asyncio.sleep(0)
        await copy.mend(nodes.volume, {at: wanted})
        await asyncio.to_thread(os.writev, pipe, [stream[60_000:]])
    return third


async def test_what_is_being_received_on_top_of_what_is_mended_is_mended_as_well(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver
) -> None:
    """It was begun as a snapshot of what was damaged; a sync call may be waiting for it."""
    third = await received_meanwhile(nodes, copy)
    found = await copy.verify(nodes.volume, third)
    assert (found.proved, found.digest) == (True, (await holder.verify(nodes.volume, third)).digest)
    fourth = await written(nodes, holder.data_path(nodes.volume, 1), block(), "fourth")
    await nodes.transfer(holder, copy, fourth, third)
    assert (await copy.verify(nodes.volume, fourth)).proved
    assert not copy._mender._right  # nothing is on its way any more that would need it


async def test_what_arrives_and_cannot_be_mended_is_not_there(
    nodes: Nodes, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mending, "_put_right", refuses)
    with pytest.raises(StorageError):
        await received_meanwhile(nodes, copy)
    assert len((await copy.inspect(nodes.volume)).generations) == 2
    assert not any((copy._home(nodes.volume).path / "incoming").iterdir())


async def test_what_arrives_is_mended_before_it_gets_its_name(
    nodes: Nodes, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails the moment that it has one: whoever takes over then reads what was sent."""
    snapshot = ioctl.create_snapshot

    def fails(source: Path, *, target: Path, read_only: bool) -> None:
        snapshot(source, target=target, read_only=read_only)
        if target.parent.parent.name == "generations" and received:
            raise PowerFails

    received: list[Generation] = []
    mend = copy.mend

    async def mends(volume: str, blocks: Mapping[int, bytes]) -> None:
        await mend(volume, blocks)
        received.extend((await copy.inspect(volume)).generations)

    monkeypatch.setattr(copy, "mend", mends)
    monkeypatch.setattr(ioctl, "create_snapshot", fails)
    with pytest.raises(PowerFails):
        await received_meanwhile(nodes, copy)
    again = ImageDriver(copy._mountpoint, staging=copy._staging)
    await again.open()
    (third,) = set((await again.inspect(nodes.volume)).generations) - set(received)
    assert (await again.verify(nodes.volume, third)).proved


async def test_nothing_is_mended_between_the_look_at_the_base_and_the_name(
    nodes: Nodes, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    third = await written(nodes, nodes.a.data_path(nodes.volume, 1), block(), "third")
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, second)).damaged
    home, snapshot = copy._home(nodes.volume), ioctl.create_snapshot
    mends = threading.Thread(target=copy._mender.mend, args=(home, {at: wanted}))

    def snapshots(source: Path, *, target: Path, read_only: bool) -> None:
        if target == home.tree(third):
            mends.start()
            mends.join(timeout=1.0)  # all the time that it needs, if it need not wait
        snapshot(source, target=target, read_only=read_only)

    monkeypatch.setattr(ioctl, "create_snapshot", snapshots)
    await nodes.transfer(nodes.a, copy, third, second)
    await asyncio.to_thread(mends.join)
    for generation in (await copy.inspect(nodes.volume)).generations:
        assert (await copy.verify(nodes.volume, generation)).proved


async def test_a_generation_that_arrives_while_others_are_mended_is_mended_as_well(
    nodes: Nodes, copy: ImageDriver, holder: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    data = holder.data_path(nodes.volume, 1)
    third = await written(nodes, data, block(), "third")
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, second)).damaged
    await nodes.transfer(holder, copy, third, second)
    home = copy._home(nodes.volume)
    aside = home.path / "third"
    home.tree(third).parent.rename(aside)

    def arriving(one: Path, other: Path) -> None:
        if aside.exists():
            aside.rename(home.tree(third).parent)
        exchange(one, other)

    monkeypatch.setattr(mending, "exchange", arriving)
    await copy.mend(nodes.volume, {at: wanted})
    assert (await copy.verify(nodes.volume, third)).proved


@pytest.mark.parametrize("which", [0, 1], ids=["older", "newest"])
@pytest.mark.parametrize("step", STEPS[:-1])
async def test_a_generation_that_is_deleted_meanwhile_stays_deleted(
    nodes: Nodes, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch, step: str, which: int
) -> None:
    wanted = block()
    generations = await two_generations(nodes, wanted)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, generations[1])).damaged
    home, real = copy._home(nodes.volume), getattr(ioctl, step)

    def deleting(path: Path, *args: object, **named: object) -> None:
        monkeypatch.setattr(ioctl, step, real)
        home.drop_generation(generations[which])
        real(path, *args, **named)

    monkeypatch.setattr(ioctl, step, deleting)
    await copy.mend(nodes.volume, {at: wanted})
    kept = generations[1 - which]
    assert (await copy.inspect(nodes.volume)).generations == (kept,)
    assert (await copy.verify(nodes.volume, kept)).proved
    assert not home.mended.exists()


async def test_a_disk_that_does_not_keep_what_is_mended_changes_nothing(
    nodes: Nodes, copy: ImageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = block()
    _, second = await two_generations(nodes, wanted)
    overwrite(copy, wanted)
    (at,) = (await copy.verify(nodes.volume, second)).damaged
    with unreadable(monkeypatch, at), pytest.raises(StorageError):
        await copy.mend(nodes.volume, {at: wanted})
    assert (await copy.verify(nodes.volume, second)).damaged == (at,)
    assert ioctl.is_read_only(copy._home(nodes.volume).tree(second))
