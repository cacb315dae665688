"""Snapshots: named generations on every copy, through moves, losses and tidying; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import ACTOR, Fault, Machine, event_loop_policy

from pannier.cluster.registry import encode
from pannier.contract.views import SnapshotView
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    PeerUnavailable,
)
from pannier.core.freeing import spare_generations
from pannier.core.generation import Generation
from pannier.core.ownership import LocalState, plan_cleanup
from pannier.core.pace import Pace
from pannier.core.snapshots import (
    MOST_SNAPSHOTS,
    Snapshot,
    check_all_labels,
    check_labels,
    check_snapshot_name,
    over,
)
from pannier.core.volume import SNAPSHOT_LINES, Grant, HistoryEntry, Volume, VolumeSpec
from pannier.store.base import Change

__all__ = ["event_loop_policy"]

USUAL = Pace()
_NUMBERS = itertools.count()
A_WHILE = 60.0
"""Longer than the tidying of generations takes to come round."""


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def snap(
    machine: Machine, snapshot: str, *, keep: float | None = None, name: str = "vol"
) -> SnapshotView:
    """``pannier volume snapshot create``, typed on ``machine``."""
    return await machine.ask(
        lambda run: run.service.by(ACTOR).create_snapshot(
            name, snapshot, keep_seconds=keep, labels={"by": "test"}
        )
    )


async def show(machine: Machine, snapshot: str) -> SnapshotView:
    return await machine.ask(lambda run: run.service.snapshot("vol", snapshot))


async def remove(machine: Machine, snapshot: str) -> None:
    await machine.ask(lambda run: run.service.by(ACTOR).remove_snapshot("vol", snapshot))


async def write_on(
    world: CopiesWorld, machine: Machine, volume: Volume, *, times: int = 12
) -> None:
    """A container writes so long that all that nobody needs is tidied away."""
    for _ in range(times):
        world.put(machine, volume, f"later{next(_NUMBERS)}")
        await world.sync(machine)
        await asyncio.sleep(USUAL.copies.generation + 1)


def content(machine: Machine, volume: Volume, generation: str) -> dict[str, bytes] | None:
    """What a node's disk has of a generation; None where it has none."""
    home = machine.disk.homes.get(volume.id)
    found = home.generations.get(Generation.parse(generation)) if home else None
    return None if found is None else dict(found)


# -- making and keeping -------------------------------------------------------------------------------


async def test_a_snapshot_of_a_volume_in_use_is_on_every_copy_when_it_is_answered(
    world: CopiesWorld,
) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    world.put(world.a, volume, "file", b"unsynced")
    made = await snap(world.a, "first")
    assert (made.on, made.not_on, made.silent) == (["a", *volume.replicas], [], [])
    for machine in (world.a, world.b, world.c):
        found = content(machine, volume, made.generation)
        assert found == {"synced": b"1", "file": b"unsynced"}, machine.name
    assert made.labels == {"by": "test"}
    (line,) = [each for each in world.now_record().history if each.what == "snapshot taken"]
    assert line.detail == f"first, generation {made.generation}, by {ACTOR}"


