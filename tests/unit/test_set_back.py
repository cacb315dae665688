"""A holder whose disk was set back never serves less than was acknowledged: a copy takes over."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Fault, Machine, SparseSnapshotDriver, event_loop_policy

from pannier.contract.volumes import LiveVolumeView, VolumeCopyView
from pannier.core.errors import DeadlineExceeded, PannierError, PeerUnavailable, Unavailable
from pannier.core.generation import Generation
from pannier.core.line import LinePlace
from pannier.core.set_back import (
    MOST_RUNS,
    Noted,
    lacks_confirmed,
    lacks_records,
    noting,
    proof_of_set_back,
)
from pannier.core.volume import Volume
from pannier.node.peer_service import PeerService

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


FIRST, SECOND = generations("3.5-0f3a94c1", "3.6-0f3a94c1")


@pytest.mark.parametrize(
    ("ours", "last", "confirmed", "record", "lacks"),
    [
        ([], None, None, None, False),
        ([FIRST], None, FIRST, None, False),
        ([SECOND], None, FIRST, None, False),
        ([], None, FIRST, None, True),
        ([FIRST], None, SECOND, None, True),
        (generations("3.5-77aa00ff"), None, FIRST, None, True),
        (generations("3.5-0f3a94c1", "3.5-77aa00ff"), None, FIRST, None, False),
        ([FIRST], place("a", 3), FIRST, ("a", FIRST, 3), False),
        ([FIRST], place("a", 4), FIRST, ("a", FIRST, 3), False),
        ([FIRST], place("a", 2), FIRST, ("a", FIRST, 3), True),
        ([FIRST], place("b", 3), FIRST, ("a", FIRST, 3), True),
        ([FIRST], None, FIRST, ("a", FIRST, 1), True),
        ([SECOND], None, FIRST, ("a", FIRST, 3), False),  # the generation has that record
        ([FIRST], place("a", 3), FIRST, ("a", SECOND, 4), True),
    ],
)
def test_what_its_holder_was_told_proves_that_a_copys_disk_was_set_back(
    ours: list[Generation],
    last: LinePlace | None,
    confirmed: Generation | None,
    record: tuple[str, Generation, int] | None,
    lacks: bool,
) -> None:
    assert lacks_confirmed(ours, last, generation=confirmed, record=record) is lacks


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


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_that_lacks_something_itself_is_given_nothing(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    world.set_back.add(volume.grant)
    older = copy.deepcopy(world.a.disk.homes)
    for file in ("later", "last"):
        world.put(world.a, volume, file, b"acknowledged")
        await world.sync(world.a)
    await world.down(world.a)
    world.a.disk.homes = older
    world.b.disk.journal = replace(world.b.disk.journal, damaged={volume.id: "no end of it"})
    await world.a.start()
    await asyncio.sleep(30)
    assert world.now_record().grant.node == "a"
    assert len([step for step in world.steps if (step.of, step.label) == ("a", "peer.volume")]) < 40
    world.b.disk.journal = replace(world.b.disk.journal, damaged={})
    await world.until(lambda: world.now_record().grant.node == "b")


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


# -- a copy's disk --------------------------------------------------------------------------------------


async def copy_set_back(world: CopiesWorld, volume: Volume) -> None:
    """The copy confirms a record, and the disk that it starts with has not got it."""
    older = copy.deepcopy(world.b.disk.homes)
    world.put(world.a, volume, "later", b"acknowledged")
    await world.sync(world.a)
    assert len(world.b.disk.homes[volume.id].records) > len(older[volume.id].records)
    world.careless.add("b")
    await world.down(world.b)
    world.b.disk.homes = older
    await world.b.start()


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_finds_at_its_start_that_its_disk_was_set_back(world: CopiesWorld) -> None:
    """Nothing is written any more: no record shows it."""
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "first", b"1")
    await world.sync(world.a)
    await copy_set_back(world, volume)
    await world.until(lambda: volume.id in world.b.disk.journal_lost, seconds=5)
    await world.until(lambda: volume.id not in world.b.disk.journal_lost, seconds=10)
    assert world.now_record().in_sync == ("b",)
    world.careless.clear()
    world.losing(volume)
    await world.down(world.a)
    await world.mount(world.b, "vol")
    assert world.now_record().grant.node == "b"
    assert world.contents("vol") == {"synced": b"1", "first": b"1", "later": b"acknowledged"}


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_that_was_set_back_takes_nothing_over_before_its_holder_has_heard(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "first", b"1")
    await world.sync(world.a)
    world.fail_at_label("peer.lost_copy", Fault.LOSE_REQUEST, of="b")
    await copy_set_back(world, volume)
    await world.until(lambda: volume.id in world.b.disk.journal_lost, seconds=5)
    world.losing(volume)
    await world.down(world.a)
    for _ in range(2):  # it is remembered
        await asyncio.sleep(15)
        with pytest.raises((Unavailable, PeerUnavailable, DeadlineExceeded)):
            await world.mount(world.b, "vol")
        await world.down(world.b)
        await world.b.start()
    assert world.now_record().grant.node == "a"


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_that_only_restarts_goes_on_counting(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "first", b"1")
    await world.sync(world.a)
    lost = [step for step in world.steps if "lost_copy" in step.label]
    await world.down(world.b)
    await world.b.start()
    await asyncio.sleep(5)
    assert lost == [step for step in world.steps if "lost_copy" in step.label] == []
    assert world.b.disk.journal_lost == set()


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_whose_journal_lost_something_is_mended_also_where_nothing_is_written(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    world.b.disk.journal_lost.add(volume.id)
    await world.until(lambda: not world.b.disk.journal_lost, seconds=10)
    assert [step.label for step in world.steps if "lost_copy" in step.label]
    assert world.now_record().in_sync == ("b",)


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_holder_is_asked_about_one_copy_after_the_other_and_once(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = [await world.synced_volume(world.a, f"vol-{number}") for number in range(12)]
    copies = [volume.name for volume in volumes if "b" in volume.replicas]
    asked: list[str] = []
    now = most = 0
    real = PeerService.peer_volume

    async def peer_volume(self: PeerService, name: str) -> LiveVolumeView | VolumeCopyView:
        nonlocal now, most
        asked.append(name)
        now += 1
        most = max(now, most)
        await asyncio.sleep(0.05)
        now -= 1
        return await real(self, name)

    monkeypatch.setattr(PeerService, "peer_volume", peer_volume)
    await world.down(world.b)
    await world.b.start()
    await asyncio.sleep(30)
    assert sorted(asked) == sorted(copies)
    assert most == 1


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_holder_that_does_not_answer_delays_no_other(world: CopiesWorld) -> None:
    """It has the volumes that come first."""
    silent = world.machines["c"]
    for number in range(5):
        await world.synced_volume(silent, f"first-{number}", copies="3")
    volume = await world.saved_volume(world.a, copies="3")
    older = copy.deepcopy(world.b.disk.homes)
    world.put(world.a, volume, "later", b"acknowledged")
    await world.sync(world.a)
    world.careless.add("b")
    await world.down(world.b)
    world.b.disk.homes = older
    silent.freeze()
    await world.b.start()
    await world.until(lambda: volume.id in world.b.disk.journal_lost, seconds=2)
    silent.thaw()


@pytest.mark.parametrize("world", [SparseSnapshotDriver], indirect=True)
async def test_a_copy_of_a_dead_holder_takes_over_without_asking_it(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    world.b.power_off()
    await world.down(world.a)
    await world.b.start()
    began = asyncio.get_running_loop().time()
    await world.until(lambda: world.b.run is not None and world.b.run.serving)
    while world.now_record().grant.node == "a":
        with contextlib.suppress(PannierError):
            await world.mount(world.b, "vol")
    # It waits for as long as it may have promised something, and for nothing else.
    assert asyncio.get_running_loop().time() - began < 12
    assert world.contents("vol") == {"synced": b"1"}
