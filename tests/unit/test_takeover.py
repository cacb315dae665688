"""When a holder is gone, a copy that has everything goes on by itself: in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Died, Fault, Machine, SparseSnapshotDriver, event_loop_policy

from pannier.core.errors import Conflict, Corrupt, DeadlineExceeded, PeerUnavailable, Unavailable
from pannier.core.volume import Grant, Volume
from pannier.holding.takeover import Takeover

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        await asyncio.sleep(15)  # what an earlier run might have promised is over
        yield world


def stranger_to(world: CopiesWorld, volume: Volume) -> Machine:
    copies = ("a", *volume.replicas)
    return next(m for name, m in world.machines.items() if name not in copies)


async def test_what_was_synced_is_there_after_the_holder_lost_its_power(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    world.losing(volume)
    world.put(world.a, volume, "not-synced", b"1")
    began = asyncio.get_running_loop().time()
    world.a.power_off()
    await world.mount(replica, "vol")
    took = asyncio.get_running_loop().time() - began
    assert 3.0 <= took <= 6.0, "when the lease has run out, and not much later"
    assert world.now_record().grant == Grant(replica.name, 2)
    assert world.contents("vol")["synced"] == b"1"
    assert world.now_record().history[-1].what == "taken over"


async def test_a_mount_on_a_node_without_a_copy_gets_it_from_the_one_that_took_over(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    other = stranger_to(world, volume)
    world.a.power_off()
    await world.mount(other, "vol")
    record = world.now_record()
    assert record.grant == Grant(other.name, 3)
    assert [entry.what for entry in record.history] == ["created", "taken over", "moved"]
    assert world.contents("vol")["synced"] == b"1"


async def test_without_a_copy_in_sync_it_is_refused_and_says_who_has_one(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica, other = world.replica(volume), stranger_to(world, volume)
    replica.power_off()
    world.a.power_off()
    with pytest.raises(Unavailable) as refusal:
        await world.mount(other, "vol")
    assert "node a, which holds volume vol, is down" in refusal.value.message
    assert replica.name in refusal.value.message
    assert refusal.value.remedy == f"start one of a, {replica.name}"
    await replica.start()
    await world.mount(other, "vol")
    assert world.contents("vol")["synced"] == b"1"


async def test_a_copy_that_does_not_answer_is_asked_again_after_a_pause(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    other = stranger_to(world, volume)
    world.a.power_off()
    tries = 0

    async def silent(self: Takeover, volume: Volume) -> Volume:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.001)
        raise PeerUnavailable("it has just gone", remedy="wait")

    monkeypatch.setattr(Takeover, "arrange", silent)
    with pytest.raises(PeerUnavailable):
        await world.mount(other, "vol")
    assert 1 < tries < 100


async def test_a_copy_that_is_not_in_sync_does_not_take_over(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica = world.replica(volume)
    await world.down(replica)
    world.put(world.a, volume, "later", b"1")
    await world.sync(world.a)
    assert world.now_record().in_sync == ()
    world.isolate("a")
    world.cut_store("a")
    await replica.start()
    await asyncio.sleep(20)
    world.a.power_off()
    with pytest.raises(PeerUnavailable, match="copies are on"):
        await world.mount(replica, "vol")
    assert world.now_record().grant == Grant("a", 1)


async def test_a_live_holder_is_asked_and_not_robbed(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await world.run_container(world.a, "vol", "m2")
    with pytest.raises(DeadlineExceeded, match="still on node a"):
        await world.mount(world.replica(volume), "vol")
    assert world.now_record().grant == Grant("a", 1)


async def test_the_newest_of_the_copies_that_are_kept_by_intervals_takes_over(
    world: CopiesWorld,
) -> None:
    volume = await world.volume(world.a, copies="3", durability="interval")
    await world.until(lambda: set(world.now_record().in_sync) == {"b", "c"})
    world.cut_link("a", "b")
    world.put(world.a, volume, "newest", b"1")
    await world.until(lambda: world.current(world.c, volume))
    assert world.now_record().in_sync == ("b", "c"), "not yet too late"
    world.losing(volume)
    world.a.power_off()
    world.mend_links()
    await world.mount(world.b, "vol")
    record = world.now_record()
    assert record.grant == Grant("b", 3)
    assert record.history[-2].node == "c"
    assert world.contents("vol") == {"newest": b"1"}


async def test_the_former_holder_keeps_its_stray_and_becomes_a_copy_that_counts(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica = world.replica(volume)
    world.isolate("a")
    world.cut_store("a")
    world.put(world.a, volume, "stray", b"1")
    await world.mount(replica, "vol")
    world.mend_links()
    world.mend_store()
    await world.until(lambda: world.now_record().in_sync == ("a",))
    assert "stray" in world.a.disk.homes[volume.id].live[1].content
    assert "stray" not in world.copy(world.a, volume)
    world.put(replica, volume, "after", b"1")
    await world.sync(replica)
    assert world.copy(world.a, volume)["after"] == b"1"


async def test_two_nodes_that_take_over_at_once(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    world.losing(volume)
    world.a.power_off()
    mounts = [asyncio.ensure_future(world.mount(m, "vol")) for m in (world.b, world.c)]
    done, _ = await asyncio.wait(mounts, return_when=asyncio.FIRST_COMPLETED)
    assert world.now_record().grant.epoch == 2
    assert all(one.exception() is None for one in done)
    for one in mounts:
        one.cancel()


async def test_after_a_start_a_node_takes_nothing_over_that_it_may_have_promised_not_to(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica = world.replica(volume)
    world.a.power_off()
    replica.crash()
    await asyncio.sleep(6)
    await replica.start()
    began = asyncio.get_running_loop().time()
    await world.mount(replica, "vol")
    assert asyncio.get_running_loop().time() - began >= 9.0


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("label", ["store.commit", "driver.promote", "driver.snapshot"])
async def test_a_taker_that_loses_its_power_on_the_way_can_be_asked_again(
    world: CopiesWorld, label: str, fault: Fault
) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica = world.replica(volume)
    world.a.power_off()
    await asyncio.sleep(6)
    world.fail_at_label(label, fault, of=replica.name)
    with contextlib.suppress(Died):
        await world.mount(replica, "vol")
    await world.until(lambda: replica.run is None)
    await replica.start()
    await world.mount(replica, "vol")
    assert world.now_record().grant == Grant(replica.name, 2)
    assert world.contents("vol")["synced"] == b"1"


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_a_takeover_whose_answer_never_came(world: CopiesWorld, fault: Fault) -> None:
    volume = await world.synced_volume(world.a)
    world.losing(volume)
    replica = world.replica(volume)
    world.a.power_off()
    world.fail_at_label("store.commit", fault, of=replica.name)
    await world.mount(replica, "vol")
    assert world.now_record().grant == Grant(replica.name, 2)
    await asyncio.sleep(40)
    assert world.now_record().grant == Grant(replica.name, 2)


# -- a copy that may lack what it has confirmed --------------------------------------------------------


@pytest_asyncio.fixture
async def images(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        await asyncio.sleep(15)
        yield world


@pytest.mark.parametrize("typed_on", ["b", "c"])
async def test_a_copy_whose_journal_lost_something_goes_on_by_a_persons_word_only(
    images: CopiesWorld, typed_on: str
) -> None:
    volume = await images.saved_volume(images.a)
    images.b.disk.journal_lost.add(volume.id)
    images.losing(volume)
    await images.down(images.a)
    typed = images.machines[typed_on]
    with pytest.raises((Unavailable, PeerUnavailable, DeadlineExceeded)):
        await images.mount(typed, "vol")
    assert images.now_record().grant == Grant("a", 1)
    record = await images.recover(typed)
    assert record.grant == Grant("b", 2)
    assert images.contents("vol") == {"synced": b"1"}


async def test_of_two_copies_the_one_that_lacks_nothing_takes_over(images: CopiesWorld) -> None:
    volume = await images.saved_volume(images.a, copies="3")
    images.b.disk.journal_lost.add(volume.id)
    images.losing(volume)
    await images.down(images.a)
    await images.mount(images.b, "vol")
    assert [entry.node for entry in images.now_record().history if entry.what == "taken over"] == [
        "c"
    ]
    assert images.contents("vol") == {"synced": b"1"}


async def records(world: CopiesWorld, volume: Volume, *files: str) -> None:
    """Sync calls whose files only records have."""
    for file in files:
        world.put(world.a, volume, file, file.encode())
        await world.sync(world.a)


def kept(machine: Machine, volume: Volume) -> list[int]:
    """The numbers of the records that its journal has."""
    return [place.number for place, _ in machine.disk.homes[volume.id].records]


@pytest.mark.parametrize("typed_on", ["b", "c"])
async def test_a_person_gets_what_is_before_a_record_that_is_lost_and_is_told_what_that_is(
    images: CopiesWorld, typed_on: str
) -> None:
    volume = await images.saved_volume(images.a)
    await records(images, volume, "one", "two", "three")
    assert len(kept(images.b, volume)) == 3
    images.losing(volume)
    await images.down(images.a)
    del images.b.disk.homes[volume.id].records[1]
    images.b.disk.journal_lost.add(volume.id)
    typed = images.machines[typed_on]
    with pytest.raises(Conflict, match="a part of the journal is damaged") as refusal:
        await images.recover(typed, accept=False)
    assert "--accept-loss" in refusal.value.remedy
    record = await images.recover(typed)
    assert record.grant == Grant("b", 2)
    assert "is lost: a part of the journal is damaged; record" in record.history[-1].detail
    await images.mount(images.b, "vol")
    assert images.contents("vol") == {"synced": b"1", "one": b"one"}


@pytest.mark.parametrize("typed_on", ["b", "c"])
async def test_what_is_lost_after_a_takeover_and_before_its_first_mount_is_never_left_out_silently(
    images: CopiesWorld, typed_on: str
) -> None:
    volume = await images.saved_volume(images.a)
    await records(images, volume, "one", "two")
    images.losing(volume)
    await images.down(images.a)
    images.fail_at_label("driver.promote", Fault.CUT_BEFORE, of="b")
    with contextlib.suppress(Died):
        await images.mount(images.b, "vol")
    await images.until(lambda: images.b.run is None)
    assert images.now_record().grant == Grant("b", 2)
    images.synced.pop(volume.id)
    del images.b.disk.homes[volume.id].records[-1]
    images.b.disk.journal_lost.add(volume.id)
    await images.b.start()
    with pytest.raises(Corrupt, match="may lack what it has confirmed"):
        await images.mount(images.b, "vol")
    assert images.b.disk.homes[volume.id].live == {}
    typed = images.machines[typed_on]
    with pytest.raises(Conflict, match="is up"):
        await images.recover(typed, accept=False)
    for _ in range(2):
        record = await images.recover(typed)
    assert record.grant == Grant("b", 2)
    assert [entry.what for entry in record.history] == ["created", "taken over", "recovered"]
    await images.mount(images.b, "vol")
    assert images.contents("vol") == {"synced": b"1", "one": b"one"}
    with pytest.raises(Conflict, match="is up"):
        await images.recover(typed)


async def test_what_its_holder_gives_away_needs_no_journal(images: CopiesWorld) -> None:
    volume = await images.saved_volume(images.a)
    await records(images, volume, "one")
    images.b.disk.journal_lost.add(volume.id)
    await images.mount(images.b, "vol")
    assert images.now_record().grant == Grant("b", 2)
    assert images.contents("vol") == {"synced": b"1", "one": b"one"}


async def test_of_copies_that_are_kept_by_intervals_the_one_with_more_records_takes_over(
    images: CopiesWorld,
) -> None:
    volume = await images.volume(images.a, copies="3", durability="interval")
    await images.until(lambda: set(images.now_record().in_sync) == {"b", "c"})
    images.put(images.a, volume, "first", b"1")
    await images.until(lambda: bool(kept(images.b, volume) and kept(images.c, volume)))
    images.cut_link("a", "b")
    images.put(images.a, volume, "second", b"2")
    await images.until(lambda: len(kept(images.c, volume)) == 2)
    images.losing(volume)
    images.a.power_off()
    images.mend_links()
    newest = [max(m.disk.homes[volume.id].generations) for m in (images.b, images.c)]
    assert newest[0] == newest[1]
    await images.mount(images.b, "vol")
    taken = [one for one in images.now_record().history if one.what == "taken over"]
    assert [entry.node for entry in taken] == ["c"]
    assert images.contents("vol") == {"first": b"1", "second": b"2"}
