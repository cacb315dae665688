"""When a sync call is acknowledged, and when it has to wait: in virtual time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import SparseSnapshotDriver, event_loop_policy

from pannier.barrier.calls import BY_KERNEL, Answer, SyncCall
from pannier.core.errors import NotHolder, StorageError, StoreUnavailable, Unavailable
from pannier.core.pace import Pace
from pannier.core.volume import Volume

PATIENCE = Pace().copies.patience

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        yield world


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_sync_returns_when_every_copy_in_sync_has_what_was_written(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    world.slow["c"] = 1.7
    for number in range(5):
        world.put(world.a, volume, f"file{number}", b"1")
        began = now()
        await world.sync(world.a)
        assert 1.7 <= now() - began <= 4.0
        assert world.current(world.b, volume)
        assert world.current(world.c, volume)
    assert set(world.now_record().in_sync) == {"b", "c"}


async def test_a_sync_of_nothing_new_makes_and_sends_nothing(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    before = (list(world.sent), world.generations(world.a, volume))
    for _ in range(10):
        await world.sync(world.a)
    assert (world.sent, world.generations(world.a, volume)) == before


async def test_many_syncs_at_once_share_generations(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.slow[world.replica(volume).name] = 0.1
    world.sent.clear()
    began = now()
    for number in range(20):
        world.put(world.a, volume, f"file{number}", b"1")
    await asyncio.gather(*(world.sync(world.a) for _ in range(20)))
    assert now() - began < 1.0
    assert len(world.sent) <= 3


async def test_a_replica_that_loses_its_power_leaves_and_joins_again(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    world.put(world.a, volume, "before", b"1")
    world.c.power_off()
    began = now()
    await world.sync(world.a)
    assert now() - began <= PATIENCE + 1
    assert world.now_record().in_sync == ("b",)
    for number in range(20):
        world.put(world.a, volume, f"without{number}", b"1")
        began = now()
        await world.sync(world.a)
        assert now() - began < 0.1
        await asyncio.sleep(1)
    await world.c.start()
    await world.until(lambda: set(world.now_record().in_sync) == {"b", "c"})
    assert world.current(world.c, volume)


async def test_a_replica_that_is_up_and_says_nothing_leaves_after_the_patience(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    world.c.freeze()
    await world.until(lambda: not world.a.up.catalog.is_up("c"))
    world.c.thaw()
    await asyncio.sleep(30)
    assert set(world.now_record().in_sync) == {"b", "c"}
    world.slow["c"] = 1000.0
    world.put(world.a, volume, "more", b"1")
    began = now()
    await world.sync(world.a)
    assert PATIENCE <= now() - began <= PATIENCE + 1
    assert world.now_record().in_sync == ("b",)


async def test_with_the_store_away_too_a_sync_waits_for_the_dead_replica(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    world.put(world.a, volume, "more", b"1")
    world.cut_store()
    world.replica(volume).power_off()
    for _ in range(5):
        with pytest.raises(Unavailable):
            await world.sync(world.a)
        await asyncio.sleep(1)
    world.mend_store()
    await world.a.up.custody.prove(volume)
    await world.sync(world.a)
    assert world.now_record().in_sync == ()


async def test_a_replica_that_cannot_join_holds_nothing_up_while_the_store_is_away(
    world: CopiesWorld,
) -> None:
    """It has caught up, and only the store's word is missing; then it is lost, and never counted."""
    volume = await world.synced_volume(world.a, copies="3")
    world.slow["c"] = 30.0
    world.put(world.a, volume, "without", b"1")
    await world.sync(world.a)
    assert world.now_record().in_sync == ("b",)
    world.cut_store()
    del world.slow["c"]
    for number in range(40):
        world.put(world.a, volume, f"more{number}", b"1")
        began = now()
        await world.sync(world.a)
        assert now() - began < 1.0
        await asyncio.sleep(1)
    assert world.current(world.c, volume)
    world.c.power_off()
    for number in range(10):
        world.put(world.a, volume, f"most{number}", b"1")
        await world.sync(world.a)
        await asyncio.sleep(1)
    assert world.now_record().in_sync == ("b",)


async def test_min_copies_2_waits_for_the_second_copy(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, min_copies="2")
    replica = world.replica(volume)
    await world.down(replica)
    world.put(world.a, volume, "more", b"1")
    with pytest.raises(Unavailable, match="1 copies in sync and min_copies=2"):
        await world.sync(world.a)
    await replica.start()
    await world.until(lambda: world.now_record().in_sync == (replica.name,))
    await world.sync(world.a)


async def test_nothing_is_acknowledged_after_the_lease(world: CopiesWorld) -> None:
    """The replica confirms still, but promises nothing."""
    volume = await world.synced_volume(world.a)
    world.cut_store("a")
    world.a.up.promising.ask = _nothing  # type: ignore[method-assign]
    acknowledged = 0
    while world.a.clock() < world.a.up.lease.until:
        world.put(world.a, volume, f"more{acknowledged}", b"1")
        await world.sync(world.a)
        assert world.a.clock() < world.a.up.lease.until
        acknowledged += 1
        await asyncio.sleep(0.11)
    assert acknowledged > 10
    with pytest.raises(Unavailable, match="cannot prove"):
        await world.sync(world.a)


