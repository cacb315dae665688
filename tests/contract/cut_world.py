"""What the tests of cuts share: a live image on a loop device in a real pool, its replica, and writers beside the test."""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pannier.core.line import Cut, Zeros
from pannier.cut import tracefs
from pannier.cut.cutter import Cutter
from pannier.cut.tracer import Tracer
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import ext4, nocow
from pannier.storage.image.loopdevice import LoopDevice, attached

LIMIT = 4 << 20
SIZE = 96 << 20
EVENT = "events/block/block_rq_complete"
numbers = itertools.count()


@pytest.fixture(scope="module")
def pool() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("the tests of cuts need root: they attach images and read the kernel's trace")
    with tempfile.TemporaryDirectory(prefix="pannier-cut-") as place:
        mountpoint = Path(place) / "pool"
        asyncio.run(
            create_pool(mountpoint.with_suffix(".img"), mountpoint=mountpoint, size_bytes=1 << 30)
        )
        try:
            yield mountpoint
        finally:
            assert asyncio.run(close_pool(mountpoint)), "a test left something open in the pool"


@pytest.fixture
def name() -> Iterator[str]:
    """Of an instance of the trace that is gone afterwards."""
    name = f"pannier-test-{os.getpid()}-{next(numbers)}"
    try:
        yield name
    finally:
        tracefs.remove(name)


@pytest.fixture
def tracer(name: str) -> Iterator[Tracer]:
    tracer = Tracer(name)
    try:
        yield tracer
    finally:
        tracer.close()


class Volume:
    """A live image, attached, with a cutter that has begun; and its replica, made of a generation and cuts."""

    def __init__(self, folder: Path, device: LoopDevice, tracer: Tracer) -> None:
        self.folder = folder
        self.image = folder / nocow.IMAGE
        self.device = device
        self.cutter = Cutter(os.stat(device.path).st_rdev, self.image, tracer)
        self.replica = bytearray()

    def restart(self) -> None:
        """Restart the cutter, then take a generation."""
        self.cutter.begin()
        snapshot = self.folder.with_name(f"{self.folder.name}-generation")
        ioctl.create_snapshot(self.folder, target=snapshot, read_only=True)
        self.replica[:] = (snapshot / nocow.IMAGE).read_bytes()
        ioctl.destroy_subvolume(snapshot)

    def cut(self, limit_bytes: int = LIMIT) -> Cut:
        """A cut, which is applied to the replica."""
        found = self.cutter.take(limit_bytes)
        assert isinstance(found, Cut), found
        self.apply(found)
        return found

    def apply(self, cut: Cut) -> None:
        before = 0
        for one in cut.ranges:
            assert before <= one.start < one.end
            assert one.start % 4096 == one.end % 4096 == 0
            before = one.end
            content = bytes(one.end - one.start) if isinstance(one, Zeros) else one.content
            self.replica[one.start : one.end] = content

    @property
    def is_equal(self) -> bool:
        """Whether the replica has what the image has."""
        return bytes(self.replica) == read_direct(self.image)

    def write(self, at: int, content: bytes, *, sync: bool = True) -> None:
        """Write to the device, past everything."""
        write_direct(self.device.path, at, content, sync=sync)

    def setting(self, file: str) -> Path:
        return self.device.settings / file


@contextmanager
def volume(pool: Path, tracer: Tracer, *, size: int = SIZE) -> Iterator[Volume]:
    """A volume with nothing in it."""
    folder = pool / f"volume-{next(numbers)}"
    ioctl.create_subvolume(folder)
    try:
        nocow.make_empty(folder / nocow.IMAGE)
        os.truncate(folder / nocow.IMAGE, size)
        with attached(folder / nocow.IMAGE) as device:
            made = Volume(folder, device, tracer)
            try:
                made.restart()
                yield made
            finally:
                made.cutter.close()
    finally:
        ioctl.destroy_subvolume(folder)


@contextmanager
def mounted_volume(
    pool: Path, tracer: Tracer, *, size: int = SIZE
) -> Iterator[tuple[Volume, Path]]:
    """A volume with an ext4, and where it is mounted."""
    folder = pool / f"volume-{next(numbers)}"
    place = pool.parent / f"mount-{next(numbers)}"
    place.mkdir()
    ioctl.create_subvolume(folder)
    try:
        nocow.make_empty(folder / nocow.IMAGE)
        asyncio.run(
            ext4.make(
                folder / nocow.IMAGE,
                size=size,
                root=RootAttributes(uid=0, gid=0, mode=0o755),
                encrypted=False,
            )
        )
        with attached(folder / nocow.IMAGE) as device:
            made = Volume(folder, device, tracer)
            ext4.mount(device.path, place)
            try:
                made.restart()
                yield made, place
            finally:
                made.cutter.close()
                ext4.unmount(place)
    finally:
        ioctl.destroy_subvolume(folder)


@pytest.fixture
def raw(pool: Path, tracer: Tracer) -> Iterator[Volume]:
    with volume(pool, tracer) as made:
        yield made


def read_direct(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        size = os.fstat(fd).st_size
        with mmap.mmap(-1, size) as buffer:
            at = 0
            while at < size:
                at += os.preadv(fd, [memoryview(buffer)[at : at + (1 << 20)]], at)
            return buffer[:]
    finally:
        os.close(fd)


def write_direct(path: Path, at: int, content: bytes, *, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, len(content)) as buffer:
            buffer[:] = content
            assert os.pwritev(fd, [buffer], at) == len(content)
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)


@contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program beside the test, which says something when it is about to begin; killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline(), "the program ended at once"
        yield process
        assert process.poll() is None, f"the program ended with {process.returncode}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
