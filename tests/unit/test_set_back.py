"""A holder whose disk was set back never serves less than was acknowledged: a copy takes over."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Machine, SparseSnapshotDriver, event_loop_policy

from pannier.core.generation import Generation
from pannier.core.line import LinePlace
from pannier.core.set_back import MOST_RUNS, Noted, lacks_records, noting, proof_of_set_back
from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]


def generations(*texts: str) -> list[Generation]:
    return [Generation.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("ours", "theirs", "proof"),
    [
        ([], [], None),
        (["2.1", "2.2"], ["2.1"], None),
        (["2.2"], ["2.1"], None),  # deleted here since
        (["2.2"], ["1.9", "2.2"], None),
        (["2.2"], ["2.2", "2.3"], "2.3"),
        ([], ["2.1"], "2.1"),
        (["2.2"], ["1.9"], None),
        (["2.2", "3.1"], ["2.9"], None),  # of an earlier epoch: a stray, or from before
        (["3.1"], ["3.1-0f3a94c1"], "3.1-0f3a94c1"),
        (["3.1-77aa00ff"], ["3.1-0f3a94c1"], "3.1-0f3a94c1"),
        (["3.1-77aa00ff", "3.2-77aa00ff"], ["3.1-0f3a94c1", "3.2-0f3a94c1"], "3.2-0f3a94c1"),
    ],
)
def test_what_a_copy_has_proves_it(ours: list[str], theirs: list[str], proof: str | None) -> None:
    epoch = 3 if any(text.startswith("3") for text in (*ours, *theirs)) else 2
    found = proof_of_set_back(generations(*ours), generations(*theirs), epoch=epoch)
    assert (str(found) if found else None) == proof


def place(
    run: str, number: int, *, acknowledged: int = 0, epoch: int = 3, of: int = 5
) -> LinePlace:
    return LinePlace(
        volume="v",
        epoch=epoch,
        run=run,
        number=number,
        generation=Generation(epoch, of),
        included=0,
        acknowledged=acknowledged,
    )


@pytest.mark.parametrize(
    ("last", "lacks"),
    [
        (None, False),
        (place("b", 8, acknowledged=7), False),
        (place("b", 9, acknowledged=7), False),  # a power cut took the note of the last one
        (place("b", 9, acknowledged=8), True),
        (place("a", 5, acknowledged=4), False),  # of a run before
        (place("a", 6, acknowledged=5), True),
        (place("c", 1, acknowledged=0), False),  # nothing of it was answered
        (place("c", 2, acknowledged=1), True),
        (place("c", 2, acknowledged=1, epoch=2), False),
    ],
)
def test_what_a_copy_keeps_in_its_journal_proves_it(last: LinePlace | None, lacks: bool) -> None:
    noted = (Noted(3, "a", 4, began=2), Noted(3, "b", 7, began=5))
    assert lacks_records(noted, last, epoch=3) is lacks


def test_a_run_that_is_forgotten_proves_nothing() -> None:
    noted: tuple[Noted, ...] = ()
    for number in range(MOST_RUNS):
        noted = noting(noted, place(f"run-{number}", 2, of=10 + number))
    assert lacks_records(noted, place("unknown", 2, acknowledged=1, of=9), epoch=3) is False
    assert lacks_records(noted, place("unknown", 2, acknowledged=1, of=10), epoch=3)
    noted = noting(noted, place("one-more", 1, of=100))
    assert len(noted) == MOST_RUNS
    assert noted[0].run == "run-1"


def test_what_is_noted_is_the_newest_record_of_each_run() -> None:
    noted = noting(noting((), place("a", 1, of=5)), place("a", 2, of=6))
    assert noted == (Noted(3, "a", 2, began=5),)
    assert noting(noted, place("a", 1, epoch=4, of=1)) == (Noted(4, "a", 1, began=1),)


@pytest_asyncio.fixture(params=[None, SparseSnapshotDriver], ids=["trees", "images"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[CopiesWorld]:
    wishes = {} if request.param is None else {"driver": request.param}
    async with CopiesWorld(tmp_path, with_upkeep=True, **wishes) as world:
        yield world


async def set_back(world: CopiesWorld, machine: Machine, volume: Volume) -> None:
    """Power off, an older state of the disk put in its place, power on.

    After that state there were two sync calls: the records of one alone prove nothing.
    """
    world.losing(volume)
    world.set_back.add(volume.grant)
    older = copy.deepcopy(machine.disk.homes)
    for file in ("later", "last"):
        world.put(machine, volume, file, b"acknowledged")
        await world.sync(machine)
    await world.down(machine)
    machine.disk.homes = older
    await machine.start()


async def test_the_copy_takes_over_with_all_that_was_acknowledged(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await set_back(world, world.a, volume)
    await world.until(lambda: world.now_record().grant.node == "b")
    record = world.now_record()
    assert record.grant.epoch == 2
    assert "whose disk was set back" in record.history[-1].detail
    await world.mount(world.b, "vol")
    tree = world.b.disk.homes[volume.id].live[2]
    assert tree.content["later"] == b"acknowledged"
    await world.until(lambda: world.now_record().in_sync == ("a",))  # and it is a copy now


async def test_a_container_on_the_node_gets_the_volume_from_the_copy(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await set_back(world, world.a, volume)
    await world.mount(world.a, "vol")
    epoch = world.now_record().grant.epoch
    assert epoch == 3
    assert world.a.disk.homes[volume.id].live[epoch].content["later"] == b"acknowledged"


async def test_a_copy_that_comes_back_later_is_not_overwritten(world: CopiesWorld) -> None:
    """It was down when the holder came back: what it alone has decides."""
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    world.set_back.add(volume.grant)
    older = copy.deepcopy(world.a.disk.homes)
    for file in ("later", "last"):
        world.put(world.a, volume, file, b"acknowledged")
        await world.sync(world.a)
    await world.down(world.a)
    await world.down(world.b)
    world.a.disk.homes = older
    await world.a.start()
    await asyncio.sleep(5)
    await world.b.start()
    await world.until(lambda: world.now_record().grant.node == "b")
    await world.mount(world.b, "vol")
    assert world.b.disk.homes[volume.id].live[2].content["later"] == b"acknowledged"


async def test_a_disk_that_was_not_set_back_is_served_at_once(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await world.down(world.a)
    await world.a.start()
    began = asyncio.get_running_loop().time()
    await world.mount(world.a, "vol")
    assert world.now_record().grant.epoch == 1
    assert asyncio.get_running_loop().time() - began < 5
