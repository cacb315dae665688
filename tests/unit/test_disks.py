"""A node whose disk fails is lost to the others, and accuses nobody before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import event_loop_policy

from pannier.core.errors import DiskFailed, PoolMissing, Unavailable
from pannier.core.pace import Pace

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


async def test_a_copy_takes_over_from_a_holder_whose_disk_failed(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    replica = world.replica(volume)
    world.losing(volume)
    world.a.disk.failed = True
    syncing = asyncio.ensure_future(world.sync(world.a))
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    assert world.now_record().in_sync == (replica.name,), "it let nobody leave"
    await world.mount(replica, "vol")
    assert world.now_record().grant.node == replica.name
    await world.until(lambda: container not in world.a.table.containers)
    syncing.cancel()
    await asyncio.gather(syncing, return_exceptions=True)


async def test_a_sync_call_is_not_answered_by_a_disk_that_fails_while_it_is_sent(
    world: CopiesWorld,
) -> None:
    """The copy did not get it for a reason of ours: without it, the write would be nowhere."""
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    world.slow[replica.name] = 3.0
    world.losing(volume)
    world.put(world.a, volume, "new", b"2")
    syncing = asyncio.ensure_future(world.sync(world.a))
    await asyncio.sleep(0.5)
    world.a.disk.failed = True
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    assert not syncing.done() or syncing.exception()
    assert world.now_record().in_sync == (replica.name,)
    syncing.cancel()
    await asyncio.gather(syncing, return_exceptions=True)


async def test_a_mount_elsewhere_waits_until_the_volume_can_be_taken(world: CopiesWorld) -> None:
    """Also where nobody uses it on the failed disk, so that it could be given away otherwise."""
    volume = await world.synced_volume(world.a)
    await world.unmount(world.a, "vol")
    world.put(world.a, volume, "unsynced", b"2")
    world.losing(volume)
    world.a.disk.failed = True
    await world.mount(world.replica(volume), "vol")
    assert world.now_record().grant.node == world.replica(volume).name


async def test_what_could_go_on_elsewhere_is_ended_without_a_doubt(world: CopiesWorld) -> None:
    """A disk does not come back by itself, and Swarm starts no other task before this one has ended."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    world.a.disk.failed = True
    gone = lambda: container not in world.a.table.containers  # noqa: E731
    await world.until(gone, seconds=USUAL.agent.doubt / 2)
    assert world.now_record().grant.node == "a", "nobody wanted it yet"


@pytest.mark.parametrize("at_first", [True, False])
async def test_a_move_off_a_failed_disk_is_refused_at_once(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch, at_first: bool
) -> None:
    """Also while a container uses the volume, and where the disk can be read: what is missing is not
    that the container stops. And where the disk fails under the move.
    """
    volume = await world.volume(world.a, copies="1")
    await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    if at_first:
        refuse = AsyncMock(side_effect=DiskFailed("it takes no writes"))
        monkeypatch.setattr(world.a.up.driver, "check_disk", refuse)
    moving = asyncio.ensure_future(world.move(world.a, "vol", "b", wait_seconds=60.0))
    if not at_first:
        await asyncio.sleep(1)
        assert not moving.done()
        world.a.disk.failed = True
    with pytest.raises(Unavailable, match="no writes"):
        await asyncio.wait_for(moving, 5.0)


