"""What only the btrfs driver promises, and what a crash may leave in its pool. Needs root."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import sys
import threading
from pathlib import Path

import pytest
from test_driver_kit import (
    ROOT,
    Nodes,
    btrfs_nodes,
    pools,
    portrait,
    read_stream,
    workplace,
    write_stream,
)

from pannier.core.errors import PoolFull, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import Driver, LocalCopy
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.commands import run

__all__ = ["btrfs_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root


@pytest.fixture
def nodes(btrfs_nodes: Nodes) -> Nodes:
    return btrfs_nodes


def home_of(driver: Driver, volume: str) -> Path:
    assert isinstance(driver, BtrfsDriver)
    return driver.data_path(volume, 1).parent.parent


async def test_a_snapshot_under_a_writer_keeps_the_order_of_sync_calls(nodes: Nodes) -> None:
    """Two files synced in turn, never more than one step apart, in every generation."""
    data = await nodes.create()
    stop = threading.Event()

    def write() -> None:
        with (data / "first").open("wb", buffering=0) as a, (data / "second").open("wb") as b:
            number = 0
            while not stop.is_set():
                number += 1
                os.pwrite(a.fileno(), number.to_bytes(8, "big"), 0)
                os.fsync(a.fileno())
                os.pwrite(b.fileno(), number.to_bytes(8, "big"), 0)
                os.fsync(b.fileno())

    (data / "first").write_bytes(bytes(8))
    (data / "second").write_bytes(bytes(8))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        generations = [await nodes.a.snapshot(nodes.volume, epoch=1) for _ in range(30)]
    finally:
        stop.set()
        writer.join()
    assert len(set(generations)) > 10
    assert isinstance(nodes.a, BtrfsDriver)
    for generation in generations:
        tree = nodes.a.generation_path(nodes.volume, generation)
        first, second = (
            int.from_bytes((tree / name).read_bytes(), "big") for name in ("first", "second")
        )
        assert first - second in (0, 1)


async def test_a_snapshot_has_what_was_mapped_and_never_synced(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "f").write_bytes(bytes(8192))
    await nodes.a.snapshot(nodes.volume, epoch=1)
    with (data / "f").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[5000:5005] = b"hello"
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    assert generation == Generation(1, 2)
    assert isinstance(nodes.a, BtrfsDriver)
    saved = nodes.a.generation_path(nodes.volume, generation) / "f"
    assert saved.read_bytes()[5000:5005] == b"hello"


async def test_a_sealed_tree_refuses_every_write(nodes: Nodes) -> None:
    """Also through descriptors that were open before, which read-only alone does not stop."""
    data = await nodes.create()
    (data / "f").write_bytes(b"a" * 8192)
    with (data / "f").open("r+b", buffering=0) as file:
        generation = await nodes.a.seal(nodes.volume, epoch=1)
        with pytest.raises(OSError, match="quota"):
            os.pwrite(file.fileno(), b"x" * 8192, 0)
        with pytest.raises(OSError, match="Read-only"):
            os.ftruncate(file.fileno(), 0)
    with pytest.raises(OSError, match="Read-only"):
        (data / "new").touch()
    assert await nodes.a.seal(nodes.volume, epoch=1) == generation
    await nodes.a.unseal(nodes.volume, epoch=1)
    (data / "f").write_bytes(b"b" * 8192)


STUCK = """
import sys, threading, time
from pathlib import Path
from pannier.storage.btrfs import ioctl

call, path = sys.argv[1], Path(sys.argv[2])
others = {"create_snapshot": {"target": path.with_name("new"), "read_only": True}}.get(call, {})
thread = threading.Thread(target=getattr(ioctl, call), args=[path], kwargs=others)
thread.start()
state = Path(f"/proc/self/task/{thread.native_id}/stat")
while state.read_text().rpartition(")")[2].split()[0] != "D":
    time.sleep(0.01)
