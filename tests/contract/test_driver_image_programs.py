"""Random programs on real pools: whatever is written, discarded and zeroed, copied away and back, both ends
of a difference are equal byte for byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_driver_kit import Nodes, image_nodes, pools, workplace

from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import Driver
from pannier.storage.btrfs.subvolumes import SubvolumeDriver
from pannier.storage.image import loopdevice
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

SIZE = 64 << 20
BLOCK = 4096
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
ROUNDS = 12


@contextmanager
def opened(image: Path) -> Iterator[int]:
    """The image's loop device, as ext4 writes to it."""
    with loopdevice.attached(image) as device:
        fd = os.open(device.path, os.O_RDWR | os.O_DIRECT)
        try:
            yield fd
        finally:
            os.fsync(fd)
            os.close(fd)


def change(device: int, chance: random.Random, content: mmap.mmap) -> None:
    """One write, discard or zeroing of a few blocks, sometimes of many."""
    blocks = chance.choice((1, 1, 1, 2, 16, 256))
    start = chance.randrange(0, SIZE // BLOCK - blocks) * BLOCK
    length = blocks * BLOCK
    match chance.choices(("write", "discard", "zero"), (8, 1, 1))[0]:
        case "write":
            content[:64] = chance.randbytes(64)
            os.pwritev(device, [memoryview(content)[:length]], start)
        case "discard":
            fcntl.ioctl(device, BLKDISCARD, struct.pack("<QQ", start, length))
        case "zero":
            fcntl.ioctl(device, BLKZEROOUT, struct.pack("<QQ", start, length))
    if chance.random() < 0.1:
        os.fsync(device)


def hash_of(driver: Driver, volume: str, generation: Generation) -> str:
    tree = driver._home(volume).tree(generation)  # type: ignore[attr-defined]
    with (tree / IMAGE).open("rb") as image:
        return hashlib.file_digest(image, "blake2b").hexdigest()


def snapshot(driver: Driver, volume: str, epoch: int) -> Generation:
    """A generation of an image that we write to; the driver would not make one."""
    home = driver._home(volume)  # type: ignore[attr-defined]
    return SubvolumeDriver._snapshot(driver, home, epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
async def test_both_ends_of_a_difference_are_equal(image_nodes: Nodes, seed: int) -> None:
    """Snapshots come in the midst of writes, and the holder changes now and then."""
    chance, volume = random.Random(seed), image_nodes.volume
    holder, copy, other = image_nodes.a, image_nodes.b, image_nodes.c
    await holder.create(volume, epoch=1, root=image_nodes.root, size_bytes=SIZE)
    epoch = 1
    common: Generation | None = None
    with mmap.mmap(-1, 1 << 20) as content:
        for _ in range(ROUNDS):
            image = holder._home(volume).live(epoch) / IMAGE  # type: ignore[attr-defined]
            with opened(image) as device:
                for _ in range(chance.randrange(1, 40)):
                    change(device, chance, content)
                generation = snapshot(holder, volume, epoch)
                for _ in range(chance.randrange(5)):
                    change(device, chance, content)
            await image_nodes.transfer(holder, copy, generation, common)
            assert hash_of(copy, volume, generation) == hash_of(holder, volume, generation)
            if common is not None and chance.random() < 0.5:
                await holder.delete_generation(volume, common)
            common = generation
            if chance.random() < 0.3:
                await holder.seal(volume, epoch=epoch)
                await holder.drop_live(volume, epoch=epoch)
                epoch += 1
                await copy.promote(volume, common, epoch=epoch, size_bytes=None, on_top=OnTop.ALL)
                holder, copy = copy, holder
        assert common is not None
        await image_nodes.transfer(holder, other, common)
    assert hash_of(other, volume, common) == hash_of(holder, volume, common)
