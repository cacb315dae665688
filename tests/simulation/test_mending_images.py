"""Real images on real pools, with the whole of each node around them: damage from finding it to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from test_driver_kit import overwrite, pools, workplace
from world import Machine

from pannier.contract.views import CheckView
from pannier.core.lease import Terms
from pannier.core.pace import Pace
from pannier.storage.image.driver import ImageDriver

__all__ = ["pools", "workplace"]
pytestmark = pytest.mark.root
PACE = Pace()
# Short pauses, since time is real; and long limits, since the machine may be busy.
PACE = replace(
    PACE,
    copies=replace(
        PACE.copies, verify_turn=0.5, verify_finish=0.25, patience=100.0, lag=100.0, mend=100.0
    ),
    holding=replace(PACE.holding, promise=0.5, tidy_after=0.5),
)


class ImageWorld(CopiesWorld):
    """Nodes whose volumes are on pools of their own, in real time."""

    terms = Terms(30.0)
    """Longer than a busy machine keeps a node from renewing its lease."""

    def __init__(self, directory: Path, mountpoints: list[Path], staging: Path) -> None:
        super().__init__(directory, with_upkeep=True, pace=PACE)
        self.images = {
            name: ImageDriver(mountpoint, staging=staging / name)
            for name, mountpoint in zip(self.machines, mountpoints, strict=True)
        }

    def make_driver(self, machine: Machine) -> ImageDriver:
        return self.images[machine.name]

    def inspect(self) -> None:
        """The disks in memory are empty here; what is on the real ones, the test looks at."""


@pytest.fixture
async def world(tmp_path: Path, pools: list[Path], workplace: Path) -> AsyncIterator[ImageWorld]:
    world = ImageWorld(tmp_path, pools, workplace / "staging-of-nodes")
    (workplace / "staging-of-nodes").mkdir(exist_ok=True)
    async with world:
        await asyncio.sleep(PACE.holding.promise)
        yield world
        found = world.record("vol")
    for driver in world.images.values():
        if found is not None:
            await driver.delete(found.id)
        await driver.close()


async def written(world: ImageWorld, name: str, content: bytes) -> None:
    """A file that all have."""
    with (world.a.table.mounts["vol"] / name).open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    await world.a.ask(lambda run: run.acknowledging.make_durable("vol"))


async def volume_with(world: ImageWorld, wanted: bytes) -> None:
    await world.create(world.a, "vol", copies="2", size="64M")
    await world.mount(world.a, "vol")
    await world.until(lambda: world.now_record().in_sync)
    await written(world, "file", wanted)
    await written(world, "other", os.urandom(4096))


def overwrite_each(driver: ImageDriver, content: bytes) -> None:
    """Change a block in each place of the pool that has it: each generation may have its own."""
    overwrite(driver, content)
    with contextlib.suppress(AssertionError):
        while True:
            overwrite(driver, content)


async def verify(world: ImageWorld) -> dict[str, CheckView]:
    checks = await world.c.ask(lambda run: run.service.verify_volume("vol"))
    return {check.node: check for check in checks}


def states(checks: dict[str, CheckView]) -> dict[str, str]:
    return {node: str(check.state) for node, check in checks.items()}


async def test_a_block_of_a_copy_is_mended(world: ImageWorld) -> None:
    wanted = os.urandom(4096)
    await volume_with(world, wanted)
    (copy,) = world.now_record().replicas
    assert states(await verify(world)) == {"a": "whole", copy: "whole"}
    whole = sum(sent.base is None for sent in world.sent)
    overwrite(world.images[copy], wanted)
    assert states(await verify(world))[copy] == "mended"
    await written(world, "third", os.urandom(4096))
    assert states(await verify(world)) == {"a": "whole", copy: "whole"}
    assert world.now_record().in_sync == (copy,)
    assert sum(sent.base is None for sent in world.sent) == whole
    assert "mended" in {line.what for line in world.now_record().history}


async def test_a_copy_that_is_mended_under_a_writer_refuses_nothing(world: ImageWorld) -> None:
    """What is on its way while it is mended has the damaged block, too."""
    wanted = os.urandom(4096)
    await volume_with(world, wanted)
    (copy,) = world.now_record().replicas
    ended = False
    pause = asyncio.Lock()

    async def writer() -> int:
        synced = 0
        while not ended:
            async with pause:
                await written(world, f"more-{synced % 8}", os.urandom(1 << 16))
            synced += 1
        return synced

    writing = asyncio.ensure_future(writer())
    try:
        for _ in range(3):
            async with pause:  # else the block's place may belong to another file by then
                await asyncio.to_thread(overwrite_each, world.images[copy], wanted)
            assert states(await verify(world))[copy] == "mended"
    finally:
        ended = True
        synced = await writing
    assert synced
    assert world.progress(world.a, world.now_record())[copy].failures == 0
    assert states(await verify(world)) == {"a": "whole", copy: "whole"}


async def test_a_damaged_holder_is_moved_away_from_and_made_anew(world: ImageWorld) -> None:
    wanted = os.urandom(4096)
    await volume_with(world, wanted)
    (copy,) = world.now_record().replicas
    overwrite(world.images["a"], wanted)
    checks = await verify(world)
    assert states(checks) == {"a": "damaged", copy: "whole"}
    assert checks["a"].remedy == f"pannier volume move vol {copy}"
    await world.unmount(world.a, "vol")
    there = world.machines[copy]
    await world.move(there, "vol", copy)
    await world.mount(there, "vol")
    assert (there.table.mounts["vol"] / "file").read_bytes() == wanted
    await world.until(
        lambda: ("a", "made anew") in [(e.node, e.what) for e in world.now_record().history]
    )
    while not (await world.images["a"].inspect(world.now_record().id)).generations:
        await asyncio.sleep(0.05)
    await world.until(lambda: world.now_record().in_sync == ("a",))
    checks = await verify(world)
    assert states(checks) == {copy: "whole", "a": "whole"}
    assert not (await world.c.ask(lambda run: run.service.volume("vol"))).damage
