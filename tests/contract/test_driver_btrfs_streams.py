"""Small streams, which the btrfs driver applies by itself, and large ones, which it leaves to btrfs.

Whichever way a generation came, it is the same tree, the same base for the next one, and after a
power cut it is there whole or not at all. Needs root.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import random
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_driver_kit import (
    CAP_NET_BIND,
    Nodes,
    acl,
    btrfs_nodes,
    fill_with_difficulties,
    pools,
    portrait,
    read_stream,
    workplace,
    write_stream,
)

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.host.process import run
from pannier.storage.base import LocalCopy
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs import stream as btrfs_stream
from pannier.storage.btrfs.apply import apply
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.pool import close_pool, create_pool

__all__ = ["btrfs_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root
HEADER = struct.Struct(">8sI32s")
FICLONE = 0x40049409


@pytest.fixture
def nodes(btrfs_nodes: Nodes) -> Nodes:
    return btrfs_nodes


class Way:
    """Makes the driver take streams for small or for large ones, whatever their size."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.small = True

    def set(self, *, small: bool) -> None:
        self.small = small
        self._patch.setattr(btrfs_stream, "SMALL_BYTES", 1 << 20 if small else 0)


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    return Way(monkeypatch)


def is_small(stream: bytes) -> bool:
    magic, size, _ = HEADER.unpack(stream[: HEADER.size])
    assert magic == b"pannier1"
    assert size in (0, len(stream) - HEADER.size)
    return bool(size)


def home_of(driver: BtrfsDriver | object, volume: str) -> Path:
    assert isinstance(driver, BtrfsDriver)
    return driver.data_path(volume, 1).parent.parent


def workbench(driver: object, volume: str) -> Path:
    return home_of(driver, volume) / "incoming" / "workbench"


async def send_as(way: Way, nodes: Nodes, generation: Generation, base: Generation | None) -> bytes:
    stream = await read_stream(nodes.a, nodes.volume, generation, base)
    assert is_small(stream) == way.small
    return stream