async def _nothing() -> None:
    return


async def test_a_volume_that_another_node_holds_is_not_made_durable_here(
    world: CopiesWorld,
) -> None:
    await world.synced_volume(world.a)
    with pytest.raises(NotHolder):
        await world.b.ask(lambda run: run.acknowledging.make_durable("vol"))


async def test_syncs_go_on_while_a_move_waits_for_the_end_of_use(world: CopiesWorld) -> None:
    """A container that is told to stop syncs what it has before it ends."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    target = world.replica(volume).name
    moving = asyncio.ensure_future(world.move(world.a, "vol", target, wait_seconds=60))
    for number in range(10):
        await asyncio.sleep(1.1)
        world.put(world.a, volume, f"more{number}", b"1")
        await world.sync(world.a)
    world.stop_container(world.a, container)
    await world.unmount(world.a, "vol", "m2")
    await world.unmount(world.a, "vol")
    steps = await moving
    assert steps[-1].phase == "done"
    assert world.now_record().grant.node == target


async def test_unchanged_is_said_only_of_what_was_made_durable(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)

    async def unchanged() -> bool:
        return await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))

    assert await unchanged()
    world.put(world.a, volume, "more", b"1")
    assert not await unchanged()
    await asyncio.sleep(5)  # it has been sent by now, but nobody said that it is durable
    assert not await unchanged()
    await world.sync(world.a)
    assert await unchanged()


# -- volumes that are kept by intervals ---------------------------------------------------------------


async def test_a_copy_that_lags_beyond_the_limit_does_not_count(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, durability="interval", interval="1s")
    replica = world.replica(volume)
    await world.until(lambda: world.now_record().in_sync == (replica.name,))
    world.slow[replica.name] = 60.0
    began = now()
    while world.now_record().in_sync:
        world.put(world.a, volume)
        await asyncio.sleep(0.5)
        assert now() - began < 20
    assert now() - began > 9
    del world.slow[replica.name]
    await world.until(lambda: world.now_record().in_sync == (replica.name,))


async def test_a_long_interval_has_a_longer_limit(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, durability="interval", interval="60s")
    await world.until(lambda: world.now_record().in_sync == volume.replicas, seconds=200)
    for _ in range(300):
        world.put(world.a, volume)
        await asyncio.sleep(1)
        assert world.now_record().in_sync == volume.replicas


async def test_a_replica_joins_only_with_the_stores_word(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    world.cut_store("a")
    await world.until(lambda: world.current(world.replica(volume), volume))
    await asyncio.sleep(2)
    assert world.now_record().in_sync == ()
    with pytest.raises(StoreUnavailable):
        await world.a.ask(lambda run: run.cluster.fresh("vol"))


# -- what the local disk says ------------------------------------------------------------------------


@pytest_asyncio.fixture
async def images(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


CALLS = (SyncCall("c", 0, "sync", None, 0.0), SyncCall("c", 0, "unknown", None, 0.0))


async def answers(world: CopiesWorld) -> Sequence[Answer]:
    return await world.a.ask(lambda run: run.acknowledging.make_durable("vol", CALLS))


async def attached(world: CopiesWorld) -> Volume:
    volume = await world.synced_volume(world.a)
    await world.mount(world.a, "vol")
    return volume


async def test_calls_without_a_file_of_their_own_are_performed_by_the_kernel(
    images: CopiesWorld,
) -> None:
    await attached(images)
    assert await answers(images) == [BY_KERNEL, BY_KERNEL]


async def test_after_a_loss_every_call_fails_at_once_though_no_copy_answers(
    images: CopiesWorld,
) -> None:
    """Nothing will ever be confirmed of this mount, so there is nothing to wait for."""
    volume = await attached(images)
    await images.down(images.replica(volume))
    images.cut_store("a")
    images.a.disk.refused.add(volume.id)
    began = now()
    assert await answers(images) == [Answer(errno.EIO), Answer(errno.EIO)]
    assert now() - began < 0.1
    with pytest.raises(StorageError):
        await images.sync(images.a)  # with no call to tell it to, as when the daemon ends


async def test_a_loss_that_only_the_generation_finds_is_told_to_its_group(
    images: CopiesWorld,
) -> None:
    await attached(images)
    driver = images.sparse_driver(images.a)

    async def write_out(volume: str) -> None:
        images.a.disk.refused.add(volume)
        raise StorageError("the disk refused something just now")

    driver.write_out = write_out  # type: ignore[method-assign]
    assert await answers(images) == [Answer(errno.EIO), Answer(errno.EIO)]


async def test_where_storage_fails_and_nothing_was_lost_calls_wait(images: CopiesWorld) -> None:
    await attached(images)
    driver = images.sparse_driver(images.a)

    async def write_out(volume: str) -> None:
        raise StorageError("the disk is not there at the moment")

    driver.write_out = write_out  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        await answers(images)


async def test_a_volume_without_a_file_system_of_its_own_is_synced_by_its_generation(
    world: CopiesWorld,
) -> None:
    await world.synced_volume(world.a)
    assert await answers(world) == [BY_KERNEL, BY_KERNEL]
