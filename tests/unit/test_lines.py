"""Sync calls by records: what is confirmed is on the copies without a generation, and a takeover has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import Step, event_loop_policy

from pannier.agent.promises import Refusal
from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.core.line import LinePlace, Tail, follows, tail
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume

__all__ = ["event_loop_policy"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def following(world: CopiesWorld, **options: str) -> Volume:
    """A volume whose copies get records."""
    volume = await world.synced_volume(world.a, **options)
    world.put(world.a, volume, "first", b"1")
    await world.sync(world.a)
    line = world.a.up.replicator.replicated("vol").line
    assert line is not None
    assert all(p.follows(line) for p in world.progress(world.a, volume).values())
    return world.now_record()


async def test_a_synced_write_makes_no_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    before = len(world.sent)
    for number in range(5):
        world.put(world.a, volume, f"file-{number}", b"x")
        await world.sync(world.a)
    assert len(world.sent) == before
    assert world.current(world.replica(volume), volume)


async def test_a_takeover_puts_the_records_on_top_of_the_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    world.put(world.a, volume, "record", b"yes")
    await world.sync(world.a)
    world.losing(volume)
    await world.down(world.a)
    other = world.replica(volume)
    await world.mount(other, "vol")
    assert world.contents("vol")["record"] == b"yes"


async def test_a_generation_frees_the_records_before_it(world: CopiesWorld) -> None:
    volume = await following(world)
    for number in range(3):
        world.put(world.a, volume, f"file-{number}", b"x")
        await world.sync(world.a)
    other = world.replica(volume)
    assert other.disk.homes[volume.id].records
    world.put(world.a, volume, "late", b"x")
    await world.until(lambda: not other.disk.homes[volume.id].records)
    assert world.current(other, volume)


async def test_what_the_trace_does_not_tell_goes_with_a_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    run = world.a.up.replicator.replicated("vol").line
    world.put(world.a, volume, "untold", b"x")
    world.a.disk.untold.add(volume.id)
    await world.sync(world.a)
    assert world.current(world.replica(volume), volume)
    now = world.a.up.replicator.replicated("vol").line
    assert run is not None
    assert now is not None
    assert now.run != run.run


async def test_a_full_journal_is_answered_by_a_generation(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    other.disk.journal_full = True
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.current(other, volume)
    assert world.now_record().in_sync == (other.name,)


async def test_a_copy_that_keeps_no_record_is_asked_seldom_and_follows_again_in_the_end(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    other.disk.journal_failed = StorageError("the journal takes nothing any more")
    asked = records_sent(world)
    for number in range(60):
        world.put(world.a, volume, f"file-{number}", b"x")
        await world.sync(world.a)
        await asyncio.sleep(0.5)
    tries = records_sent(world) - asked
    pace = world.pace.copies
    assert pace.refused_tries <= tries <= pace.refused_tries + 1 + 60 * 0.5 / pace.full_again
    assert world.current(other, volume)
    assert world.now_record().in_sync == (other.name,)
    other.disk.journal_failed = None
    await asyncio.sleep(pace.full_again)
    for number in range(3):
        world.put(world.a, volume, f"later-{number}", b"x")
        await world.sync(world.a)
        await asyncio.sleep(0.5)
    replicated = world.a.up.replicator.replicated("vol")
    assert all(p.follows(replicated.line) for p in replicated.progress.values())


def records_sent(world: CopiesWorld) -> int:
    return sum(step.label == "record.send" for step in world.steps)


async def test_a_copy_that_lost_its_generations_keeps_no_records(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    await world.sparse_driver(other).quarantine(volume.id)
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.current(other, volume)


async def test_a_generation_that_comes_under_a_takeover_frees_no_records(
    world: CopiesWorld,
) -> None:
    """The takeover has chosen what it begins with, and needs the records on top of that."""
    volume = await following(world)
    world.losing(volume)
    world.put(world.a, volume, "record", b"yes")
    await world.sync(world.a)
    other = world.replica(volume)
    (base, *_) = reversed(world.generations(other, volume))
    promises = other.up.promises

    def begin_a_takeover(step: Step) -> None:
        if (step.of, step.label) == (other.name, "driver.receive"):
            entry = world.data.get("volumes/vol")
            assert entry is not None
            promises._refused[volume.id] = Refusal(volume.grant.epoch, entry.revision)

    world.faults = begin_a_takeover
    world.put(world.a, volume, "later", b"x")
    world.a.disk.untold.add(volume.id)
    syncing = asyncio.ensure_future(world.sync(world.a))
    await world.until(lambda: max(world.generations(other, volume)) > base)
    world.faults = lambda step: None
    await world.down(world.a)
    syncing.cancel()
    assert other.disk.homes[volume.id].with_records(base)["record"] == b"yes"


async def test_a_copy_that_was_lost_is_not_confirmed_by_what_was_on_its_way(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    replicated = world.a.up.replicator.replicated("vol")
    progress = replicated.progress[world.replica(volume).name]
    world.slow[world.replica(volume).name] = 1.0
    world.put(world.a, volume, "more", b"x")
    async with replicated.group:
        await world.a.up.replicator.make(replicated)
    await world.until(lambda: progress.sending is not None)
    await replicated.note_lost(world.replica(volume).name)
    replicated.note_confirmed(world.replica(volume).name, at=0.0)
    assert not progress.has(replicated.position)
    assert progress.generation is None


async def test_a_run_begins_with_a_generation_of_its_own(world: CopiesWorld) -> None:
    """What copies have on top of the one before is not of this run, even if this node has none of it."""
    volume = await following(world)
    newest = world.a.up.replicator.replicated("vol").newest
    assert newest is not None
    world.a.crash()
    await world.a.start()
    await world.until(lambda: world.a.up.replicator.all_replicated())
    (replicated,) = world.a.up.replicator.all_replicated()
    await world.until(lambda: replicated.line is not None)
    assert replicated.line is not None
    assert replicated.line.generation > newest
    await world.until(lambda: world.current(world.replica(volume), volume))


async def test_what_a_power_cut_took_from_the_holder_is_gone_from_its_copies_when_somebody_reads(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    world.losing(volume)
    other, home = world.replica(volume), world.a.disk.homes[volume.id]
    await world.until(lambda: "first" in home.generations[max(home.generations)])
    newest = max(home.generations)
    world.put(world.a, volume, "shipped", b"x")
    await world.until(lambda: "shipped" in world.copy(other, volume))
    await world.down(world.a)
    tree = home.live[volume.grant.epoch]
    tree.content, tree.saved_as = dict(home.generations[newest]), newest
    await world.a.start()
    await world.mount(world.a, "vol")
    assert "shipped" not in world.contents("vol")
    assert "shipped" not in world.copy(other, volume)


async def test_of_three_copies_one_may_be_slow_or_gone(world: CopiesWorld) -> None:
    volume = await following(world, copies="3")
    one, two = (world.machines[name] for name in volume.replicas)
    world.cut_link("a", two.name)
    world.put(world.a, volume, "more", b"x")
    await world.sync(world.a)
    assert world.now_record().in_sync == (one.name,)
    world.mend_links()
    await world.until(lambda: set(world.now_record().in_sync) == {one.name, two.name})
    world.put(world.a, volume, "again", b"x")
    before = len(world.sent)
    await world.sync(world.a)
    assert len(world.sent) == before
    assert world.current(two, volume)


async def test_an_interrupted_caller_is_answered_when_nothing_is_new(world: CopiesWorld) -> None:
    volume = await following(world)
    assert await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))
    world.put(world.a, volume, "more", b"x")
    assert not await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))
    await world.sync(world.a)
    assert await world.a.ask(lambda run: run.acknowledging.unchanged("vol"))


def place(number: int, *, of: int = 1, included: int = 0, run: str = "r") -> LinePlace:
    return LinePlace(
        volume="v", epoch=1, run=run, number=number, generation=Generation(1, of), included=included
    )


@pytest.mark.parametrize(
    ("one", "last", "newest", "kept"),
    [
        (place(1), None, 1, True),
        (place(2), place(1), 1, True),
        (place(2), None, 1, False),
        (place(3), place(1), 1, False),
        (place(1), place(1), 2, False),
        (place(2, run="s"), place(1), 1, False),
        (place(3, of=2, included=2), None, 2, True),
        (place(3, of=2, included=2), place(2), 1, True),
        (place(4, of=2, included=2), None, 2, False),
        (place(3, of=2, included=2), None, 1, False),
    ],
)
def test_a_copy_keeps_only_what_follows_what_it_has(
    one: LinePlace, last: LinePlace | None, newest: int, kept: bool
) -> None:
    assert follows(one, last=last, newest=Generation(1, newest)) is kept


def test_on_top_of_a_generation_is_what_was_made_after_it() -> None:
    places = [place(1), place(2), place(3, of=2, included=2)]
    assert tail(places, Generation(1, 1)) == Tail(places=tuple(places))
    assert tail(places, Generation(1, 2)) == Tail(places=tuple(places[2:]))
    assert tail(places, Generation(1, 3)) == Tail(places=())


def test_what_stands_on_a_generation_that_came_too_late_is_left_out() -> None:
    places = [place(1), place(4, of=2, included=3)]
    assert tail(places, Generation(1, 1)) == Tail(places=tuple(places[:1]))
    assert tail(places, Generation(1, 2)) == Tail(places=tuple(places[1:]))


@pytest.mark.parametrize(
    ("places", "between"),
    [
        ([place(2)], "generation 1.1"),
        ([place(1), place(3)], "record 1"),
        ([place(1), place(1, run="s")], "record 1"),
    ],
)
def test_a_missing_record_is_told(places: list[LinePlace], between: str) -> None:
    found = tail(places, Generation(1, 1))
    assert found.places == tuple(places[:-1])
    assert found.lacks.endswith(f"is here, and not what is between it and {between}")


async def test_a_generation_that_is_the_newest_again_while_it_is_sent_is_confirmed_as_that(
    world: CopiesWorld,
) -> None:
    """Nothing else would be sent, and a sync call would wait for its position in vain."""
    volume = await following(world)
    world.slow[world.replica(volume).name] = 3.0
    replicated = world.a.up.replicator.replicated("vol")
    world.put(world.a, volume, "more", b"x")
    async with replicated.group:
        await world.a.ask(lambda run: run.replicator.make(replicated))
        replicated.position += 1  # a record that told nothing new
        await world.a.ask(lambda run: run.replicator.make(replicated))
        progress = world.progress(world.a, volume)[world.replica(volume).name]
        await world.until(lambda: progress.has(replicated.position), seconds=10)


async def test_what_is_synced_while_a_copy_gets_a_generation_needs_no_further_one(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    replicated = world.a.up.replicator.replicated("vol")
    world.slow[other.name] = 1.0
    world.put(world.a, volume, "much", b"x")
    world.a.disk.untold.add(volume.id)
    async with replicated.group:
        await world.a.ask(lambda run: run.replicator.advance(replicated))
    await world.until(lambda: replicated.progress[other.name].sending is not None)
    before = len(world.tries)
    world.put(world.a, volume, "little", b"x")
    await world.sync(world.a)
    assert world.current(other, volume)
    assert len(world.tries) == before
    assert other.disk.homes[volume.id].records


async def test_what_is_kept_for_a_copy_is_given_up_with_the_generation_below_it(
    world: CopiesWorld,
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    replicated = world.a.up.replicator.replicated("vol")
    world.cut_link("a", other.name)
    world.put(world.a, volume, "much", b"x")
    world.a.disk.untold.add(volume.id)
    async with replicated.group:
        await world.a.ask(lambda run: run.replicator.advance(replicated))
    world.put(world.a, volume, "little", b"x")
    await world.sync(world.a)
    assert world.now_record().in_sync == ()
    world.mend_links()
    await world.until(lambda: world.now_record().in_sync == (other.name,))
    assert world.current(other, volume)


async def test_too_many_bytes_are_not_kept_for_a_copy(world: CopiesWorld) -> None:
    volume = await following(world)
    other = world.replica(volume)
    replicated = world.a.up.replicator.replicated("vol")
    world.slow[other.name] = 1.0
    world.put(world.a, volume, "much", b"x")
    world.a.disk.untold.add(volume.id)
    async with replicated.group:
        await world.a.ask(lambda run: run.replicator.advance(replicated))
    following_ = replicated.progress[other.name].following
    assert following_ is not None
    following_.waiting_bytes = CopiesPace().most_waiting_bytes
    world.put(world.a, volume, "little", b"x")
    await world.sync(world.a)
    assert following_.broken
    assert world.current(other, volume)


async def test_a_copy_follows_again_when_its_generation_is_the_newest_again(
    world: CopiesWorld,
) -> None:
    """Nothing would be sent to it, so nothing else would let it follow."""
    volume = await following(world)
    other = world.replica(volume)
    replicated = world.a.up.replicator.replicated("vol")
    async with replicated.group:
        await world.a.ask(lambda run: run.replicator.make(replicated))
    progress = replicated.progress[other.name]
    await world.until(lambda: progress.generation == replicated.newest)
    async with replicated.group:
        assert progress.following is not None
        progress.following.break_off()
        await world.a.ask(lambda run: run.replicator.make(replicated))
        assert progress.follows(replicated.line)
