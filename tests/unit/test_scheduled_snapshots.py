"""Snapshots by schedule: made once by whoever holds the volume, and removed as the schedule says; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import ACTOR, Fault, Machine, event_loop_policy

from pannier.contract.views import FindingView
from pannier.core.errors import Conflict, InvalidInput, NotFound
from pannier.core.pace import Pace
from pannier.core.schedules import Period, Slot
from pannier.store.base import ABSENT, Change

__all__ = ["event_loop_policy"]

HOUR = 3600.0
USUAL = Pace()
PACE = replace(USUAL.holding, snapshot_grace=900.0)
"""A quarter of the usual grace: it is waited for again and again."""
A_LOOK = 2 * PACE.schedules_look


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    world = CopiesWorld(tmp_path, driver=SparseSnapshotDriver, pace=replace(USUAL, holding=PACE))
    world.without -= {"schedules"}
    async with world:
        yield world


def names(world: CopiesWorld) -> list[str]:
    return [each.name for each in world.now_record().snapshots]


def slot(world: CopiesWorld, hours: int = 0) -> str:
    return Slot.of(Period.HOURLY, world.wall_time() + hours * HOUR).name


async def next_hour(world: CopiesWorld) -> str:
    """All clocks go on to the middle of the next hour; returns its slot."""
    world.wall += HOUR + HOUR / 2 - world.wall_time() % HOUR
    await asyncio.sleep(A_LOOK)
    return slot(world)


async def set_options(machine: Machine, **options: str) -> None:
    await machine.ask(lambda run: run.service.by(ACTOR).set_volume("vol", options))


async def snap(machine: Machine, name: str) -> None:
    await machine.ask(
        lambda run: run.service.by(ACTOR).create_snapshot("vol", name, keep_seconds=None, labels={})
    )


async def warnings(machine: Machine) -> list[FindingView]:
    found = await machine.ask(lambda run: run.service.doctor())
    return [each for each in found if "by schedule" in each.what or "its snapshot" in each.what]


async def test_the_holder_makes_one_for_each_slot(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, snapshots="hourly:24")
    first = slot(world)
    await world.until(lambda: names(world) == [first], seconds=A_LOOK)
    second = await next_hour(world)
    assert names(world) == [first, second]
    lines = [each for each in world.now_record().history if each.what == "snapshot taken"]
    assert [each.detail.endswith("by its schedule") for each in lines] == [True, True]
    shown = await world.b.ask(lambda run: run.service.volume("vol"))
    assert (shown.schedule, shown.last_scheduled) == ("hourly:24", second)
    found = await world.b.ask(lambda run: run.service.snapshot("vol", first))
    assert (found.by_schedule, len(found.on or ())) == (True, 2)


async def test_what_it_does_not_keep_goes_after_a_while_and_what_people_made_stays(
    world: CopiesWorld,
) -> None:
    await world.synced_volume(world.a, snapshots="hourly:2")
    await snap(world.a, "mine")
    made = [slot(world), await next_hour(world), await next_hour(world)]
    assert set(names(world)) == {"mine", *made}
    await asyncio.sleep(PACE.snapshot_grace - 10 * A_LOOK)
    assert made[0] in names(world)
    world.wall -= HOUR  # the clock's time makes no difference
    await asyncio.sleep(12 * A_LOOK)
    assert made[0] not in names(world)
    assert {"mine", *made[1:]} <= set(names(world))
    removed = [each for each in world.now_record().history if each.what == "snapshot removed"]
    assert removed[-1].detail == f"{made[0]}, by its schedule"


async def test_a_mistake_in_a_schedule_that_is_put_right_soon_removes_nothing(
    world: CopiesWorld,
) -> None:
    await world.synced_volume(world.a, snapshots="hourly:24")
    made = [slot(world), await next_hour(world), await next_hour(world)]
    await set_options(world.b, snapshots="hourly:1")
    await asyncio.sleep(PACE.snapshot_grace - 2 * A_LOOK)
    await set_options(world.b, snapshots="hourly:24")
    await asyncio.sleep(PACE.snapshot_grace / 2)
    assert set(made) <= set(names(world))


async def test_a_takeover_doubles_none_and_loses_none(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, snapshots="hourly:24")
    first = slot(world)
    await world.until(lambda: names(world) == [first])
    world.losing(volume)
    await world.down(world.a)
    replica = world.replica(volume)
    await world.mount(replica, "vol")
    await asyncio.sleep(A_LOOK)
    assert names(world) == [first]
    second = await next_hour(world)
    assert names(world) == [first, second]
    await world.a.start()
    await asyncio.sleep(A_LOOK)
    assert names(world) == [first, second]


async def test_a_daemon_that_is_started_again_doubles_none(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, snapshots="hourly:24")
    first = slot(world)
    await world.until(lambda: names(world) == [first])
    world.a.crash()
    await world.a.start()
    await asyncio.sleep(A_LOOK)
    assert names(world) == [first]


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.LATE])
async def test_an_answer_that_does_not_come_doubles_none_and_loses_none(
    world: CopiesWorld, fault: Fault
) -> None:
    await world.synced_volume(world.a)
    world.fail_at_label("store.commit", fault, of="a")
    await set_options(world.b, snapshots="hourly:24")
    await asyncio.sleep(60 + A_LOOK)
    assert names(world) == [slot(world)]


@pytest.mark.parametrize("number", range(0, 24, 2))
async def test_power_fails_on_the_holder_at_any_step(tmp_path: Path, number: int) -> None:
    world = CopiesWorld(tmp_path, driver=SparseSnapshotDriver, pace=replace(USUAL, holding=PACE))
    world.without -= {"schedules"}
    async with world:
        await world.synced_volume(world.a)
        await set_options(world.b, snapshots="hourly:24")
        world.fail_at(number, Fault.CUT_AFTER)
        await asyncio.sleep(A_LOOK)
        world.faults = lambda step: None
        for machine in world.machines.values():
            if machine.run is None:
                await machine.start()
        await asyncio.sleep(3 * A_LOOK)
        assert names(world) == [slot(world)]


async def test_a_clock_that_jumps_and_is_put_right_removes_nothing(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, snapshots="hourly:4,daily:2")
    made = [slot(world), await next_hour(world)]
    for years in (30, -20):
        jump = years * 365 * 24 * HOUR
        world.wall += jump
        await asyncio.sleep(A_LOOK)
        world.wall -= jump
        await asyncio.sleep(A_LOOK)
    assert len(names(world)) == 4
    await asyncio.sleep(PACE.snapshot_grace + A_LOOK)
    assert set(made) <= set(names(world))
    assert slot(world) in names(world), "it goes on"


async def test_what_was_missed_is_made_once_and_told(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, snapshots="hourly:24")
    first = slot(world)
    await world.until(lambda: names(world) == [first])
    world.a.crash()
    world.wall += 7 * HOUR
    assert "its last snapshot by schedule is" in (await warnings(world.b))[0].what
    await world.a.start()
    await asyncio.sleep(A_LOOK)
    assert names(world) == [first, slot(world)]
    missed = [each for each in world.now_record().history if each.what == "snapshot missed"]
    assert [each.detail for each in missed] == [f"none between {first} and {slot(world)}"]
    assert await warnings(world.b) == []


async def test_one_that_cannot_be_made_is_told_and_tried_again(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await snap(world.a, slot(world))
    await set_options(world.a, snapshots="hourly:24")
    await asyncio.sleep(PACE.schedule_doubt + A_LOOK)
    (told,) = await warnings(world.a)
    assert told.what.startswith(f"its snapshot {slot(world)} cannot be made: volume vol has a")
    assert names(world) == [slot(world)]
    await world.a.ask(lambda run: run.service.by(ACTOR).remove_snapshot("vol", slot(world)))
    await asyncio.sleep(A_LOOK)
    assert await warnings(world.a) == []
    assert names(world) == [slot(world)]
    assert world.now_record().snapshots[0].slot_start is not None


async def test_without_a_schedule_nothing_is_made_or_removed(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, snapshots="hourly:1")
    made = [slot(world), await next_hour(world)]
    await set_options(world.a, snapshots="none")
    await next_hour(world)
    await asyncio.sleep(PACE.snapshot_grace + A_LOOK)
    assert names(world) == made


# -- policies -----------------------------------------------------------------------------------------


async def set_policy(machine: Machine, name: str, schedule: str, **labels: str) -> list[str]:
    made = await machine.ask(
        lambda run: run.service.by(ACTOR).set_policy(name, schedule=schedule, labels=labels)
    )
    return made.volumes


async def test_a_policy_is_for_the_volumes_that_have_its_labels(world: CopiesWorld) -> None:
    await world.synced_volume(world.a, labels="team=web")
    await world.create(world.b, "other")
    assert await set_policy(world.c, "nightly", "hourly:3", team="web") == ["vol"]
    first = slot(world)
    await world.until(lambda: names(world) == [first], seconds=A_LOOK)
    await asyncio.sleep(A_LOOK)
    assert world.now_record("other").snapshots == ()
    shown = await world.b.ask(lambda run: run.service.volume("vol"))
    assert shown.schedule == "hourly:3 (by nightly)"
    assert await set_policy(world.b, "nightly", "hourly:3", team="ci") == []
    await next_hour(world)
    assert names(world) == [first]
    listed = await world.a.ask(lambda run: run.service.policies())
    assert [(each.name, each.schedule, each.labels) for each in listed] == [
        ("nightly", "hourly:3", {"team": "ci"})
    ]
    await world.a.ask(lambda run: run.service.by(ACTOR).remove_policy("nightly"))
    assert await world.b.ask(lambda run: run.service.policies()) == []


async def test_policies_that_cannot_be(world: CopiesWorld) -> None:
    with pytest.raises(InvalidInput, match="cannot be a schedule"):
        await set_policy(world.a, "x", "hourly:-1", team="web")
    with pytest.raises(InvalidInput, match="for volumes with a label"):
        await set_policy(world.a, "x", "hourly:1")
    with pytest.raises(InvalidInput, match="cannot name a policy"):
        await set_policy(world.a, "../x", "hourly:1", team="web")
    with pytest.raises(NotFound, match="there is no policy x"):
        await world.a.ask(lambda run: run.service.by(ACTOR).remove_policy("x"))


async def test_a_policy_that_cannot_be_read_stops_all_by_schedule_and_is_told(
    world: CopiesWorld,
) -> None:
    """It could say that more is to be kept."""
    await world.synced_volume(world.a, snapshots="hourly:1")
    made = [slot(world), await next_hour(world)]
    world.data.commit((Change("schedules/bad", b"{", ABSENT),))
    await asyncio.sleep(PACE.snapshot_grace + 2 * A_LOOK)
    assert names(world) == made
    (told, *_) = await warnings(world.a)
    assert "the policies cannot be read" in told.what


async def test_only_images_have_schedules(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path) as world:
        with pytest.raises(InvalidInput, match="only images have snapshots"):
            await world.create(world.a, "vol", snapshots="hourly:1")
        await world.create(world.a, "vol")
        with pytest.raises(Conflict, match="only images have snapshots"):
            await set_options(world.a, snapshots="hourly:1")