print("the kernel lets it wait", flush=True)
"""


@pytest.mark.parametrize("call", ["create_snapshot", "create_subvolume", "destroy_subvolume"])
async def test_a_call_that_the_disk_lets_wait_stops_no_other_thread(
    nodes: Nodes, call: str
) -> None:
    """A crawling disk may take seconds for each commit, and all of pannierd would stand still."""
    tree = (await nodes.create()).parent
    path = tree.with_name("new") if call == "create_subvolume" else tree
    await run(["fsfreeze", "--freeze", str(tree.parent)], timeout_s=30)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STUCK, call, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        said = await asyncio.wait_for(child.stdout.readline(), 30)
    finally:
        await run(["fsfreeze", "--unfreeze", str(tree.parent)], timeout_s=30)
    assert said == b"the kernel lets it wait\n"
    assert await child.wait() == 0


async def test_a_tree_written_to_after_its_seal_is_not_dropped(nodes: Nodes) -> None:
    data = await nodes.create()
    await nodes.a.seal(nodes.volume, epoch=1)
    number = ioctl.subvolume_info(data.parent).id
    ioctl.refuse_new_extents(data.parent.parent, subvolume_id=number, refuse=False)
    ioctl.set_read_only(data.parent, read_only=False)
    (data / "late").write_text("x")
    ioctl.set_read_only(data.parent, read_only=True)
    with pytest.raises(StorageError, match="may hold what no generation has"):
        await nodes.a.drop_live(nodes.volume, epoch=1)
    await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.drop_live(nodes.volume, epoch=1)


async def test_deleted_generations_leave_no_quota_groups_behind(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel leaves that of a generation whose data a later one shared when it was deleted."""
    monkeypatch.setattr("pannier.storage.btrfs.driver._DELETIONS_BETWEEN_SWEEPS", 1)
    data, pool = await nodes.create(), nodes.b.data_path(nodes.volume, 1).parents[3]
    (data / "shared").write_bytes(os.urandom(1 << 20))
    came: list[Generation] = []
    idle: list[int] = []
    for number in range(6):
        (data / "own").write_bytes(b"%d" % number)
        if number == 2:
            (data / "shared").unlink()
        came.append(await nodes.a.snapshot(nodes.volume, epoch=1))
        base = came[-2] if number else None
        await nodes.transfer(nodes.a, nodes.b, came[-1], base)
        if base is not None:
            await nodes.b.delete_generation(nodes.volume, base)
            ioctl.sync_filesystem(pool)  # wakes the cleaner
            await asyncio.sleep(0.3)
        idle.append(len(ioctl.idle_groups(pool)))
    assert max(idle) == 1
    assert idle[-1] == 0
    await nodes.b.promote(
        nodes.volume, came[-1], epoch=2, size_bytes=16 << 20, on_top=OnTop.NOTHING
    )
    with pytest.raises(OSError, match="quota"):
        (nodes.b.data_path(nodes.volume, 2) / "runaway").write_bytes(os.urandom(64 << 20))


async def test_quotas_that_somebody_turns_off_keep_no_generation_from_its_end(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pannier.storage.btrfs.driver._DELETIONS_BETWEEN_SWEEPS", 1)
    data = await nodes.create()
    (data / "f").write_text("1")
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)

    def off(path: Path) -> set[int]:
        raise FileNotFoundError(errno.ENOENT, "no quota tree")

    monkeypatch.setattr(ioctl, "idle_groups", off)
    await nodes.a.delete_generation(nodes.volume, generation)
    assert (await nodes.a.inspect(nodes.volume)).generations == ()


async def test_a_runaway_writer_is_stopped_and_its_volume_can_still_move(nodes: Nodes) -> None:
    await nodes.a.create(nodes.volume, epoch=1, root=ROOT, size_bytes=16 << 20)
    data = nodes.a.data_path(nodes.volume, 1)
    (data / "fits").write_bytes(os.urandom(16 << 20))
    with pytest.raises(OSError, match="quota"):
        (data / "runaway").write_bytes(os.urandom(64 << 20))
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    assert await nodes.a.seal(nodes.volume, epoch=1) >= generation
    await nodes.a.unseal(nodes.volume, epoch=1)
    with pytest.raises(OSError, match="quota"):
        (data / "still").write_bytes(os.urandom(2 << 20))
    generation = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.a.drop_live(nodes.volume, epoch=1)