async def test_it_stays_on_every_copy_whatever_is_written_later(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    made = await snap(world.a, "first")
    before = content(world.a, volume, made.generation)
    await write_on(world, world.a, volume)
    replica = world.replica(volume)
    for machine in (world.a, replica):
        assert content(machine, volume, made.generation) == before
        assert len(world.generations(machine, volume)) <= 7, "others were tidied away"


async def test_it_is_made_from_any_node(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    other = next(m for m in (world.b, world.c) if m.name not in volume.replicas)
    made = await snap(other, "first")
    assert made.on == ["a", *volume.replicas]
    assert [each.name for each in await other.ask(lambda run: run.service.snapshots("vol"))] == [
        "first"
    ]


async def test_without_a_copy_it_is_on_the_holder(world: CopiesWorld) -> None:
    volume = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    made = await snap(world.b, "first")
    assert made.on == ["a"]
    assert content(world.a, volume, made.generation) == {"by-a": b"x"}


async def test_a_copy_that_is_down_gets_it_later(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    await world.down(world.c)
    made = await snap(world.a, "first")
    assert set(made.on or ()) == {"a", "b"}
    assert made.silent == ["c"]
    await write_on(world, world.a, volume)
    await world.c.start()
    await world.until(lambda: content(world.c, volume, made.generation) is not None)
    assert set((await show(world.b, "first")).on or ()) == {"a", "b", "c"}
    assert content(world.c, volume, made.generation) == content(world.a, volume, made.generation)
    await write_on(world, world.a, volume)
    assert world.current(world.c, volume)


async def test_a_copy_that_is_made_anew_gets_all_of_them(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    made = [await snap(world.a, "first")]
    await write_on(world, world.a, volume, times=3)
    made.append(await snap(world.a, "second"))
    await write_on(world, world.a, volume, times=3)
    replica = world.replica(volume)
    world.careless.add(replica.name)
    replica.disk.homes.pop(volume.id)
    await world.until(
        lambda: all(content(replica, volume, each.generation) is not None for each in made),
        seconds=USUAL.copies.snapshots_again + 120,
    )
    for each in made:
        assert content(replica, volume, each.generation) == content(
            world.a, volume, each.generation
        )


# -- through moves and losses -------------------------------------------------------------------------


async def test_it_goes_with_the_volume_to_a_node_that_had_no_copy(world: CopiesWorld) -> None:
    volume = await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    made = await snap(world.a, "first")
    await world.write_once(world.a, "vol", b"later")
    await world.move(world.a, "vol", "b")
    await world.write_once(world.b, "vol")
    await asyncio.sleep(A_WHILE)
    assert content(world.b, volume, made.generation) == {"by-a": b"x"}
    assert (await show(world.c, "first")).on == ["b"]


async def test_it_goes_with_a_replicated_volume_too(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    made = await snap(world.a, "first")
    await write_on(world, world.a, volume, times=3)
    target = next(name for name in ("b", "c") if name not in volume.replicas)
    await world.unmount(world.a, "vol")
    world.machines["a"].table.containers.clear()
    await world.move(world.a, "vol", target)
    assert target in ((await show(world.a, "first")).on or ())
    await world.mount(world.machines[target], "vol")
    await write_on(world, world.machines[target], world.now_record())
    found = await show(world.a, "first")
    record = world.now_record()
    assert set(found.on or ()) == {record.grant.node, *record.replicas}
    assert content(world.machines[target], volume, made.generation) == {"synced": b"1"}


async def test_it_is_there_after_a_takeover(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    made = await snap(world.a, "first")
    await write_on(world, world.a, volume, times=3)
    world.losing(volume)
    await world.down(world.a)
    replica = world.replica(volume)
    await world.mount(replica, "vol")
    await write_on(world, replica, world.now_record(), times=6)
    assert content(replica, volume, made.generation) == {"synced": b"1"}
    record = world.now_record()
    assert [each.name for each in record.snapshots] == ["first"]
    third = next(m for m in (world.b, world.c) if m is not replica)
    await world.until(
        lambda: content(third, volume, made.generation) is not None,
        seconds=2 * USUAL.copies.absence,
    )


async def test_a_former_holder_keeps_it_and_does_not_call_it_a_stray() -> None:
    named = Generation(2, 9)
    record = replace(
        _record(Grant("b", 3), base=Generation(2, 4)),
        snapshots=(Snapshot(name="first", generation=named, made_at=0.0),),
    )
    there = frozenset({Generation(2, 4), named, Generation(2, 3)})
    found = plan_cleanup(record, LocalState({}, there), node="a")
    assert (found.delete, found.strays) == ((Generation(2, 3),), ())


# -- power, and answers that do not come --------------------------------------------------------------


@pytest.mark.parametrize("number", range(16))
async def test_power_fails_on_the_holder_at_any_step(tmp_path: Path, number: int) -> None:
    """It is there for good or not at all, and can be made again."""
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        volume = await world.synced_volume(world.a)
        world.put(world.a, volume, "more")
        await world.sync(world.a)
        world.fail_at(number, Fault.CUT_BEFORE)
        try:
            await asyncio.wait_for(snap(world.a, "first"), 30)
        except Exception:  # whatever the cut makes of it
            pass
        world.faults = lambda step: None
        for machine in (world.a, world.b, world.c):
            if machine.run is None:
                await machine.start()
        holder = world.machines[world.now_record().grant.node]
        await world.mount(holder, "vol", "again")
        if not world.now_record().snapshots:
            await snap(holder, "first")
        (made,) = world.now_record().snapshots
        await write_on(world, holder, world.now_record(), times=4)
        await world.until(
            lambda: all(
                content(world.machines[node], volume, str(made.generation)) is not None
                for node in (holder.name, *world.now_record().replicas)
            )
        )


async def test_an_answer_of_the_store_that_never_comes(world: CopiesWorld) -> None:
    """It is found out, and told: it was made."""
    await world.synced_volume(world.a)
    world.fail_at_label("store.commit", Fault.LOSE_ANSWER, of="a")
    assert (await snap(world.a, "first")).name == "first"
    with pytest.raises(AlreadyExists):
        await snap(world.a, "first")
    assert (await show(world.b, "first")).on is not None


async def test_without_its_holder_none_is_made(world: CopiesWorld) -> None:
    volume = await world.create(world.a, "vol")
    await world.down(world.a)
    with pytest.raises(PeerUnavailable, match=r"held by node a.*does not answer"):
        await snap(world.b, "first")
    assert world.now_record().snapshots == volume.snapshots == ()


async def test_a_copy_that_remembers_less_after_a_power_cut_tidies_nothing_away(
    world: CopiesWorld,
) -> None:
    """Its memory may know nothing of the snapshot that it has confirmed, and the store is away."""
    volume = await world.synced_volume(world.a)
    replica = world.replica(volume)
    forgotten = (replica.state / "catalog.json").read_bytes()
    made = await snap(world.a, "first")
    await write_on(world, world.a, volume, times=1)
    replica.power_off()
    (replica.state / "catalog.json").write_bytes(forgotten)
    world.cut_store(replica.name)
    await replica.start()
    await write_on(world, world.a, volume, times=8)
    assert content(replica, volume, made.generation) is not None
    world.mend_store()
    await write_on(world, world.a, volume)
    assert content(replica, volume, made.generation) is not None


# -- removing -----------------------------------------------------------------------------------------


async def test_what_is_removed_gives_its_room_on_every_copy(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, copies="3")
    made = await snap(world.a, "first")
    for _ in range(2):
        world.put(world.a, volume, "more")
        await world.save(world.a)
    await asyncio.sleep(1)
    await remove(world.b, "first")
    machines = (world.a, world.b, world.c)
    await world.until(
        lambda: all(content(each, volume, made.generation) is None for each in machines), seconds=5
    )
    assert [each.detail for each in world.now_record().history][-1] == f"first, by {ACTOR}"
    with pytest.raises(NotFound, match="has no snapshot first"):
        await remove(world.b, "first")


async def test_it_is_removed_while_its_holder_is_down(world: CopiesWorld) -> None:
    volume = await world.create(world.a, "vol")
    await snap(world.a, "first")
    await world.down(world.a)
    await remove(world.b, "first")
    await world.a.start()
    await world.until(lambda: len(world.generations(world.a, volume)) <= 2)


async def test_two_names_of_one_generation_are_two_snapshots(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    first, second = await snap(world.a, "first"), await snap(world.a, "second")
    assert first.generation == second.generation
    await remove(world.a, "first")
    await write_on(world, world.a, volume)
    assert content(world.a, volume, second.generation) is not None


async def test_its_time_ends_it_and_not_at_once(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await snap(world.a, "short", keep=600.0)
    await snap(world.a, "long", keep=86400.0)
    await snap(world.a, "ever")
    await asyncio.sleep(600 + USUAL.holding.snapshot_grace - 60)
    assert len(world.now_record().snapshots) == 3
    await asyncio.sleep(60 + 2 * USUAL.holding.snapshots_look)
    assert [each.name for each in world.now_record().snapshots] == ["long", "ever"]
    assert world.now_record().history[-1].detail == "short, whose time was over"


async def test_a_clock_that_jumps_ahead_and_is_put_right_ends_nothing(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    await snap(world.a, "first", keep=86400.0)
    world.wall += 10 * 86400
    await asyncio.sleep(USUAL.holding.snapshot_grace / 2)
    world.wall -= 10 * 86400
    await asyncio.sleep(2 * USUAL.holding.snapshots_look)
    world.wall += 10 * 86400
    await asyncio.sleep(USUAL.holding.snapshot_grace / 2 + 60)
    assert world.now_record().snapshots, "the second half is counted from its beginning"


# -- what is refused ----------------------------------------------------------------------------------


async def test_what_is_refused(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    with pytest.raises(InvalidInput, match="cannot name a snapshot"):
        await snap(world.b, "../etc")
    await snap(world.a, "first")
    with pytest.raises(AlreadyExists, match="has a snapshot first already"):
        await snap(world.b, "first")
    _fill(world)
    with pytest.raises(Conflict, match="no volume can have more"):
        await snap(world.a, "one-more")


async def test_only_images_have_snapshots(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path) as world:
        await world.create(world.a, "vol")
        with pytest.raises(Conflict, match="is no image"):
            await snap(world.b, "first")


def _fill(world: CopiesWorld) -> None:
    entry, record = world.data.get("volumes/vol"), world.now_record()
    assert entry is not None
    more = tuple(
        replace(record.snapshots[0], name=f"s{number}") for number in range(MOST_SNAPSHOTS - 1)
    )
    full = replace(record, snapshots=(*record.snapshots, *more), changes=record.changes + 1)
    world.data.commit((Change(entry.key, encode(full), entry.revision),))


# -- decisions ----------------------------------------------------------------------------------------


def _record(grant: Grant, *, base: Generation | None = None) -> Volume:
    spec = VolumeSpec(driver="image")
    return Volume(name="vol", id="vol.1", spec=spec, grant=grant, base=base, created_at=0.0)


@pytest.mark.parametrize("name", ["a", "2026-06-12_nightly.1", "x" * 64])
def test_names_of_snapshots(name: str) -> None:
    assert check_snapshot_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "-a", "a/b", "x" * 65, "a\n", "ä", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_snapshot_name(name)


def test_labels_have_a_limit() -> None:
    assert check_labels({"by": "cron"}) == {"by": "cron"}
    with pytest.raises(InvalidInput, match="too long"):
        check_labels({"by": "x" * 511})


def test_a_record_with_as_many_snapshots_as_there_can_be_is_small_enough_for_the_store() -> None:
    largest = tuple(
        Snapshot(
            name=f"{number:064}",
            generation=Generation(10**17, 10**17, "0f3a94c1"),
            made_at=1767225600.123456,
            labels={"k": "\n" * 245},
            keep_until=1767225600.123456,
            slot_start=1767225600.0,
        )
        for number in range(MOST_SNAPSHOTS)
    )
    record = replace(_record(Grant("a", 1)), snapshots=largest)
    check_all_labels(largest)
    assert len(encode(record)) < 1_000_000


def test_the_labels_of_all_snapshots_have_a_limit() -> None:
    one = Snapshot(name="s", generation=Generation(1, 1), made_at=0.0, labels={"k": "ä" * 500})
    some = tuple(replace(one, name=f"s{number}") for number in range(MOST_SNAPSHOTS // 2))
    record = replace(_record(Grant("a", 1)), snapshots=some)
    assert record.with_snapshot(replace(one, name="plain", labels={}))
    full = replace(record, snapshots=some + tuple(replace(one, name=f"t{n}") for n in range(10)))
    with pytest.raises(Conflict, match="are too many together"):
        full.with_snapshot(one)


def test_room_is_never_made_by_a_snapshot() -> None:
    one, two = Generation(1, 1), Generation(1, 2)
    record = replace(
        _record(Grant("a", 1)), snapshots=(Snapshot(name="s", generation=one, made_at=0.0),)
    )
    here = LocalState({1: False}, frozenset({one, two}))
    assert spare_generations(record, here, node="a", needed=frozenset()) == (two,)
    elsewhere = replace(record, grant=Grant("b", 2), base=two)
    assert spare_generations(elsewhere, replace(here, sealed={}), node="a", needed=None) == (two,)


def test_whose_time_is_over() -> None:
    made = [
        Snapshot(name=name, generation=Generation(1, 1), made_at=0.0, keep_until=until)
        for name, until in (("ever", None), ("over", 5.0), ("now", 10.0), ("later", 10.5))
    ]
    assert [each.name for each in over(made, now=10.0)] == ["over", "now"]


def test_many_snapshots_do_not_drive_other_lines_out_of_the_history() -> None:
    entry = HistoryEntry(at=0.0, what="damaged", node="a", epoch=1)
    volume = _record(Grant("a", 1)).with_entry(entry)
    for number in range(200):
        line = replace(entry, what="snapshot taken", detail=str(number))
        volume = volume.with_snapshot_entry(line)
    assert [each.what for each in volume.history] == ["damaged"] + SNAPSHOT_LINES * [
        "snapshot taken"
    ]
    assert volume.history[-1].detail == "199"