def change_everything(root: Path) -> None:
    """One of each change that a difference may have, to what fill_with_difficulties made."""
    (root / "plain.txt").write_text("hello, all changed\n")
    with (root / "big").open("r+b") as big:
        os.pwrite(big.fileno(), b"z" * 10_000, 1_000_000)
        big.truncate((3 << 20) - 77)
    (root / "empty").unlink()
    (root / "setuid").write_bytes(b"#!/bin/false\n")  # the kernel drops bits and capability
    os.setxattr(root / "setuid", "security.capability", CAP_NET_BIND)
    (root / "setuid").chmod(0o4711)
    (root / "dir").rename(root / "moved")
    (root / "moved" / "with space").rename(root / "moved" / "without")
    os.link(root / "hard-1", root / "moved" / "hard-4")
    (root / "hard-3").unlink()
    (root / "symlink").unlink()
    (root / "symlink").mkdir(mode=0o2710)  # another kind under the same name
    (root / "symlink" / "inside").symlink_to("../plain.txt")
    (root / "dangling").unlink()
    os.mkfifo(root / "dangling", 0o604)
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_001))
    os.removexattr(root / "plain.txt", "user.note")
    os.setxattr(root / "plain.txt", "user.other", b"")
    os.setxattr(root / "plain.txt", "system.posix_acl_access", acl(4))
    os.removexattr(root / "moved", "system.posix_acl_default")
    os.setxattr(root / "symlink", "system.posix_acl_default", acl(6))
    (root / "symlink" / "inherits").write_text("an access list")
    os.setxattr(root, "trusted.root", b"1")
    os.chown(root, 5, 6)
    os.chown(root / "symlink" / "inside", 11, 12, follow_symlinks=False)
    os.utime(root / "hard-1", ns=(-5_000_000_001, -7_000_000_003))  # before 1970
    for source, target in (("big", "clone-of-old"), ("sparse", "clone-of-sparse")):
        with (root / source).open("rb") as old, (root / target).open("wb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    (root / "grown").mkdir()
    for number in range(20):
        (root / "grown" / f"f{number}").write_bytes(os.urandom(number * 311))


@pytest.mark.parametrize("small", [True, False])
async def test_every_kind_of_change_arrives(nodes: Nodes, way: Way, small: bool) -> None:
    data = await nodes.create()
    fill_with_difficulties(data)
    first = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    change_everything(data)
    second = await nodes.a.snapshot(nodes.volume, epoch=1)
    before = portrait(data)
    way.set(small=small)
    stream = await send_as(way, nodes, second, first)
    await write_stream(nodes.b, nodes.volume, second, stream, first)
    await nodes.b.promote(nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(nodes.b.data_path(nodes.volume, 2)) == before


async def test_a_small_whole_generation_arrives(nodes: Nodes, way: Way) -> None:
    way.set(small=True)
    data = await nodes.create()
    (data / "f").write_text("small")
    generation = await nodes.a.snapshot(nodes.volume, epoch=1)
    stream = await send_as(way, nodes, generation, None)
    await write_stream(nodes.b, nodes.volume, generation, stream)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert portrait(nodes.b.data_path(nodes.volume, 2)) == portrait(data)


async def test_small_and_large_ones_are_each_others_base(nodes: Nodes, way: Way) -> None:
    """A chain in which each is received in one of both ways, and then travels on to a third node."""
    data = await nodes.create()
    base = None
    chosen = random.Random(5)
    for number in range(12):
        (data / "changing").write_bytes(os.urandom(9_000))
        (data / f"f{number}").write_text(str(number))
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
        for source, target in ((nodes.a, nodes.b), (nodes.b, nodes.c)):
            way.set(small=chosen.random() < 0.6)
            await nodes.transfer(source, target, generation, base)
        base = generation
    assert base is not None
    await nodes.c.promote(nodes.volume, base, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    (nodes.c.data_path(nodes.volume, 2) / "from-c").write_text("c")
    last = await nodes.c.seal(nodes.volume, epoch=2)
    for small in (True, False):
        way.set(small=small)
        target = nodes.a if small else nodes.b
        assert await nodes.transfer(nodes.c, target, last, base) < 10_000
        await target.promote(nodes.volume, last, epoch=3, size_bytes=None, on_top=OnTop.NOTHING)
        there = portrait(target.data_path(nodes.volume, 3))
        assert there == portrait(nodes.c.data_path(nodes.volume, 2))


async def test_random_histories_look_the_same_both_ways(nodes: Nodes, way: Way) -> None:
    """What we apply ourselves on b is what `btrfs receive` makes of the same on c."""
    data = await nodes.create()
    chosen, base = random.Random(20), None
    for _ in range(25):
        for _ in range(chosen.randrange(1, 12)):
            scramble(data, chosen)
        generation = await nodes.a.snapshot(nodes.volume, epoch=1)
        if generation == base:
            continue
        trees = []
        for target, small in ((nodes.b, True), (nodes.c, False)):
            way.set(small=small)
            await nodes.transfer(nodes.a, target, generation, base)
            assert isinstance(target, BtrfsDriver)
            trees.append(portrait(target.generation_path(nodes.volume, generation)))
        assert trees[0] == trees[1]
        assert trees[0] == portrait(data)
        base = generation


def scramble(root: Path, chosen: random.Random) -> None:
    """One random change, as far as it is possible."""
    here = [Path(place) / name for place, ds, fs in os.walk(root) for name in (*ds, *fs)]
    folders = [root, *(path for path in here if path.is_dir() and not path.is_symlink())]
    files = [path for path in here if path.is_file() and not path.is_symlink()]
    new = chosen.choice(folders) / f"n{chosen.randrange(10_000)}"
    old = chosen.choice(here or [root])
    file = chosen.choice(files or [root / "first"])
    actions: list[Callable[[], object]] = [
        lambda: new.write_bytes(chosen.randbytes(chosen.randrange(20_000))),
        lambda: new.mkdir(),
        lambda: new.symlink_to("x" * chosen.randrange(1, 100)),
        lambda: old.rename(new),
        lambda: os.link(file, new),
        lambda: file.unlink(),
        lambda: old.rmdir(),
        lambda: os.truncate(file, chosen.randrange(30_000)),
        lambda: file.chmod(chosen.randrange(0o10000)),
        lambda: os.chown(old, chosen.randrange(9), chosen.randrange(9), follow_symlinks=False),
        lambda: os.setxattr(file, f"user.{chosen.randrange(3)}", chosen.randbytes(50)),
        lambda: os.removexattr(file, f"user.{chosen.randrange(3)}"),
        lambda: file.open("r+b").seek(chosen.randrange(99_999)),
        lambda: overwrite(file, chosen),
        lambda: clone(file, new),
    ]
    try:
        chosen.choice(actions)()
    except OSError:
        return


def overwrite(file: Path, chosen: random.Random) -> None:
    with file.open("r+b") as there:
        os.pwrite(there.fileno(), chosen.randbytes(5_000), chosen.randrange(40_000))


def clone(file: Path, new: Path) -> None:
    with file.open("rb") as old, new.open("xb") as there:
        fcntl.ioctl(there.fileno(), FICLONE, old.fileno())


@pytest.fixture
async def second_on_its_way(nodes: Nodes, way: Way) -> tuple[Nodes, Generation, bytes]:
    """Node b has generation 1.1 by a small stream; 1.2 is the difference to it, ready to be sent."""
    return nodes, *await _second_on_its_way(nodes, way)


async def _second_on_its_way(nodes: Nodes, way: Way) -> tuple[Generation, bytes]:
    way.set(small=True)
    data = await nodes.create()
    (data / "f").write_bytes(b"1" * 100_000)
    first = await nodes.a.snapshot(nodes.volume, epoch=1)
    await nodes.transfer(nodes.a, nodes.b, first)
    (data / "f").write_bytes(b"2" * 100_000)
    (data / "g").write_text("new")
    second = await nodes.a.snapshot(nodes.volume, epoch=1)
    return second, await read_stream(nodes.a, nodes.volume, second, first)


@pytest.fixture
async def young(nodes: Nodes, workplace: Path) -> AsyncIterator[Nodes]:
    """Node b has a pool of its own, of which copies are quickly made."""
    mountpoint = workplace / "young"
    await create_pool(workplace / "young.img", mountpoint=mountpoint, size_bytes=160 << 20)
    driver = BtrfsDriver(mountpoint)
    await driver.open()
    yield replace(nodes, b=driver)
    assert await close_pool(mountpoint)
    (workplace / "young.img").unlink()


STEPS = ("create_snapshot", "create_subvolume", "set_received", "destroy_subvolume")


@pytest.mark.parametrize("warm", [True, False])
async def test_power_that_fails_at_any_step_leaves_all_or_nothing(
    young: Nodes, way: Way, workplace: Path, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    """The image as it is before and after each step, without what only memory has.

    Args:
        warm: the workbench is still there from the generation before.
    """
    nodes, first = young, Generation(1, 1)
    second, stream = await _second_on_its_way(nodes, way)
    if not warm:
        await nodes.b.open()
    assert workbench(nodes.b, nodes.volume).exists() == warm
    pool = home_of(nodes.b, nodes.volume).parent.parent.with_suffix(".img")
    images: list[Path] = []

    def cut() -> None:
        images.append(workplace / f"step-{len(images)}.img")
        subprocess.run(["cp", "--sparse=always", pool, images[-1]], check=True)

    for step in STEPS:
        _cut_around(monkeypatch, step, cut)
    await write_stream(nodes.b, nodes.volume, second, stream, first)
    cut()
    monkeypatch.undo()
    found = []
    for image in images:
        after = BtrfsDriver(workplace / "after", source=image)
        await after.open()
        try:
            assert not workbench(after, nodes.volume).exists()
            generations = (await after.inspect(nodes.volume)).generations
            found.append(second in generations)
            for generation in generations:
                tree = after.generation_path(nodes.volume, generation)
                assert (tree / "f").read_bytes() == b"%d" % generation.sequence * 100_000
                assert (tree / "g").exists() == (generation == second)
            assert first in generations
        finally:
            await after.close()
            image.unlink()
    assert found == sorted(found), "it was there and then not any more"
    assert len(found) >= (5 if warm else 7)
    assert found[0] is False
    assert found[-1] is True


def _cut_around(patch: pytest.MonkeyPatch, step: str, cut: Callable[[], None]) -> None:
    real = getattr(ioctl, step)

    def cutting(*args: object, **kwargs: object) -> object:
        cut()
        result = real(*args, **kwargs)
        cut()
        return result

    patch.setattr(ioctl, step, cutting)


async def test_a_block_that_is_left_with_an_error_makes_nothing_of_a_whole_stream(
    second_on_its_way: tuple[Nodes, Generation, bytes],
) -> None:
    """The connection broke after the last byte, and nobody will hear that it is there."""
    nodes, second, stream = second_on_its_way
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await _written_and_then_broken(nodes, second, stream)
        assert (await nodes.b.inspect(nodes.volume)).generations == (Generation(1, 1),)
    await write_stream(nodes.b, nodes.volume, second, stream, Generation(1, 1))


async def _written_and_then_broken(nodes: Nodes, generation: Generation, stream: bytes) -> None:
    async with nodes.b.receive(nodes.volume, generation, base=Generation(1, 1)) as pipe:
        os.write(pipe, stream)
        await asyncio.sleep(0.05)
        raise ConnectionError


async def test_a_workbench_that_somebody_changed_is_made_anew(
    second_on_its_way: tuple[Nodes, Generation, bytes],
) -> None:
    nodes, second, stream = second_on_its_way
    (workbench(nodes.b, nodes.volume) / "tree" / "data" / "f").write_bytes(b"wrong")
    (workbench(nodes.b, nodes.volume) / "tree" / "data" / "stray").write_bytes(b"wrong")
    ioctl.sync_filesystem(home_of(nodes.b, nodes.volume))
    await write_stream(nodes.b, nodes.volume, second, stream, Generation(1, 1))
    assert isinstance(nodes.b, BtrfsDriver)
    there = portrait(nodes.b.generation_path(nodes.volume, second))
    assert there == portrait(nodes.a.data_path(nodes.volume, 1))


async def test_no_workbench_remains_on_a_holder_or_without_a_generation(
    second_on_its_way: tuple[Nodes, Generation, bytes],
) -> None:
    """It would keep the space of data that is long gone."""
    nodes, second, stream = second_on_its_way
    first = Generation(1, 1)
    await write_stream(nodes.b, nodes.volume, second, stream, first)
    assert workbench(nodes.b, nodes.volume).exists()
    await nodes.b.promote(nodes.volume, second, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert not workbench(nodes.b, nodes.volume).exists()
    whole = await read_stream(nodes.a, nodes.volume, second)
    await write_stream(nodes.c, nodes.volume, second, whole)
    assert workbench(nodes.c, nodes.volume).exists()
    await nodes.c.delete_generation(nodes.volume, second)
    assert not workbench(nodes.c, nodes.volume).exists()


# -- streams that nobody's kernel made ------------------------------------------------------------


def command(kind: int, **attributes: bytes) -> bytes:
    numbers = {"uuid": 1, "ctransid": 2, "size": 4, "mode": 5, "path": 15, "to": 16, "link": 17}
    numbers |= {"offset": 18, "data": 19, "name": 13, "value": 14, "rdev": 8}
    body = b"".join(
        struct.pack("<HH", numbers[name], len(value)) + value for name, value in attributes.items()
    )
    header = struct.pack("<IH", len(body), kind)
    return header + struct.pack("<I", crc32c(header + bytes(4) + body)) + body


def crc32c(data: bytes) -> int:
    """As the kernel's, begun with 0: `btrfs receive` looks at it."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def stream_of(*commands: bytes) -> bytes:
    start = command(1, path=b"tree", uuid=bytes(range(16)), ctransid=struct.pack("<Q", 9))
    return b"btrfs-stream\0" + struct.pack("<I", 1) + start + b"".join(commands) + command(21)


def in_envelope(stream: bytes) -> bytes:
    return HEADER.pack(b"pannier1", len(stream), hashlib.sha256(stream).digest()) + stream


MKFILE, MKDIR, SYMLINK, RENAME, LINK, UNLINK, SET_XATTR, WRITE, TRUNCATE, CHMOD = (
    3,
    4,
    8,
    9,
    10,
    11,
    13,
    15,
    17,
    18,
)
MKNOD = 5
LARGE = HEADER.pack(b"pannier1", 0, bytes(32))
DATA = command(MKDIR, path=b"data")
ZERO = struct.pack("<Q", 0)


@pytest.mark.parametrize(
    "outside",
    [
        command(MKFILE, path=b"../escaped"),
        command(MKFILE, path=b"data/../../escaped"),
        command(MKFILE, path=b"/tmp/pannier-escaped"),
        command(MKFILE, path=b"data//escaped"),
        command(MKFILE, path=b"door/escaped"),
        command(WRITE, path=b"door/victim", offset=ZERO, data=b"changed"),
        command(WRITE, path=b"to-victim", offset=ZERO, data=b"changed"),
        command(TRUNCATE, path=b"to-victim", size=ZERO),
        command(CHMOD, path=b"to-victim", mode=struct.pack("<Q", 0o777)),
        command(CHMOD, path=b"door/victim", mode=struct.pack("<Q", 0o777)),
        command(UNLINK, path=b"door/victim"),
        command(RENAME, path=b"data", to=b"door/data"),
        command(LINK, path=b"data/stolen", link=b"door/victim"),
        command(SET_XATTR, path=b"door/victim", name=b"user.x", value=b"1"),
    ],
)
async def test_no_stream_reaches_anything_outside_of_its_tree(
    nodes: Nodes, workplace: Path, outside: bytes
) -> None:
    await nodes.create()
    place = Path(str(workplace)) / "outside"
    place.mkdir(exist_ok=True)
    (place / "victim").write_text("precious")
    (place / "victim").chmod(0o600)
    doors = (
        command(SYMLINK, path=b"door", link=os.fsencode(place)),
        command(SYMLINK, path=b"to-victim", link=os.fsencode(place / "victim")),
    )
    stream = in_envelope(stream_of(DATA, *doors, outside))
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, Generation(1, 1), stream)
    assert os.listdir(place) == ["victim"]
    assert (place / "victim").read_text() == "precious"
    assert stat.S_IMODE((place / "victim").stat().st_mode) == 0o600
    assert not os.listxattr(place / "victim")
    assert not Path("/tmp/pannier-escaped").exists()
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The file behind a block device, and the device's number."""
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(1 << 20))
    argv = ["losetup", "--find", "--show", str(backing)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield backing, os.stat(device).st_rdev
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    "through",
    [
        command(WRITE, path=b"data/node", offset=ZERO, data=b"changed"),
        command(TRUNCATE, path=b"data/node", size=ZERO),
    ],
)
async def test_no_stream_writes_through_a_device_node_that_it_made(
    nodes: Nodes, disk: tuple[Path, int], through: bytes, small: bool
) -> None:
    backing, number = disk
    await nodes.create()
    node = command(
        MKNOD,
        path=b"data/node",
        mode=struct.pack("<Q", stat.S_IFBLK | 0o600),
        rdev=struct.pack("<Q", number),
    )
    stream = stream_of(DATA, node, through)
    # Without the pool's own guard: the stream is refused whatever the mount allows.
    pool = home_of(nodes.b, nodes.volume).parent.parent
    if small:
        await run(["mount", "-o", "remount,bind,dev", str(pool)], timeout_s=10)
    try:
        with pytest.raises(Corrupt):
            await write_stream(
                nodes.b,
                nodes.volume,
                Generation(1, 1),
                in_envelope(stream) if small else LARGE + stream,
            )
    finally:
        await nodes.b.open()
    os.sync()
    assert backing.read_bytes() == bytes(1 << 20)


async def test_a_large_stream_follows_no_link_out_of_its_tree(nodes: Nodes, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    await nodes.create()
    door = command(SYMLINK, path=b"data/door", link=os.fsencode(tmp_path))
    write = command(WRITE, path=b"data/door/victim", offset=ZERO, data=b"changed")
    with pytest.raises(Corrupt):
        await write_stream(
            nodes.b, nodes.volume, Generation(1, 1), LARGE + stream_of(DATA, door, write)
        )
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("small", [True, False])
async def test_a_tree_whose_data_is_a_link_is_none(
    nodes: Nodes, tmp_path: Path, small: bool
) -> None:
    """A container would be given what it points to on this host."""
    await nodes.create()
    stream = stream_of(command(SYMLINK, path=b"data", link=os.fsencode(tmp_path)))
    with pytest.raises(Corrupt):
        await write_stream(
            nodes.b,
            nodes.volume,
            Generation(1, 1),
            in_envelope(stream) if small else LARGE + stream,
        )
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"btrfs-stream\0" + struct.pack("<I", 1),
        b"btrfs-stream\0" + struct.pack("<I", 2) + stream_of(DATA)[17:],
        stream_of(),
        stream_of(command(MKFILE, path=b"data")),
        stream_of(DATA)[:-1],
        stream_of(DATA) + b"x",
        stream_of(DATA, command(99, path=b"data")),
        stream_of(DATA, command(2, path=b"tree", uuid=bytes(16), ctransid=ZERO)),
        stream_of(DATA, command(WRITE, path=b"data/f")),
        stream_of(DATA, command(WRITE, path=b"data/f", offset=b"123", data=b"x")),
        stream_of(DATA, command(UNLINK, path=b"data/nothing")),
        stream_of(DATA, command(MKDIR, path=b"data")),
    ],
)
async def test_an_impossible_stream_is_corrupt_and_leaves_nothing(
    nodes: Nodes, stream: bytes
) -> None:
    await nodes.create()
    with pytest.raises(Corrupt):
        await write_stream(nodes.b, nodes.volume, Generation(1, 1), in_envelope(stream))
    assert await nodes.b.inspect(nodes.volume) == LocalCopy()
    assert not workbench(nodes.b, nodes.volume).exists()
    await write_stream(nodes.b, nodes.volume, Generation(1, 1), in_envelope(stream_of(DATA)))
    assert (await nodes.b.inspect(nodes.volume)).generations == (Generation(1, 1),)


@pytest.fixture(scope="module")
def scratch(pools: list[Path]) -> Iterator[Path]:
    place = pools[2] / "scratch"
    place.mkdir()
    yield place
    place.rmdir()


VALID = stream_of(
    DATA,
    command(MKFILE, path=b"o257-1-0"),
    command(RENAME, path=b"o257-1-0", to=b"data/f"),
    command(WRITE, path=b"data/f", offset=ZERO, data=b"content"),
    command(SYMLINK, path=b"data/link", link=b"f"),
    command(SET_XATTR, path=b"data/f", name=b"user.x", value=b"1"),
    command(CHMOD, path=b"data/f", mode=struct.pack("<Q", 0o640)),
)


@given(st.lists(st.tuples(st.integers(17, len(VALID) - 1), st.integers(0, 255)), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_garbled_stream_ends_in_an_error_of_ours_or_of_the_disk(
    scratch: Path, changes: list[tuple[int, int]]
) -> None:
    """Whatever bytes come, and with the right hash: never a crash, never a hang."""
    garbled = bytearray(VALID)
    for position, byte in changes:
        garbled[position] = byte
    tree = scratch / "tree"
    ioctl.create_subvolume(tree)
    try:
        apply(bytes(garbled), into=tree, base=None)
    except (StorageError, OSError):
        pass
    finally:
        ioctl.destroy_subvolume(tree)


# -- making generations ---------------------------------------------------------------------------


async def test_what_is_no_longer_written_gets_no_further_generation(nodes: Nodes) -> None:
    """Also right after it was written all the time, when a generation is made before looking."""
    data = await nodes.create()
    for number in range(1, 5):
        (data / "f").write_text(str(number))
        assert await nodes.a.snapshot(nodes.volume, epoch=1) == Generation(1, number)
    for _ in range(3):
        assert await nodes.a.snapshot(nodes.volume, epoch=1) == Generation(1, 4)
    assert len((await nodes.a.inspect(nodes.volume)).generations) == 4
    (data / "f").write_text("again")
    again = await nodes.a.snapshot(nodes.volume, epoch=1)
    assert again > Generation(1, 4)
    assert await nodes.a.seal(nodes.volume, epoch=1) == again
    await nodes.a.drop_live(nodes.volume, epoch=1)