async def test_use_is_counted_after_the_writer_is_gone(nodes: Nodes) -> None:
    """Quotas charge the first writer: a dropped live tree, whose data a generation still has."""
    data = await nodes.create()
    (data / "f").write_bytes(os.urandom(20 << 20))
    await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.drop_live(nodes.volume, epoch=1)
    ioctl.sync_filesystem(home_of(nodes.a, nodes.volume))
    assert 19 << 20 < await nodes.a.used_bytes(nodes.volume) < 24 << 20


async def test_generations_of_both_live_trees_are_told_apart(nodes: Nodes) -> None:
    data = await nodes.create(epoch=1)
    (data / "f").write_text("x")
    first = await nodes.a.seal(nodes.volume, epoch=1)
    await nodes.a.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert await nodes.a.snapshot(nodes.volume, epoch=2) == first
    (nodes.a.data_path(nodes.volume, 2) / "g").write_text("y")
    assert (await nodes.a.snapshot(nodes.volume, epoch=2)).epoch == 2
    assert await nodes.a.seal(nodes.volume, epoch=1) == first


@pytest.fixture
async def leftovers(nodes: Nodes) -> Nodes:
    """A pool as a crash may leave it, on node b; what is whole there is generation 1.1."""
    data = await nodes.create()
    (data / "f").write_text("x")
    whole = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, whole)
    home = home_of(nodes.b, nodes.volume)
    for number in ("1.2", "1.3"):
        (home / "incoming" / number).mkdir()
    tree = home / "incoming" / "1.2" / "tree"
    ioctl.create_subvolume(tree)
    (tree / "half").write_text("received")
    ioctl.create_snapshot(tree, target=home / "incoming" / "1.3" / "tree", read_only=True)
    ioctl.create_subvolume(home / ".new-live-4")
    (home / "generations" / "1.0").mkdir()
    for name in (".new-other", ".gone-other"):
        place = home.parent / f"{name}-{nodes.volume}"
        ioctl.create_subvolume(place)
        (place / "generations" / "3.1").mkdir(parents=True)
        ioctl.create_snapshot(tree, target=place / "generations" / "3.1" / "tree", read_only=True)
        ioctl.create_subvolume(place / "live-3")
    return nodes


async def test_opening_removes_what_a_crash_left(leftovers: Nodes) -> None:
    nodes = leftovers
    home = home_of(nodes.b, nodes.volume)
    expected = LocalCopy(generations=(Generation(1, 1),))
    assert await nodes.b.inspect(nodes.volume) == expected
    await nodes.b.open()
    assert await nodes.b.inspect(nodes.volume) == expected
    assert sorted(os.listdir(home)) == ["generations", "incoming"]
    assert os.listdir(home / "generations") == ["1.1"]
    assert os.listdir(home / "incoming") == []
    assert not [name for name in os.listdir(home.parent) if name.startswith(".")]


