"""Snapshots of images on real pools: a generation is sent in any order, and a volume goes back to one."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import cast

import pytest
from test_driver_kit import Nodes, image_nodes, pools, sync_everything, workplace

from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.storage.base import Driver
from pannier.storage.image.driver import ImageDriver
from pannier.storage.image.nocow import IMAGE

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

LITTLE = 4 << 20


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


async def written(nodes: Nodes, data: Path, name: str, *, size: int = 1 << 20) -> Generation:
    """A generation with one file more, or with other bytes in it."""
    (data / name).write_bytes(os.urandom(size))
    sync_everything(data)
    return await nodes.a.snapshot(nodes.volume, epoch=1)


def image_of(driver: Driver, volume: str, generation: Generation) -> bytes:
    """A digest of all bytes of a generation."""
    tree = cast("ImageDriver", driver)._home(volume).tree(generation)
    digest = blake2b()
    with open(tree / IMAGE, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


async def test_generations_arrive_in_any_order_and_only_what_differs_is_sent(nodes: Nodes) -> None:
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(24 << 20))
    made = [await written(nodes, data, name) for name in ("one", "two", "one", "three")]
    await nodes.transfer(nodes.a, nodes.b, made[3])
    assert await nodes.transfer(nodes.a, nodes.b, made[0], made[3]) < LITTLE
    assert await nodes.transfer(nodes.a, nodes.b, made[2], made[0]) < LITTLE
    assert await nodes.transfer(nodes.a, nodes.b, made[1], made[2]) < LITTLE
    made.append(await written(nodes, data, "four"))
    assert await nodes.transfer(nodes.a, nodes.b, made[4], made[3]) < LITTLE
    for generation in made:
        ours, theirs = (image_of(node, nodes.volume, generation) for node in (nodes.a, nodes.b))
        assert ours == theirs, str(generation)


async def test_who_got_them_in_that_order_sends_them_on(nodes: Nodes) -> None:
    """On its pool, the older of two was written later."""
    data = await nodes.create()
    (data / "bulk").write_bytes(os.urandom(24 << 20))
    made = [await written(nodes, data, name) for name in ("one", "two", "one")]
    await nodes.transfer(nodes.a, nodes.b, made[2])
    await nodes.transfer(nodes.a, nodes.b, made[0], made[2])
    await nodes.b.promote(nodes.volume, made[2], epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    await nodes.transfer(nodes.b, nodes.c, made[0])
    await nodes.transfer(nodes.b, nodes.c, made[2], made[0])
    await nodes.transfer(nodes.a, nodes.c, made[1], made[2])
    for generation in made:
        ours, theirs = (image_of(node, nodes.volume, generation) for node in (nodes.a, nodes.c))
        assert ours == theirs, str(generation)