async def test_a_mount_is_refused_where_the_disk_failed(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await world.unmount(world.a, "vol")
    world.replica(volume).disk.failed = True
    with pytest.raises(DiskFailed):
        await world.mount(world.replica(volume), "vol")
    assert world.now_record().grant.node == "a"


async def test_it_is_back_when_its_disk_is(world: CopiesWorld) -> None:
    await world.volume(world.a)
    world.a.disk.failed = True
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    assert "no writes" in str((await world.b.up.service.node("a")).disk_error)
    world.a.disk.failed = False
    await world.until(lambda: world.b.up.catalog.is_up("a"))
    assert (await world.b.up.service.node("a")).disk_error == ""


async def test_so_is_one_that_could_not_open_its_pool(world: CopiesWorld) -> None:
    drivers = world.a.up.drivers
    drivers.broken["btrfs"] = PoolMissing("the device is not there")
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    del drivers.broken["btrfs"]
    await world.until(lambda: world.b.up.catalog.is_up("a"))


# --- a disk that hangs -----------------------------------------------------------------------------

HANG = USUAL.agent.disk_hang


async def test_a_copy_takes_over_from_a_holder_whose_disk_hangs(world: CopiesWorld) -> None:
    """After the stated time, and not before; then all containers here end, though nothing on the disk answers."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    replica = world.replica(volume)
    world.losing(volume)
    world.a.disk.hangs, began = True, now()
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    lease = world.terms.ttl + 2 * USUAL.agent.disk_look
    assert HANG - USUAL.agent.disk_ask <= now() - began <= HANG + lease
    await world.until(lambda: container not in world.a.table.containers, seconds=5.0)
    assert world.now_record().in_sync == (replica.name,), "it let nobody leave"
    await world.mount(replica, "vol")
    assert world.now_record().grant.node == replica.name


async def test_one_whose_disk_hung_is_back_by_itself(world: CopiesWorld) -> None:
    """And becomes a copy of what was taken over."""
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    world.losing(volume)
    world.a.disk.hangs = True
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    await world.mount(replica, "vol")
    world.a.disk.hangs = False
    await world.until(lambda: replica.up.catalog.is_up("a"))
    assert world.a.up.lease.withheld == ""
    await world.until(lambda: world.now_record().in_sync == ("a",))


async def test_what_hangs_is_told_and_nobody_waits_for_it(world: CopiesWorld) -> None:
    await world.volume(world.a)
    world.a.disk.hangs = True
    await world.until(lambda: world.a.up.lease.withheld)
    asked = (world.b.up.service.node("a"), world.a.up.service.doctor())
    node, findings = await asyncio.wait_for(asyncio.gather(*asked), 5.0)
    assert "it hangs" in str(node.disk_error)
    told = [(each.subject, each.what) for each in findings if "it hangs" in each.what]
    assert {subject for subject, _ in told} == {"lease of node a", "pool on a"}
    assert f"nothing for {HANG:g} s" in told[0][1]
    with pytest.raises(Unavailable, match="it hangs"):
        await asyncio.wait_for(world.move(world.a, "vol", "b"), 5.0)


@pytest.mark.parametrize("silence", [HANG / 3, HANG - 2])
async def test_a_disk_that_answers_in_time_costs_nothing(
    world: CopiesWorld, silence: float
) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    for _ in range(3):
        world.a.disk.hangs = True
        await asyncio.sleep(silence)
        assert not world.a.up.lease.withheld
        world.a.disk.hangs = False
        await asyncio.sleep(1.0)
    world.put(world.a, volume, "more", b"2")
    await world.sync(world.a)
    assert container in world.a.table.containers
    assert world.now_record().grant.epoch == 1


async def test_a_disk_that_crawls_does_not_hang(world: CopiesWorld) -> None:
    """What was asked of it waits behind the writes of others for minutes, and those are completed, one by one."""
    await world.volume(world.a)
    world.a.disk.slow = 10 * HANG
    for _ in range(40):
        await asyncio.sleep(HANG / 2)
        world.a.disk.writes += 1
        assert not world.a.up.lease.withheld


async def test_an_idle_disk_does_not_hang(world: CopiesWorld) -> None:
    """And is asked to write now and then only."""
    before, seconds = world.b.disk.writes, 20 * HANG
    for _ in range(20):
        await asyncio.sleep(HANG)
        assert not world.b.up.lease.withheld
    asked = world.b.disk.writes - before
    assert seconds / (USUAL.agent.disk_ask + 2) <= asked <= seconds / USUAL.agent.disk_ask


async def test_a_machine_that_is_stopped_for_an_hour_has_no_disk_that_hangs(
    world: CopiesWorld,
) -> None:
    """Its clock jumps while an answer is awaited: it has looked once in all that time."""
    await world.volume(world.a)
    world.a.disk.slow = 3.0
    await asyncio.sleep(USUAL.agent.disk_ask + 1)  # it is being asked
    world.a.skip(-3600.0)
    for _ in range(40):
        await asyncio.sleep(USUAL.agent.disk_look)
        assert not world.a.up.lease.withheld


async def test_a_disk_that_hangs_while_it_is_opened_counts_as_well(world: CopiesWorld) -> None:
    await world.volume(world.a)
    world.a.crash()
    world.a.disk.hangs = True
    run = await world.a.start()
    await world.until(lambda: "could not be opened" in run.lease.withheld, seconds=HANG + 10)
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    world.a.disk.hangs = False
    await world.until(lambda: world.b.up.catalog.is_up("a"))


async def test_a_daemon_that_cannot_open_its_pool_ends_who_uses_it(world: CopiesWorld) -> None:
    """The earlier one died before it did: what a container uses is known without the disk."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    world.a.crash()
    world.a.disk.hangs = True
    await world.a.start()
    await world.until(lambda: not world.b.up.catalog.is_up("a"), seconds=HANG + 30)
    await world.until(lambda: container not in world.a.table.containers, seconds=10.0)


async def test_a_daemon_that_is_started_beside_a_disk_that_hangs_renews_no_lease(
    world: CopiesWorld,
) -> None:
    """The earlier one has given the disk up: nobody waits once more for as long. An answer ends it."""
    await world.volume(world.a)
    world.a.disk.hangs = True
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    for open_waits in (True, False):
        world.a.crash()
        world.a.disk.open_waits = open_waits
        await world.a.start()
        for _ in range(int(2 * HANG)):
            await asyncio.sleep(0.5)
            assert not world.b.up.catalog.is_up("a")
    world.a.disk.hangs = False
    await world.until(lambda: world.b.up.catalog.is_up("a"), seconds=10)
    world.a.crash()
    world.a.disk.hangs = True
    run = await world.a.start()
    await asyncio.sleep(HANG / 2)
    assert not run.lease.withheld, "what was mended is forgotten"


def now() -> float:
    return asyncio.get_running_loop().time()