async def test_leftovers_do_not_hinder_even_without_opening_again(leftovers: Nodes) -> None:
    nodes = leftovers
    (nodes.a.data_path(nodes.volume, 1) / "g").write_text("y")
    second = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, second, Generation(1, 1))
    await nodes.b.promote(nodes.volume, second, epoch=4, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(nodes.b.data_path(nodes.volume, 4)) == portrait(
        nodes.a.data_path(nodes.volume, 1)
    )


async def test_many_generations_travel_one_by_one(nodes: Nodes) -> None:
    data = await nodes.create()
    base = None
    for number in range(15):
        (data / f"file-{number}").write_text(str(number))
        (data / "changing").write_bytes(os.urandom(20_000))
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
        await nodes.transfer(nodes.a, nodes.b, generation, base)
        if base is not None:
            await nodes.a.delete_generation(nodes.volume, base)
            await nodes.b.delete_generation(nodes.volume, base)
        base = generation
    assert base is not None
    await nodes.b.promote(nodes.volume, base, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(nodes.b.data_path(nodes.volume, 2)) == portrait(data)


async def test_a_full_pool_says_so_and_keeps_what_it_has(workplace: Path, nodes: Nodes) -> None:
    mountpoint = workplace / "tiny"
    await create_pool(workplace / "tiny.img", mountpoint=mountpoint, size_bytes=160 << 20)
    tiny = BtrfsDriver(mountpoint)
    try:
        await tiny.open()
        data = await nodes.create()
        (data / "f").write_text("small")
        first = await nodes.a.snapshot(nodes.volume, epoch=1)
        await nodes.transfer(nodes.a, tiny, first)
        (data / "g").write_bytes(os.urandom(180 << 20))
        second = await nodes.a.snapshot(nodes.volume, epoch=1)
        stream = await read_stream(nodes.a, nodes.volume, second, first)
        with pytest.raises(PoolFull):
            await write_stream(tiny, nodes.volume, second, stream, first)
        assert (await tiny.inspect(nodes.volume)).generations == (first,)
        await tiny.promote(nodes.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
        with pytest.raises(OSError, match="No space"):
            (mountpoint / "filler").write_bytes(os.urandom(180 << 20))
        await tiny.check_disk(by_writing=True)  # full is not failed
    finally:
        assert await close_pool(mountpoint)


async def test_what_was_confirmed_is_on_the_disk(workplace: Path, nodes: Nodes) -> None:
    """The image, copied without unmounting, is what a power cut would leave."""
    data = await nodes.create()
    (data / "f").write_bytes(b"x" * 100_000)
    first = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    for number, driver in enumerate((nodes.a, nodes.b)):
        assert isinstance(driver, BtrfsDriver)
        pool = home_of(driver, nodes.volume).parent.parent
        image, mountpoint = workplace / f"cut-{number}.img", workplace / f"cut-{number}"
        await run(
            ["cp", "--sparse=always", str(pool.with_suffix(".img")), str(image)], timeout_s=60
        )
        after = BtrfsDriver(mountpoint, source=image)
        await after.open()
        try:
            assert (await after.inspect(nodes.volume)).generations == (first,)
            saved = after.generation_path(nodes.volume, first) / "f"
            assert saved.read_bytes() == b"x" * 100_000
        finally:
            await after.close()
            image.unlink()


async def test_looking_and_saving_go_on_beside_deletions(nodes: Nodes) -> None:
    """As when a copy has caught up, and all that was kept for it goes at once."""
    data = await nodes.create()
    for _ in range(4):
        made = []
        for number in range(20):
            (data / "f").write_text(str(number))
            made.append(await nodes.a.snapshot(nodes.volume, epoch=1))
        *old, newest = made

        async def delete(generations: list[Generation]) -> None:
            for generation in generations:
                await nodes.a.delete_generation(nodes.volume, generation)

        deleting = asyncio.create_task(delete(old))
        while not deleting.done():
            saved, copies = await asyncio.gather(
                nodes.a.snapshot(nodes.volume, epoch=1),
                asyncio.gather(*(nodes.a.inspect(nodes.volume) for _ in range(4))),
            )
            assert saved == newest
            assert all(newest in copy.generations for copy in copies)
        await deleting
        assert (await nodes.a.inspect(nodes.volume)).generations == (newest,)
        await nodes.a.delete_generation(nodes.volume, newest)


async def test_two_that_save_at_once_get_generations_that_are_there(nodes: Nodes) -> None:
    """A seal after the end of the lease does not wait for the generation that is just being made."""
    data = await nodes.create()
    for number in range(20):
        (data / "f").write_text(str(number))
        saved = await asyncio.gather(
            *(nodes.a.snapshot(nodes.volume, epoch=1) for _ in range(3)),
            nodes.a.seal(nodes.volume, epoch=1),
        )
        there = (await nodes.a.inspect(nodes.volume)).generations
        assert set(saved) <= set(there)
        assert max(saved) == there[-1]
        await nodes.a.unseal(nodes.volume, epoch=1)
