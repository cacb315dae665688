"""Creating on several nodes at once, with lost answers; removing and bringing back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import ACTOR, Fault, World, event_loop_policy

from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    OutcomeUnknown,
    Stale,
    StoreUnavailable,
    VolumeInUse,
    VolumeNotFound,
)
from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


def trees(world: World) -> list[str]:
    """Ids of all volumes of which any disk has anything."""
    return sorted(id for machine in world.machines.values() for id in machine.disk.homes)


async def test_a_creation_right_after_a_start_waits_for_the_pool(world: World) -> None:
    drivers = world.a.up.drivers
    there = dict(drivers._open)
    drivers._open.clear()
    drivers.tried.clear()
    creating = asyncio.ensure_future(world.create(world.a, "vol"))
    await asyncio.sleep(1)
    assert not creating.done()
    drivers._open.update(there)
    drivers.tried.set()
    assert (await creating).name == "vol"


async def create_everywhere(world: World, *options: dict[str, str]) -> list[object]:
    return await asyncio.gather(
        *(
            world.create(machine, "vol", **wanted)
            for machine, wanted in zip(world.machines.values(), options, strict=True)
        ),
        return_exceptions=True,
    )


async def test_one_name_made_on_three_nodes_at_once_is_one_volume(world: World) -> None:
    made = await create_everywhere(world, {}, {}, {})
    assert {volume.id for volume in made if isinstance(volume, Volume)} == {
        world.now_record("vol").id
    }
    assert trees(world) == [world.now_record("vol").id], "the losers take their trees away"


async def test_whoever_wants_another_size_at_the_same_moment_is_refused(world: World) -> None:
    made = await create_everywhere(world, {"size": "1G"}, {"size": "1G"}, {"size": "2G"})
    sizes = {volume.spec.size for volume in made if isinstance(volume, Volume)}
    assert sizes == {world.now_record("vol").spec.size}
    refused = [answer for answer in made if not isinstance(answer, Volume)]
    assert refused
    assert all(isinstance(answer, AlreadyExists) for answer in refused)


@pytest.mark.parametrize(
    "faults",
    list(itertools.product([Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE], repeat=2)),
)
async def test_lost_answers_make_no_second_volume(
    world: World, faults: tuple[Fault, Fault]
) -> None:
    left = list(faults)
    world.faults = lambda step: left.pop() if step.is_commit and left else None
    made = await create_everywhere(world, {}, {}, {})
    known = {volume.id for volume in made if isinstance(volume, Volume)}
    assert all(isinstance(answer, Volume | OutcomeUnknown) for answer in made)
    await asyncio.sleep(40)
    for machine in world.machines.values():
        known.add((await world.create(machine, "vol")).id)
    assert len(known) == 1
    await world.write_once(world.c, "vol")


async def test_a_creation_whose_answer_was_lost_is_a_success(world: World) -> None:
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER)
    assert (await world.create(world.a, "vol")).id == world.now_record("vol").id


async def test_a_creation_that_may_yet_happen_keeps_its_tree(world: World) -> None:
    world.fail_at_label("store.commit", Fault.LATE)
    with pytest.raises(OutcomeUnknown):
        await world.create(world.a, "vol")
    await asyncio.sleep(40)
    assert world.record("vol") is not None
    await world.write_once(world.b, "vol")


async def test_without_the_store_nothing_is_left_behind(world: World) -> None:
    task = asyncio.ensure_future(world.create(world.a, "vol"))
    while "driver.create" not in {step.label for step in world.steps}:
        await asyncio.sleep(0)
    world.cut_store("a")
    with pytest.raises(StoreUnavailable):
        await task
    assert trees(world) == []


async def test_the_first_wished_for_node_that_is_up_makes_it(world: World) -> None:
    world.b.power_off()
    await asyncio.sleep(20)
    assert (await world.create(world.a, "vol", nodes="b,c")).grant.node == "c"
    with pytest.raises(Conflict, match="no new volume can be made on b: down"):
        await world.create(world.a, "other", nodes="b")
    with pytest.raises(InvalidInput, match="names x, which is no node"):
        await world.create(world.a, "other", nodes="a,x")


async def test_a_volume_in_use_is_not_removed_from_any_node(world: World) -> None:
    await world.create(world.a, "vol")
    container = await world.run_container(world.a, "vol")
    for machine in world.machines.values():
        with pytest.raises(VolumeInUse, match=f"in use on node a by .*{container}"):
            await world.remove(machine, "vol")
    world.write(world.a, container, "file", b"still here")


async def test_a_removed_volume_comes_back_with_its_data(world: World) -> None:
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol", b"precious")
    await world.remove(world.b, "vol")
    for machine in world.machines.values():
        with pytest.raises(VolumeNotFound):
            await world.mount(machine, "vol")
    await world.restore(world.c, "vol")
    assert world.contents("vol") == {"by-a": b"precious"}
    await world.write_once(world.b, "vol")


async def test_a_new_volume_of_the_name_of_a_removed_one_is_empty_and_keeps_the_old_one_out(
    world: World,
) -> None:
    old = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol", b"old")
    await world.remove(world.a, "vol")
    new = await world.create(world.b, "vol")
    await world.run_container(world.b, "vol")
    assert new.id != old.id
    assert world.contents("vol") == {}
    with pytest.raises(Stale, match="there is another volume vol now"):
        await world.restore(world.a, "vol")
    assert world.trashed(old.id) is not None


async def test_of_two_removed_ones_the_last_comes_back_whatever_the_clock_of_its_id(
    world: World,
) -> None:
    ids = []
    for value in (b"first", b"second"):
        ids.append((await world.create(world.a, "vol")).id)
        await world.write_once(world.a, "vol", value)
        await world.remove(world.a, "vol")
        await asyncio.sleep(10)
    assert (await world.restore(world.a, "vol")).id == ids[1]
    await world.remove(world.a, "vol")
    assert (await world.restore(world.a, ids[0])).id == ids[0]
    assert world.contents("vol") == {"by-a": b"first"}


async def test_removing_while_it_is_given_away_leaves_it_whole(world: World) -> None:
    """The record is read again under the lock: an older one would seal what is already elsewhere."""
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol", b"precious")
    world.delay = lambda: world.random.choice((0.0, 0.1))
    for _ in range(10):
        holder, other = world.a, world.b
        if world.now_record("vol").grant.node == "b":
            holder, other = other, holder
        moving = asyncio.ensure_future(world.move(holder, "vol", other.name))
        await asyncio.sleep(world.random.uniform(0, 0.5))
        answers = await asyncio.gather(world.remove(holder, "vol"), moving, return_exceptions=True)
        assert not all(isinstance(answer, Exception) for answer in answers)
        if world.record("vol") is None:
            await world.restore(world.a, "vol")
        assert world.contents("vol") == {"by-a": b"precious"}


async def test_an_unknown_outcome_of_a_removal_or_a_return_is_looked_up(world: World) -> None:
    await world.create(world.a, "vol")
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER)
    await world.remove(world.a, "vol")
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER)
    await world.restore(world.a, "vol")
    world.fail_at_label("store.commit", Fault.LOSE_REQUEST)
    with pytest.raises(OutcomeUnknown):
        await world.remove(world.a, "vol")
    await world.write_once(world.a, "vol")


async def test_a_drive_that_was_never_mounted_here_can_still_be_removed(world: World) -> None:
    """A holder that restarted before it made its live tree."""
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol", b"x")
    world.fail_at_label("driver.promote", Fault.CUT_BEFORE, of="b")
    await world.move(world.a, "vol", "b")
    await asyncio.sleep(1)
    assert world.b.run is None, "the power cut was to be there"
    await world.b.start()
    await world.b.ask(lambda run: run.volumes.remove("vol", actor=ACTOR))
    await world.restore(world.b, "vol")
    assert world.contents("vol") == {"by-a": b"x"}
