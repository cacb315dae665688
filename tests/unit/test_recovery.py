"""A lost holder's volume goes on elsewhere: whole nodes in one process, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import ACTOR, Fault, Machine, event_loop_policy

from pannier.core.errors import Conflict, OutcomeUnknown, PannierError, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.pace import Pace
from pannier.core.volume import Grant, Volume

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        await asyncio.sleep(
            USUAL.holding.promise
        )  # what an earlier run might have promised is over
        yield world


async def lost_holder(world: CopiesWorld, copies: int = 2, *, unsent: int = 3) -> Volume:
    """``a`` held it, wrote what it could not send any more, and lost its power."""
    volume = await world.volume(world.a, copies=str(copies))
    for number in range(5):
        world.put(world.a, volume, f"sent{number}", b"sent")
        await asyncio.sleep(1.5)
    await asyncio.sleep(5)
    world.isolate("a")
    for number in range(unsent):
        world.put(world.a, volume, f"unsent{number}", b"unsent")
        await asyncio.sleep(1.5)
    await world.down(world.a)
    world.mend_links()
    return volume


def replica_of(world: CopiesWorld, volume: Volume) -> Machine:
    return world.machines[volume.replicas[0]]


def other_than(world: CopiesWorld, *names: str) -> Machine:
    return next(m for name, m in world.machines.items() if name not in names)


# -- when it is refused -------------------------------------------------------------------------------


async def test_refused_while_the_holder_is_up(world: CopiesWorld) -> None:
    volume = await world.volume(world.a)
    await asyncio.sleep(5)
    for accept in (False, True):
        with pytest.raises(Conflict, match="node a, which holds volume vol, is up"):
            await world.recover(world.b, accept=accept)
    assert world.now_record().grant == volume.grant


async def test_without_acceptance_it_says_what_there_is_and_changes_nothing(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world, unsent=9)
    replica, volume = replica_of(world, volume), world.now_record()
    assert volume.in_sync == (), "it was too late"
    before, disks = world.data.revision, repr({n: m.disk.homes for n, m in world.machines.items()})
    newest = world.generations(replica, volume)[-1]
    for machine in (world.b, world.c):
        with pytest.raises(Conflict) as refusal:
            await world.recover(machine, accept=False)
        assert f"generation {newest} on node {replica.name}" in refusal.value.message
        assert "--accept-loss" in refusal.value.remedy
    assert world.now_record() == volume
    assert world.data.get("volumes/vol").revision <= before  # type: ignore[union-attr]
    assert repr({n: m.disk.homes for n, m in world.machines.items()}) == disks


@pytest.mark.parametrize("accept", [False, True])
async def test_a_copy_in_sync_needs_no_acceptance(world: CopiesWorld, accept: bool) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    record = await world.recover(other_than(world, "a", replica.name), accept=accept)
    assert record.grant == Grant(replica.name, 2)
    assert record.history[-1].what == ("recovered" if accept else "taken over")
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}


async def test_a_holder_that_lives_without_the_store_is_not_robbed_by_a_person_either(
    world: CopiesWorld,
) -> None:
    """Who types it sees a node that is down; the copies know better."""
    volume = await world.synced_volume(world.a)
    world.cut_store("a")
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    for _ in range(10):
        for machine in (world.b, world.c):
            with pytest.raises(Unavailable, match="has promised"):
                await world.recover(machine)
        world.put(world.a, volume, "more", b"1")
        await world.sync(world.a)
        await asyncio.sleep(1)
    assert world.now_record().grant == Grant("a", 1)


async def test_refused_without_any_copy_and_says_where_the_data_is(world: CopiesWorld) -> None:
    await world.volume(world.a, copies="1")
    await asyncio.sleep(5)
    await world.down(world.a)
    with pytest.raises(Unavailable, match="node a has the data") as refusal:
        await world.recover(world.b)
    assert "made with one copy" in refusal.value.remedy


async def test_refused_while_no_copy_answers(world: CopiesWorld) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    await world.down(replica)
    other = other_than(world, "a", replica.name)
    with pytest.raises(Unavailable) as refusal:
        await world.recover(other)
    assert replica.name in refusal.value.remedy
    await replica.start()
    await asyncio.sleep(USUAL.holding.promise)
    record = await world.recover(other)
    assert record.grant == Grant(replica.name, 2)


async def test_a_holder_that_returns_between_the_look_and_the_change_keeps_its_volume(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    began = asyncio.Event()
    come_back = world.next_step

    def wait_at_commit(step: object) -> Fault | None:
        if (getattr(step, "of", ""), getattr(step, "label", "")) == (replica.name, "store.commit"):
            began.set()
        return come_back(step)  # type: ignore[arg-type]

    world.next_step = wait_at_commit  # type: ignore[method-assign]
    world.delay = lambda: 5.0 if began.is_set() else 0.0
    recovering = asyncio.ensure_future(world.recover(replica))
    await began.wait()
    world.delay = lambda: 0.0
    await world.a.start()
    with pytest.raises(Stale):
        await recovering
    world.lossy.clear()
    assert world.now_record().grant == Grant("a", 1)
    assert world.now_record().base is None
    await world.until(lambda: world.current(replica, volume))


# -- what goes on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed_on", ["replica", "other"])
async def test_the_newest_copy_goes_on_with_everything_that_was_sent(
    world: CopiesWorld, typed_on: str
) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    newest = world.generations(replica, volume)[-1]
    typed = replica if typed_on == "replica" else other_than(world, "a", replica.name)
    record = await world.recover(typed)
    assert record.grant == Grant(replica.name, 2)
    assert record.base == newest
    assert record.replicas == ("a",)
    assert record.history[-1].what == "recovered"
    assert record.history[-1].detail == f"from a with generation {newest}, by {ACTOR}"
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}
    await world.mount(replica, "vol")


async def test_of_several_copies_the_newest_goes_on(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="3")
    world.put(world.a, volume, "first")
    await asyncio.sleep(5)
    world.cut_link("a", "b")
    world.put(world.a, volume, "second")
    await asyncio.sleep(5)
    await world.down(world.a)
    world.mend_links()
    assert world.generations(world.b, volume)[-1] < world.generations(world.c, volume)[-1]
    record = await world.recover(world.b)
    assert record.grant == Grant("c", 2)
    assert set(world.contents("vol")) == {"first", "second"}
    assert record.replicas == ("b", "a")


async def test_the_other_copies_follow_the_new_holder(world: CopiesWorld) -> None:
    volume = await lost_holder(world, copies=3)
    record = await world.recover(world.b)
    holder = world.machines[record.grant.node]
    other = other_than(world, "a", holder.name)
    await world.mount(holder, "vol")
    world.put(holder, volume, "after", b"after")
    await world.until(lambda: world.copy(other, volume).get("after") == b"after")
    assert all(t.base is not None for t in world.sent_to(other.name)[1:])


async def test_a_copy_that_was_left_by_a_move_is_one_too(world: CopiesWorld) -> None:
    """The other node is chosen, though it is no replica: what it has is newer."""
    volume = await world.volume(world.a)
    replica = replica_of(world, volume)
    other = other_than(world, "a", replica.name)
    world.put(world.a, volume, "first")
    container = await world.run_container(world.a, "vol", "m2")
    await asyncio.sleep(5)
    moving = asyncio.ensure_future(world.move(other, "vol", other.name, wait_seconds=300))
    await asyncio.sleep(5)
    world.cut_link("a", replica.name)
    world.put(world.a, volume, "second")
    await asyncio.sleep(5)
    world.stop_container(world.a, container)
    world.a.power_off()
    with pytest.raises(PannierError):
        await moving
    await asyncio.sleep(15)
    record = await world.recover(replica)
    assert record.grant == Grant(other.name, 2)
    assert record.replicas == (replica.name,), "the copy that is up, not the lost holder"
    assert set(world.contents("vol")) == {"first", "second"}


async def test_a_second_loss_right_after_the_first_is_recovered_as_well(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world, copies=3)
    first = await world.recover(world.b)
    holder = world.machines[first.grant.node]
    other = other_than(world, "a", holder.name)
    await asyncio.sleep(1)
    await world.down(holder)
    record = await world.recover(other)
    assert record.grant == Grant(other.name, 3)
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}
    assert record.id == volume.id


# -- the former holder ---------------------------------------------------------------------------------


async def test_a_former_holder_that_returns_keeps_its_stray_and_becomes_a_copy(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    await world.recover(replica)
    await world.mount(replica, "vol")
    world.put(replica, volume, "after", b"after")
    await world.a.start()
    await world.until(lambda: world.copy(world.a, volume).get("after") == b"after")
    stray = world.a.disk.homes[volume.id].live[1]
    assert {name for name in stray.content if name.startswith("unsent")} == {
        "unsent0", "unsent1", "unsent2",
    }  # fmt: skip
    assert not any(name.startswith("unsent") for name in world.copy(world.a, volume))
    assert world.sent_to("a")[-1].base is not None, "the difference only"
    findings = await world.a.ask(lambda run: run.service.doctor())
    assert any("a stray of epoch 1" in finding.what for finding in findings)
    for _ in range(50):
        world.put(replica, volume)
        await asyncio.sleep(1)
    assert world.a.disk.homes[volume.id].live[1] is stray


async def test_containers_of_a_former_holder_whose_daemon_stood_still_are_stopped(
    world: CopiesWorld,
) -> None:
    """It never lost its power: they go on writing until it hears of it."""
    volume = await world.volume(world.a)
    replica = replica_of(world, volume)
    container = await world.run_container(world.a, "vol", "m2")
    world.put(world.a, volume, "sent")
    await asyncio.sleep(5)
    world.losing(volume)
    world.a.freeze()
    await world.until(lambda: not replica.up.catalog.is_up("a"))
    record = await world.recover(replica)
    world.put(world.a, volume, "stray")
    assert record.grant == Grant(replica.name, 2)
    await asyncio.sleep(20)
    assert container in world.a.table.containers
    world.a.thaw()
    await world.until(lambda: container not in world.a.table.containers)
    await world.until(lambda: "vol" not in world.a.table.mounts)
    await world.mount(replica, "vol")
    world.put(replica, volume, "after")
    await world.until(lambda: "after" in world.copy(world.a, volume))
    assert "stray" in world.a.disk.homes[volume.id].live[1].content
    assert "stray" not in world.copy(world.a, volume)
    assert world.progress(world.a, volume) == {}


async def test_a_strays_generations_are_never_chosen(world: CopiesWorld) -> None:
    """The former holder made generations while it was cut off: newer ones, and of no account."""
    volume = await lost_holder(world, unsent=9)
    replica = replica_of(world, volume)
    record = await world.recover(replica)
    strays = world.generations(world.a, volume)
    assert record.base is not None
    assert max(strays) > record.base
    assert max(strays).epoch == record.base.epoch
    await world.down(replica)
    await world.a.start()
    await asyncio.sleep(USUAL.holding.promise)
    assert max(strays) in world.generations(world.a, volume)
    record = await world.recover(world.a)
    assert record.grant == Grant("a", 3)
    assert record.base == Generation(1, record.base.sequence if record.base else 0)
    assert record.base < max(strays)
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}


async def test_the_volume_can_move_back_to_the_former_holder(world: CopiesWorld) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    await world.recover(replica)
    await world.a.start()
    await asyncio.sleep(30)
    await world.mount(world.a, "vol")
    assert world.now_record().grant == Grant("a", 3)
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}
    assert 1 in world.a.disk.homes[volume.id].live, "the stray is still there"


async def test_a_node_is_not_given_up_before_its_volumes_are_recovered(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world)

    async def give_up() -> None:
        await world.b.ask(lambda run: run.service.remove_node("a", lost=True))

    with pytest.raises(Conflict, match="recover it first"):
        await give_up()
    record = await world.recover(world.c)
    assert record.grant == Grant(volume.replicas[0], 2)
    await give_up()
    other = other_than(world, "a", record.grant.node)
    await world.until(lambda: world.now_record().replicas == (other.name,))
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}
    await world.mount(world.machines[record.grant.node], "vol")
    await world.until(lambda: world.copy(other, volume) == world.contents("vol"))


# -- races and lost answers -----------------------------------------------------------------------------


async def test_recovered_twice_one_after_the_other_changes_nothing_more(
    world: CopiesWorld,
) -> None:
    volume = await lost_holder(world)
    record = await world.recover(world.b)
    with pytest.raises(Conflict, match="is up"):
        await world.recover(world.c)
    base = record.base
    assert base is not None
    for _ in range(2):
        again = await replica_of(world, volume).ask(
            lambda run: run.service._recovery.take("vol", epoch=1, generation=base, actor=ACTOR)
        )
        assert again.grant == record.grant
    assert world.now_record().grant == Grant(record.grant.node, 2)


async def test_recovered_on_two_nodes_at_once_one_wins(world: CopiesWorld) -> None:
    volume = await lost_holder(world, copies=3)
    world.lossy.add(volume.id)
    base = world.generations(world.b, volume)[-1]

    async def take(machine: Machine) -> Volume:
        return await machine.ask(
            lambda run: run.service._recovery.take("vol", epoch=1, generation=base, actor=ACTOR)
        )

    results = await asyncio.gather(take(world.b), take(world.c), return_exceptions=True)
    won = [result for result in results if isinstance(result, Volume)]
    lost = [result for result in results if isinstance(result, BaseException)]
    assert len(won) == 1
    assert isinstance(lost[0], Stale)
    assert world.now_record().grant == won[0].grant
    assert won[0].grant.epoch == 2


async def test_two_people_recover_at_once(world: CopiesWorld) -> None:
    await lost_holder(world, copies=3)
    results = await asyncio.gather(
        *(world.recover(machine) for machine in (world.b, world.c, world.b)),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, Volume)]
    assert won
    assert all(isinstance(one, Volume | Stale | Conflict) for one in results), results
    assert world.now_record().grant.epoch == 2


@pytest.mark.parametrize("typed_on", ["replica", "other"])
@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("store.commit", Fault.LOSE_REQUEST),
        ("store.commit", Fault.LOSE_ANSWER),
        ("store.commit", Fault.LATE),
        ("peer.take", Fault.LOSE_REQUEST),
        ("peer.take", Fault.LOSE_ANSWER),
    ],
)
async def test_an_answer_that_never_came_is_looked_up_and_asking_again_succeeds(
    world: CopiesWorld, label: str, fault: Fault, typed_on: str
) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    typed = replica if typed_on == "replica" else other_than(world, "a", replica.name)
    world.fail_at_label(label, fault)
    try:
        await world.recover(typed)
    except OutcomeUnknown:
        assert fault is not Fault.LOSE_ANSWER, "it was done, and the record says so"
        world.faults = lambda step: None
        await asyncio.sleep(40)
        if world.now_record().grant.epoch == 1:
            await world.recover(typed)
    world.faults = lambda step: None
    record = world.now_record()
    assert record.grant == Grant(replica.name, 2)
    await world.mount(replica, "vol")
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("label", ["store.commit", "driver.promote", "driver.delete_generation"])
async def test_a_power_cut_of_the_new_holder_leaves_a_volume_that_can_be_used(
    world: CopiesWorld, label: str, fault: Fault
) -> None:
    volume = await lost_holder(world)
    replica = replica_of(world, volume)
    other = other_than(world, "a", replica.name)
    world.fail_at_label(label, fault, of=replica.name)
    try:
        await world.recover(other)
        await asyncio.sleep(30)
    except PannierError:
        pass
    world.faults = lambda step: None
    if replica.run is None:
        await asyncio.sleep(15)
        await replica.start()
        await asyncio.sleep(USUAL.holding.promise)
    if world.now_record().grant.epoch == 1:
        await world.recover(other)
    await world.mount(replica, "vol")
    assert world.now_record().grant == Grant(replica.name, 2)
    assert world.contents("vol") == {f"sent{number}": b"sent" for number in range(5)}


async def test_a_node_that_remembers_another_volume_of_that_name_is_not_counted(
    world: CopiesWorld,
) -> None:
    """Its memory is old: what it has is of a volume that was removed."""
    first = await world.volume(world.a, copies="3")
    world.put(world.a, first, "old", b"old")
    await asyncio.sleep(5)
    await world.unmount(world.a, "vol")
    await asyncio.sleep(70)
    world.cut_store("c")
    await world.remove(world.a, "vol")
    second = await world.volume(world.a, nodes="a,b")
    assert second.replicas == ("b",)
    await asyncio.sleep(5)
    world.a.power_off()
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    remembered = world.c.up.catalog.volume("vol")
    assert remembered is not None
    assert remembered.id == first.id
    assert max(world.generations(world.c, first)) >= max(world.generations(world.b, second))
    record = await world.recover(world.b)
    assert (record.id, record.grant) == (second.id, Grant("b", 2))
