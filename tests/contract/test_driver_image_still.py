"""Images that stand still for a moment, on real pools: who writes waits, and goes on whatever happens."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from test_driver_kit import Nodes, image_nodes, pools, sync_everything, workplace

from pannier.core.errors import Conflict
from pannier.core.line import OnTop
from pannier.storage.image import ext4
from pannier.storage.image.driver import ImageDriver

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root

LONG = 20.0
"""Longer than anything here takes, in seconds."""


@pytest.fixture
def nodes(image_nodes: Nodes) -> Nodes:
    return image_nodes


def holder(nodes: Nodes) -> ImageDriver:
    assert isinstance(nodes.a, ImageDriver)
    return nodes.a


def writer(data: Path) -> subprocess.Popen[bytes]:
    """A process that makes a file."""
    return subprocess.Popen(["/bin/sh", "-c", f"echo x >{data}/late"])


def has_ended(process: subprocess.Popen[bytes], *, within: float) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


async def test_who_writes_waits_and_the_generation_has_nothing_of_it(nodes: Nodes) -> None:
    driver, data = holder(nodes), await nodes.create()
    (data / "early").write_bytes(b"x")
    assert await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    late = writer(data)
    assert not has_ended(late, within=0.5)
    generation = await driver.snapshot(nodes.volume, epoch=1)
    assert await driver.let_go(nodes.volume, epoch=1)
    assert has_ended(late, within=LONG / 2)
    await nodes.transfer(nodes.a, nodes.b, generation)
    await nodes.b.promote(nodes.volume, generation, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    there = await nodes.attached(nodes.b, epoch=2)
    assert [each.name for each in there.iterdir()] == ["early"]
    assert not await driver.let_go(nodes.volume, epoch=1), "it may be repeated"


async def test_it_goes_on_by_itself_and_that_is_told(nodes: Nodes) -> None:
    driver, data = holder(nodes), await nodes.create()
    assert await driver.hold_still(nodes.volume, epoch=1, seconds=0.3)
    late = writer(data)
    assert has_ended(late, within=LONG), "nothing of the daemon's event loop runs meanwhile"
    assert not await driver.let_go(nodes.volume, epoch=1)
    (data / "later").write_bytes(b"x")
    assert await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    assert await driver.let_go(nodes.volume, epoch=1)
    sync_everything(data)


async def test_whoever_lets_it_go_is_noticed(nodes: Nodes) -> None:
    driver = holder(nodes)
    place = (await nodes.create()).parent
    await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    ext4.thaw(place)  # as an agent for backups does
    assert not await driver.let_go(nodes.volume, epoch=1)
    await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    await driver.thaw(nodes.volume)  # as who kills its users
    assert not await driver.let_go(nodes.volume, epoch=1)
    (place / "data" / "after").write_bytes(b"x")


async def test_what_is_frozen_is_not_held(nodes: Nodes) -> None:
    driver = holder(nodes)
    place = (await nodes.create()).parent
    ext4.freeze(place)
    try:
        with pytest.raises(Conflict, match="frozen already"):
            await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    finally:
        ext4.thaw(place)


async def test_looks_at_the_pool_s_room_leave_it_held(nodes: Nodes) -> None:
    driver, data = holder(nodes), await nodes.create()
    await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    late = writer(data)
    await driver.restrict(full=False, limits=None, frozen=frozenset())
    assert not has_ended(late, within=0.3)
    await driver.restrict(full=True, limits=None, frozen=frozenset([nodes.volume]))
    assert await driver.let_go(nodes.volume, epoch=1)
    assert not has_ended(late, within=0.3), "there is no room yet"
    await driver.restrict(full=False, limits=None, frozen=frozenset())
    assert has_ended(late, within=LONG)


async def test_one_that_is_not_attached_needs_nothing(nodes: Nodes) -> None:
    driver = holder(nodes)
    await nodes.create()
    await driver.detach(nodes.volume, epoch=1)
    assert not await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    assert not await driver.let_go(nodes.volume, epoch=1)


async def test_the_next_daemon_lets_it_go(nodes: Nodes) -> None:
    driver, data = holder(nodes), await nodes.create()
    await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    late = writer(data)
    another = ImageDriver(driver._mountpoint, staging=data.parents[1])
    await another.open()
    assert not has_ended(late, within=0.3)
    await another.restrict(full=False, limits=None, frozen=frozenset())
    assert has_ended(late, within=LONG)
    assert not await driver.let_go(nodes.volume, epoch=1)
    another._image(nodes.volume, 1)._watched.forget()  # as the end of its process does


async def test_the_driver_s_end_lets_it_go(nodes: Nodes) -> None:
    driver, data = holder(nodes), await nodes.create()
    await driver.hold_still(nodes.volume, epoch=1, seconds=LONG)
    late = writer(data)
    await driver.close()
    assert has_ended(late, within=LONG)
    await driver.open()
    await asyncio.sleep(0)
    assert os.path.exists(data / "late")
