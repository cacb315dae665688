"""What an operator sees of the sync path: by what, how long, who follows, what is wrong and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from copies_world import CopiesWorld
from fake_driver import SnapshotDriver, SparseSnapshotDriver
from stepping import SteppedSparseDriver
from structlog.testing import capture_logs
from world import Machine, event_loop_policy

from pannier.contract.views import CopyView, FindingView, SyncView
from pannier.contract.volumes import LiveVolumeView
from pannier.contract.words import Level, SyncWay
from pannier.core.errors import Conflict, Corrupt, InvalidInput, StorageError
from pannier.core.line import Doubt
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume
from pannier.storage.lines import JournalState

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
NO_TRACE = Doubt("the kernel's block trace is not to be had", remedy="it needs root and tracefs")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def written(world: CopiesWorld, volume: Volume, file: str = "file") -> None:
    """Something is written and synced on node a."""
    world.put(world.a, volume, file)
    await world.sync(world.a)


async def following(world: CopiesWorld, **options: str) -> Volume:
    """A volume whose copies have kept a record."""
    volume = await world.synced_volume(world.a, **options)
    for file in ("first", "second"):
        await written(world, volume, file)
    return volume


async def live(world: CopiesWorld, asked: Machine | None = None) -> LiveVolumeView:
    found = await (asked or world.a).ask(lambda run: run.service.volume("vol"))
    assert isinstance(found, LiveVolumeView)
    return found


async def shown(world: CopiesWorld, asked: Machine | None = None) -> SyncView:
    sync = (await live(world, asked)).sync
    assert sync is not None
    return sync


async def copy_of(world: CopiesWorld, volume: Volume) -> CopyView:
    return (await world.copies(world.a))[world.replica(volume).name]


async def found(machine: Machine, subject: str) -> list[FindingView]:
    findings = await machine.ask(lambda run: run.service.doctor())
    return [one for one in findings if one.subject == subject]


async def explained(world: CopiesWorld) -> list[FindingView]:
    return await world.a.ask(lambda run: run.service.explain_volume("vol"))


# -- by what, and how long -------------------------------------------------------------------------


async def test_sync_calls_by_records_are_shown_as_such(world: CopiesWorld) -> None:
    volume = await following(world)
    for asked in (world.a, world.b, world.c):
        sync = await shown(world, asked)
        assert (sync.way, sync.reason, sync.remedy) == (SyncWay.RECORDS, "", "")
    copy = await copy_of(world, volume)
    assert (copy.follows, copy.record_error) == (True, "")


async def test_the_parts_of_a_group_are_where_the_time_went(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await following(world)
    before = await shown(world)
    write_out = SteppedSparseDriver.write_out

    async def slow(self: SteppedSparseDriver, volume: str) -> None:
        await asyncio.sleep(0.5)
        await write_out(self, volume)

    monkeypatch.setattr(SteppedSparseDriver, "write_out", slow)
    world.slow_steps["a", "driver.cut"] = 1.0
    world.slow_steps[world.replica(volume).name, "driver.keep"] = 2.0
    await written(world, volume, "slow")
    sync = await shown(world)
    assert sync.groups == before.groups + 1
    worst = {
        part: getattr(sync, part).worst for part in ("total", "local", "turn", "cut", "copies")
    }
    assert worst["local"] == pytest.approx(0.5, abs=0.1)
    assert worst["cut"] == pytest.approx(1.0, abs=0.1)
    assert worst["copies"] == pytest.approx(2.0, abs=0.1)
    assert worst["total"] == pytest.approx(3.5 + worst["turn"], abs=0.3)
    assert sync.total is not None
    assert sync.total.median < 1.0


async def test_a_group_that_waits_for_another_says_so(world: CopiesWorld) -> None:
    volume = await following(world)
    replicated = world.a.up.replicator.replicated("vol")
    world.put(world.a, volume, "file")
    async with replicated.group:
        syncing = asyncio.ensure_future(world.sync(world.a))
        await asyncio.sleep(3.0)
    await syncing
    turn = (await shown(world)).turn
    assert turn is not None
    assert turn.worst == pytest.approx(3.0, abs=0.2)


async def test_a_generation_in_place_of_a_record_is_counted_with_its_reason(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    before = await shown(world)
    world.put(world.a, volume, "untold")
    world.a.disk.untold.add(volume.id)
    await world.sync(world.a)
    after = await shown(world)
    assert after.by_generation == before.by_generation + 1
    assert after.last_reason == "the trace has a gap"
    await written(world, volume, "more")
    now = await shown(world)
    assert (now.way, now.by_generation) == (SyncWay.RECORDS, after.by_generation)


async def test_a_generation_by_the_clock_is_no_detour(world: CopiesWorld) -> None:
    volume = await following(world)
    replicated = world.a.up.replicator.replicated("vol")
    before, newest = await shown(world), replicated.newest
    await world.until(lambda: replicated.newest != newest)
    await written(world, volume, "more")
    assert (await shown(world)).by_generation == before.by_generation


async def test_a_copy_that_keeps_no_records_is_named_until_it_keeps_one(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    other.disk.journal_full = True
    await written(world, volume, "full")
    await asyncio.sleep(3)  # it has a generation, and would get the next record
    sync, copy = await shown(world), await copy_of(world, volume)
    assert sync.way is SyncWay.GENERATIONS
    assert sync.reason == sync.last_reason == f"copy on {other.name}: the journal is full"
    assert copy.record_error == "the journal is full"
    other.disk.journal_full = False
    await written(world, volume, "room")
    assert (await shown(world)).way is SyncWay.RECORDS
    assert (await copy_of(world, volume)).record_error == ""


async def test_a_copy_that_is_away_does_not_follow(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    world.cut_link("a", other.name)
    await written(world, volume, "alone")
    await world.until(lambda: not world.now_record().in_sync)
    copy = await copy_of(world, volume)
    assert (copy.follows, copy.in_sync) == (False, False)
    await written(world, volume, "alone, again")
    sync = await shown(world)
    assert sync.way is SyncWay.RECORDS  # nobody is waited for


async def test_a_driver_without_records_says_so(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path, driver=SnapshotDriver) as world:
        await world.synced_volume(world.a)
        sync = await shown(world)
        assert sync.way is SyncWay.GENERATIONS
        assert "makes no records" in sync.reason
        assert sync.by_generation == sync.groups > 0
        assert (await world.a.ask(lambda run: run.service.node("a"))).journal is None


async def test_a_volume_without_copies_has_nothing_to_show(world: CopiesWorld) -> None:
    await world.volume(world.a, copies="1")
    assert (await live(world)).sync is None


# -- what is wrong with the trace --------------------------------------------------------------------


async def test_a_trace_that_cannot_be_had_is_found_and_passes(world: CopiesWorld) -> None:
    volume = await following(world)
    world.a.disk.untraced = NO_TRACE
    await written(world, volume, "untraced")
    sync = await shown(world)
    assert (sync.way, sync.reason) == (SyncWay.GENERATIONS, NO_TRACE.reason)
    assert sync.remedy == NO_TRACE.remedy
    (finding,) = await found(world.a, "sync calls on a")
    assert (finding.level, finding.remedy) == (Level.WARNING, NO_TRACE.remedy)
    assert "vol" in finding.what
    assert NO_TRACE.reason in finding.what
    assert any(
        (one.level, one.remedy) == (Level.WARNING, NO_TRACE.remedy)
        for one in await explained(world)
    )
    world.a.disk.untraced = None
    await asyncio.sleep(3)
    assert (await shown(world)).way is SyncWay.RECORDS
    assert await found(world.a, "sync calls on a") == []


async def test_volumes_with_the_same_trouble_are_one_finding(world: CopiesWorld) -> None:
    for name in ("one", "two"):
        await world.synced_volume(world.a, name)
    world.a.disk.untraced = NO_TRACE
    await asyncio.sleep(3)
    (finding,) = await found(world.a, "sync calls on a")
    assert "one, two" in finding.what


async def test_what_passes_by_itself_is_no_finding(world: CopiesWorld) -> None:
    volume = await following(world)
    world.put(world.a, volume, "untold")
    world.a.disk.untold.add(volume.id)
    await world.sync(world.a)
    assert (await shown(world)).reason == "the trace has a gap"
    assert await found(world.a, "sync calls on a") == []


# -- the journal ---------------------------------------------------------------------------------------


async def test_a_node_shows_its_journal_to_all(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    for asked in (world.a, other):
        view = await asked.ask(lambda run: run.service.node(other.name))
        assert view.journal is not None
        assert view.journal.volumes.keys() == {"vol"}
        assert view.journal.live_bytes == sum(view.journal.volumes.values()) > 0
        assert view.journal.trouble == ""
    holder = await world.a.ask(lambda run: run.service.node("a"))
    assert holder.journal is not None
    assert holder.journal.volumes == {}
    (finding,) = await found(other, f"journal on {other.name}")
    assert finding.level is Level.OK
    assert "1 volume" in finding.what


NONE = JournalState(trouble=InvalidInput("a journal of 1M is too small", remedy="give it 24M"))
FAILED = JournalState(
    total_bytes=1,
    live_bytes=0,
    most_bytes=1,
    trouble=StorageError("it takes nothing any more", remedy="restart pannierd"),
)
UNREADABLE = JournalState(
    trouble=Corrupt("it has no superblock", remedy="move the file away"), unreadable=True
)

TAKEN = JournalState(
    trouble=Conflict("another process has it open: 17 (pannierd)", remedy="end it"),
    unreadable=True,
    taken=True,
)


@pytest.mark.parametrize(
    ("state", "level", "what", "remedy"),
    [
        (NONE, Level.WARNING, "there is none: a journal of 1M is too small", "give it 24M"),
        (FAILED, Level.PROBLEM, "it takes nothing any more", "restart pannierd"),
        (UNREADABLE, Level.PROBLEM, "(vol): none of them is taken over", "move the file away"),
        (TAKEN, Level.PROBLEM, "has it open: 17 (pannierd). Until it is gone", "end it"),
    ],
    ids=["none", "failed", "unreadable", "taken"],
)
async def test_a_journal_in_trouble_is_found(
    world: CopiesWorld, state: JournalState, level: Level, what: str, remedy: str
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    other.disk.journal = state
    (finding,) = await found(other, f"journal on {other.name}")
    assert finding.level is level
    assert what in finding.what
    assert remedy in finding.remedy
    view = await other.ask(lambda run: run.service.node(other.name))
    assert view.journal is not None
    assert state.trouble is not None
    assert view.journal.trouble == state.trouble.message


async def test_a_copy_that_may_lack_records_is_found_with_what_happens_next(
    world: CopiesWorld,
) -> None:
    volume = await following(world, copies="3")
    other = world.replica(volume)
    other.disk.journal = replace(other.disk.journal, damaged={volume.id: "a segment is damaged"})

    async def told() -> FindingView:
        (finding,) = [one for one in await found(other, "volume vol") if "may lack" in one.what]
        assert "a segment is damaged" in finding.what
        return finding

    assert (await told()).level is Level.WARNING
    assert "nothing need be done" in (await told()).remedy
    view = await other.ask(lambda run: run.service.node(other.name))
    assert view.journal is not None
    assert view.journal.damaged == ["vol: a segment is damaged"]
    world.losing(volume)
    await world.down(world.a)
    assert (await told()).level is Level.PROBLEM
    assert "start a" in (await told()).remedy


async def test_what_a_holder_lacks_of_its_own_volume_is_no_finding(world: CopiesWorld) -> None:
    volume = await following(world)
    world.a.disk.journal = replace(world.a.disk.journal, damaged={volume.id: "damaged"})
    assert not [one for one in await found(world.a, "volume vol") if "may lack" in one.what]


# -- the log -------------------------------------------------------------------------------------------


async def lines_of_the_log(
    world: CopiesWorld, volume: Volume, event: str, *, each: Callable[[], Any]
) -> list[Any]:
    """What is logged while a write is synced in each of 150 seconds."""
    structlog.configure(wrapper_class=structlog.BoundLogger)  # the world lets nothing through
    with capture_logs() as lines:
        for number in range(150):
            each()
            await written(world, volume, f"file-{number}")
            await asyncio.sleep(1)
    return [line for line in lines if line["event"] == event]


async def test_a_copy_that_keeps_no_record_is_logged_once_a_minute(world: CopiesWorld) -> None:
    volume = await following(world)
    world.replica(volume).disk.journal_full = True
    lines = await lines_of_the_log(world, volume, "line.broken", each=lambda: None)
    assert 2 <= len(lines) <= 1 + 300 / CopiesPace().say
    assert "left_out" not in lines[0]
    assert lines[1]["left_out"] >= 5  # after a refusal it is tried again each 10 s


async def test_a_trace_with_a_gap_each_second_is_logged_once_a_minute(world: CopiesWorld) -> None:
    volume = await following(world)
    lines = await lines_of_the_log(
        world, volume, "line.doubt", each=lambda: world.a.disk.untold.add(volume.id)
    )
    assert 2 <= len(lines) <= 1 + 300 / CopiesPace().say
    assert lines[1]["left_out"] > 20
