"""What a node can no longer prove to hold stands still before anybody else can begin with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Machine, event_loop_policy

from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.errors import PannierError
from pannier.core.pace import Pace
from pannier.core.volume import Grant, Volume

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        await asyncio.sleep(15)
        yield world


def writable(machine: Machine, volume: Volume, epoch: int = 1) -> bool:
    tree = machine.disk.homes[volume.id].live.get(epoch)
    return tree is not None and not tree.sealed


def cut_off(world: CopiesWorld, machine: Machine) -> None:
    world.cut_store(machine.name)
    world.isolate(machine.name)


def runs(machine: Machine, container: str) -> bool:
    return container in machine.table.containers and not machine.table.stands_still(container)


async def test_a_holder_cut_off_from_everything_stands_still_before_another_begins(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    container = await world.run_container(world.a, "vol", "m2")
    world.put(world.a, volume, "unsynced", b"1")
    world.losing(volume)
    cut_off(world, world.a)
    mounting = asyncio.ensure_future(world.mount(replica, "vol"))
    while not mounting.done():
        assert not runs(world.a, container) or world.data.get("alive/a") is not None
        await asyncio.sleep(0.05)
    await mounting
    assert not runs(world.a, container)
    await asyncio.sleep(USUAL.agent.doubt + 1)
    assert container not in world.a.table.containers
    assert not writable(world.a, volume)
    assert "vol" not in world.a.table.mounts
    assert world.a.disk.homes[volume.id].live[1].content["unsynced"] == b"1", "it is kept"
    assert world.now_record().grant == Grant(replica.name, 2)


async def test_where_nobody_took_over_the_container_goes_on(world: CopiesWorld) -> None:
    """As when the store's leader is lost together with a copy, and the election takes its time."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await world.until(lambda: world.data.get("alive/a") is None)
    assert world.a.table.stands_still(container)
    await asyncio.sleep(USUAL.agent.doubt / 2)
    for ask in (lambda run: run.service.doctor(), lambda run: run.service.explain_volume("vol")):
        assert any("stand still" in one.what for one in await world.a.ask(ask))
    world.mend_links()
    world.mend_store()
    await world.until(lambda: runs(world.a, container))
    assert world.now_record().grant == Grant("a", 1)
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)


async def test_doctor_says_whether_the_lease_is_renewed(world: CopiesWorld) -> None:
    async def told() -> FindingView:
        findings = await world.a.ask(lambda run: run.service.doctor())
        return next(each for each in findings if each.subject == "lease of node a")

    assert (await told()).level is Level.OK
    cut_off(world, world.a)
    await world.until(lambda: world.data.get("alive/a") is None)
    assert (await told()).level is Level.PROBLEM
    assert "not renewed: of volumes with copies" in (await told()).what
    world.mend_links()
    world.mend_store()
    await world.until(lambda: world.data.get("alive/a") is not None)
    assert (await told()).level is Level.OK


async def test_doctor_says_why_a_lease_is_withheld(world: CopiesWorld) -> None:
    world.a.disk.failed = True
    await world.until(lambda: world.data.get("alive/a") is None)
    findings = await world.a.ask(lambda run: run.service.doctor())
    (lease,) = (each for each in findings if each.subject == "lease of node a")
    assert lease.level is Level.PROBLEM
    assert "deliberately not renewed: the disk" in lease.what


