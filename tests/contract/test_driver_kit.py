"""What the driver tests share: nodes with real pools, streams between them, and difficult trees."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import stat
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pannier.core.generation import Generation
from pannier.storage.base import Driver, RootAttributes
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.btrfs.subvolumes import SubvolumeDriver
from pannier.storage.directory.driver import DirectoryDriver
from pannier.storage.directory.root import create_directory
from pannier.storage.image.driver import ImageDriver

POOL_BYTES = 1 << 30
SIZE = 200 << 20
ROOT = RootAttributes(uid=1000, gid=1001, mode=0o2750)


@dataclass(frozen=True)
class Nodes:
    """Three nodes with the same driver, and a volume that none of them has yet."""

    a: Driver
    b: Driver
    c: Driver
    volume: str
    root: RootAttributes = ROOT

    async def create(self, *, epoch: int = 1) -> Path:
        await self.a.create(self.volume, epoch=epoch, root=ROOT, size_bytes=SIZE)
        return await self.attached(self.a, epoch=epoch)

    async def attached(self, driver: Driver, *, epoch: int) -> Path:
        """The directory of a live tree that can be used."""
        await driver.attach(self.volume, epoch=epoch, grow=False)
        return driver.data_path(self.volume, epoch)

    async def transfer(
        self, source: Driver, target: Driver, generation: Generation, base: Generation | None = None
    ) -> int:
        """Send a generation; the bytes sent."""
        stream = await read_stream(source, self.volume, generation, base)
        await write_stream(target, self.volume, generation, stream, base)
        return len(stream)

    async def save(self, driver: Driver, *, epoch: int) -> Generation:
        """A generation of the live tree, in use where the driver can; else sealed and unsealed."""
        if driver.generations_in_use:
            return await driver.snapshot(self.volume, epoch=epoch)
        return await driver.seal(self.volume, epoch=epoch)

    async def resume(self, driver: Driver, *, epoch: int) -> None:
        await driver.unseal(self.volume, epoch=epoch)
        await driver.attach(self.volume, epoch=epoch, grow=False)


@pytest.fixture(scope="session")
def workplace() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("the driver tests need root: they mount file systems and make device nodes")
    with tempfile.TemporaryDirectory(prefix="pannier-driver-") as place:
        yield Path(place)


@pytest.fixture(scope="session")
def pools(workplace: Path) -> Iterator[list[Path]]:
    """Three btrfs pools, made once: transfers within one file system would prove nothing."""
    mountpoints = [workplace / f"pool-{name}" for name in "abc"]
    try:
        for mountpoint in mountpoints:
            image = mountpoint.with_suffix(".img")
            asyncio.run(create_pool(image, mountpoint=mountpoint, size_bytes=POOL_BYTES))
        yield mountpoints
    finally:
        for mountpoint in mountpoints:
            assert asyncio.run(close_pool(mountpoint)), "a test left something open in the pool"


@pytest.fixture
async def btrfs_nodes(pools: list[Path]) -> AsyncIterator[Nodes]:
    a, b, c = (BtrfsDriver(mountpoint) for mountpoint in pools)
    async for nodes in _opened(a, b, c):
        yield nodes


@pytest.fixture
async def image_nodes(pools: list[Path], workplace: Path) -> AsyncIterator[Nodes]:
    a, b, c = (ImageDriver(pool, staging=workplace / f"staging-{pool.name}") for pool in pools)
    async for nodes in _opened(a, b, c):
        yield nodes


@pytest.fixture
async def directory_nodes(workplace: Path) -> AsyncIterator[Nodes]:
    roots = [workplace / f"directory-{name}" for name in "abc"]
    for root in roots:
        await create_directory(root)
    a, b, c = (DirectoryDriver(root) for root in roots)
    async for nodes in _opened(a, b, c):
        yield nodes


def overwrite(driver: SubvolumeDriver, block: bytes) -> None:
    """Change some bytes of a block, found on the pool's device by its content."""
    image = driver._mountpoint.with_suffix(".img")
    os.sync()
    fd = os.open(image, os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as device:
            at = device.find(block)
            assert at >= 0
            device[at : at + 16] = bytes(16)
            device.flush()
        os.fsync(fd)
    finally:
        os.close(fd)
    Path("/proc/sys/vm/drop_caches").write_text("1")  # the loop device's, and the pool's own


async def _opened(a: Driver, b: Driver, c: Driver) -> AsyncIterator[Nodes]:
    nodes = Nodes(a, b, c, f"v-{uuid.uuid4().hex[:12]}")
    for driver in (a, b, c):
        await driver.open()
    yield nodes
    for driver in (a, b, c):
        await driver.delete(nodes.volume)
        await driver.close()


async def read_stream(
    driver: Driver, volume: str, generation: Generation, base: Generation | None = None
) -> bytes:
    async with driver.send(volume, generation, base=base) as fd:
        return await asyncio.to_thread(_read_all, fd)


async def write_stream(
    driver: Driver,
    volume: str,
    generation: Generation,
    stream: bytes,
    base: Generation | None = None,
) -> None:
    async with driver.receive(volume, generation, base=base) as fd:
        await asyncio.to_thread(_write_all, fd, stream)


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _write_all(fd: int, stream: bytes) -> None:
    rest = memoryview(stream)
    while rest:
        rest = rest[os.write(fd, rest) :]


def fill_with_difficulties(root: Path) -> None:
    """Everything that a volume may contain and a careless copy loses."""
    (root / "plain.txt").write_text("hello\n")
    os.chown(root / "plain.txt", 123, 456)
    os.utime(root / "plain.txt", ns=(1_000_000_001, 1_234_567_890_123_456_789))
    (root / "empty").touch()
    (root / "big").write_bytes(os.urandom(3 << 20))
    (root / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "setuid", 7, 8)
    (root / "setuid").chmod(0o6755)
    deep = root / "dir" / "with space" / "newline\nname"
    deep.mkdir(parents=True)
    (root / "dir").chmod(0o1777)
    (deep / "file").write_text("deep")
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe", "wb") as file:
        file.write(b"x")
    (root / ("n" * 255)).write_text("long name")
    (root / "hard-1").write_text("linked")
    os.link(root / "hard-1", root / "dir" / "hard-2")
    os.link(root / "hard-1", root / "hard-3")
    (root / "symlink").symlink_to("dir/with space")
    (root / "dangling").symlink_to("/nowhere/" + "x" * 200)
    os.utime(root / "dangling", ns=(5, 1_111_111_111_111_111_111), follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    with (root / "sparse").open("wb") as sparse:
        sparse.write(b"start")
        sparse.seek(16 << 20)
        sparse.write(b"middle")
        sparse.truncate(32 << 20)
    os.setxattr(root / "plain.txt", "user.note", b"\x00\xffbinary")
    os.setxattr(root / "setuid", "security.capability", CAP_NET_BIND)
    os.setxattr(root / "plain.txt", "system.posix_acl_access", acl(7))
    os.setxattr(root / "dir", "system.posix_acl_default", acl(5))
    os.utime(root / "dir", ns=(9, 1_222_222_222_333_333_333))


CAP_NET_BIND = bytes.fromhex("0100000200040000000000000000000000000000")


def acl(permissions: int) -> bytes:
    """A POSIX ACL with one named user, as the kernel stores it."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, permissions, 1000), (4, 4, nobody)]
    entries += [(16, 7, nobody), (32, 4, nobody)]
    packed = b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in entries
    )
    return (2).to_bytes(4, "little") + packed


def portrait(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, by a way of its own, not the drivers'."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for directory, directories, files in os.walk(root):
        for name in sorted([*directories, *files, "."]):
            path = Path(directory) / name
            status = path.lstat()
            label = str(path.relative_to(root))
            if not stat.S_ISDIR(status.st_mode):
                first = inodes.setdefault(status.st_ino, label)
            else:
                first = label
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hash(path.read_bytes())
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in _xattrs(path)}
            found[label] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_rdev,
                0 if stat.S_ISDIR(status.st_mode) else status.st_size,
                content,
                first,
                tuple(sorted(xattrs.items())),
            )
    return found


def _xattrs(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def sync_everything(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert ctypes.CDLL(None).syncfs(fd) == 0
    finally:
        os.close(fd)