async def test_a_container_goes_on_only_when_its_volume_is_proven(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease alone says nothing of a volume that another node may have taken over meanwhile."""
    await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await world.until(lambda: world.data.get("alive/a") is None)
    monkeypatch.setattr("pannier.agent.custody.Custody._prove_one", lambda *_: asyncio.sleep(0))
    world.mend_store()  # and no promise arrives
    await world.until(lambda: world.data.get("alive/a") is not None)
    await asyncio.sleep(3)
    assert world.a.table.stands_still(container)


async def test_a_container_whose_volume_was_taken_over_is_ended_as_soon_as_it_is_known(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    cut_off(world, world.a)
    await world.mount(world.replica(volume), "vol")
    assert world.a.table.stands_still(container)
    world.mend_links()
    world.mend_store()
    await asyncio.sleep(5)
    assert container not in world.a.table.containers
    assert not world.a.table.frozen


async def test_a_daemon_that_starts_again_lets_go_on_what_stood_still(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await world.until(lambda: world.data.get("alive/a") is None)
    world.a.crash()
    world.mend_links()
    world.mend_store()
    await world.a.start()
    assert world.a.table.stands_still(container)
    await world.until(lambda: runs(world.a, container))


async def test_a_container_that_begins_in_doubt_stands_still_too(world: CopiesWorld) -> None:
    """It was given its volume just before."""
    await world.synced_volume(world.a)
    await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await world.until(lambda: world.data.get("alive/a") is None)
    late = world.start_container(world.a, "vol")
    await asyncio.sleep(2 * USUAL.agent.fence_look)
    assert world.a.table.stands_still(late)


async def test_where_nobody_took_over_it_goes_on_after_the_next_mount(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.put(world.a, volume, "unsynced", b"1")
    cut_off(world, world.a)
    await world.until(lambda: not writable(world.a, volume))
    with pytest.raises(PannierError):
        await world.mount(world.a, "vol")
    world.mend_links()
    world.mend_store()
    await asyncio.sleep(5)
    await world.mount(world.a, "vol")
    assert writable(world.a, volume)
    assert world.contents("vol") == {"synced": b"1", "unsynced": b"1"}
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)


async def test_a_paused_holder_acknowledges_nothing_after_a_takeover_and_keeps_its_stray(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    world.put(world.a, volume, "waiting", b"1")
    waiting = asyncio.ensure_future(world.sync(world.a))
    world.a.freeze()
    began = asyncio.get_running_loop().time()
    world.put(world.a, volume, "stray", b"1")
    await world.mount(replica, "vol")
    world.put(replica, volume, "after", b"1")
    await world.sync(replica)
    await asyncio.sleep(60 - (asyncio.get_running_loop().time() - began))
    world.a.thaw()
    with pytest.raises(PannierError):
        await waiting
    await asyncio.sleep(1)
    assert container not in world.a.table.containers
    assert "vol" not in world.a.table.mounts
    await world.until(lambda: world.now_record().in_sync == ("a",))
    assert world.copy(world.a, volume) == {"synced": b"1", "after": b"1"}
    assert world.a.disk.homes[volume.id].live[1].content["stray"] == b"1"
    findings = await world.a.ask(lambda run: run.service.doctor())
    assert any("a stray of epoch 1" in finding.what for finding in findings)


async def test_a_restarted_daemon_ends_what_it_cannot_prove(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    world.a.crash()
    await world.a.start()
    await asyncio.sleep(world.a.up.lease.terms.ttl + 1)
    assert not runs(world.a, container)
    await asyncio.sleep(USUAL.agent.doubt)
    assert container not in world.a.table.containers
    assert not writable(world.a, volume)


async def test_a_restart_with_the_store_at_hand_changes_nothing(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    for _ in range(5):
        world.a.crash()
        await asyncio.sleep(1)
        await world.a.start()
        await asyncio.sleep(10)
        world.put(world.a, volume, "more", b"1")
        await world.sync(world.a)
    assert container in world.a.table.containers
    assert world.now_record().grant == Grant("a", 1)


async def test_a_holder_without_rivals_is_left_alone(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await world.down(world.replica(volume))
    world.put(world.a, volume, "without", b"1")
    await world.sync(world.a)
    assert world.now_record().in_sync == ()
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await asyncio.sleep(100)
    assert container in world.a.table.containers
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)


async def test_a_volume_with_one_copy_is_never_fenced(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="1")
    container = await world.run_container(world.a, "vol", "m2")
    cut_off(world, world.a)
    await asyncio.sleep(100)
    assert container in world.a.table.containers
    assert writable(world.a, volume)


async def test_a_lease_lost_early_and_granted_anew_ends_nothing(world: CopiesWorld) -> None:
    """A store that forgets leases: nobody took over, and the record says so within moments."""
    volume = await world.synced_volume(world.a)
    container = await world.run_container(world.a, "vol", "m2")
    for lease in tuple(world.data._leases):
        world.data.revoke(lease)
    await asyncio.sleep(10)
    assert container in world.a.table.containers
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)


async def test_a_volume_whose_lock_is_taken_does_not_delay_the_end_of_another(
    world: CopiesWorld,
) -> None:
    first = await world.synced_volume(world.a, "first")
    second = await world.synced_volume(world.a, "second")
    containers = [await world.run_container(world.a, name, "m2") for name in ("first", "second")]
    world.losing(first)
    world.losing(second)
    async with world.a.up.custody.lock(first):
        cut_off(world, world.a)
        await world.until(lambda: world.data.get("alive/a") is None)
        assert not any(runs(world.a, container) for container in containers)
        await asyncio.sleep(USUAL.agent.doubt)
        assert not world.a.table.containers
        assert writable(world.a, first), "it is sealed when the lock is free"
        assert not writable(world.a, second)
    await world.until(lambda: not writable(world.a, first))


async def test_a_container_of_an_earlier_epoch_is_ended_before_the_volume_is_served_again(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one of its sync calls would be answered for what the volume is now."""
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    container = await world.run_container(world.a, "vol", "m2")
    world.losing(volume)
    world.a.crash()
    await world.mount(replica, "vol")
    world.put(world.a, volume, "stray", b"1")
    monkeypatch.setattr("pannier.agent.custody.Custody.adopt", _nothing)  # it comes to that late
    await world.a.start()
    assert container in world.a.table.containers
    await world.unmount(replica, "vol")
    await world.mount(world.a, "vol")
    assert world.now_record().grant == Grant("a", 3)
    assert container not in world.a.table.containers
    assert world.a.disk.homes[volume.id].live[1].content["stray"] == b"1"


async def _nothing(_: object) -> None:
    return
