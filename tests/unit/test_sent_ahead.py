"""A record that is on its way before this node's disk has flushed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from test_lines import following, records_sent
from world import event_loop_policy

from pannier.barrier.calls import DONE, Answer, OpenFile, SyncCall
from pannier.barrier.local_sync import Steps, SyncedCall
from pannier.copies import local
from pannier.copies.lines import Lines
from pannier.core.errors import StorageError, Unavailable
from pannier.core.line import Cut, Doubt, LinePlace
from pannier.core.pace import CopiesPace

__all__ = ["event_loop_policy"]

FLUSH_SECONDS = 0.05
"""Much less than an interval: in between, nothing else makes records."""
CALL = SyncCall("c", 1, "fdatasync", 3, 0.0, file=OpenFile(1, 1))


@dataclass
class Disk:
    """This node's disk: it takes what was written at once, and flushes it slowly.

    Attributes:
        answer: of the flush.
        writes: what the file system writes for the flush.
        with_cuts: how many groups it was asked to sync whose thread takes cuts.
        flushed: how many flushes have ended.
    """

    answer: SyncedCall = field(default_factory=lambda: SyncedCall(DONE))
    writes: Callable[[], None] = lambda: None
    with_cuts: int = 0
    flushed: int = 0
    flush_seconds: float = FLUSH_SECONDS

    async def sync_group(
        self, calls: Sequence[SyncCall], *, root: Path, steps: Steps | None = None
    ) -> list[SyncedCall]:
        """In a thread: who does not wait for it any more does not end it."""
        return await asyncio.shield(asyncio.create_task(self._sync(calls, steps)))

    async def _sync(self, calls: Sequence[SyncCall], steps: Steps | None) -> list[SyncedCall]:
        self.with_cuts += steps is not None
        if steps is not None and steps.given is not None:
            steps.given()
        await asyncio.sleep(self.flush_seconds)
        self.writes()
        self.flushed += 1
        if steps is not None and not self.answer.refused:
            steps.durable()
        return [self.answer for _ in calls]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(local, "sync_group", disk.sync_group)
    return disk


async def synced(world: CopiesWorld) -> Sequence[Answer]:
    answers = await world.a.ask(lambda run: run.acknowledging.make_durable("vol", [CALL]))
    world.inspect()
    return answers


async def test_the_copy_has_it_before_this_disk_has_flushed_and_nothing_is_sent_twice(
    world: CopiesWorld, disk: Disk
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    world.put(world.a, volume, "file", b"x")
    before = records_sent(world)
    group = asyncio.create_task(synced(world))
    await world.until(lambda: world.current(other, volume))
    assert disk.flushed == 0
    assert not group.done()
    assert await group == [DONE]
    assert disk.flushed == 1
    assert records_sent(world) == before + 1


async def test_what_is_written_for_the_flush_is_sent_too_and_the_next_group_sends_once(
    world: CopiesWorld, disk: Disk
) -> None:
    volume = await following(world)
    other = world.replica(volume)
    for number, records in enumerate((2, 1, 2, 1, 1)):  # then it is tried ever more seldom
        disk.writes = lambda name=f"journal-{number}": world.put(world.a, volume, name, b"j")  # type: ignore[misc]
        world.put(world.a, volume, f"file-{number}", b"x")
        before = records_sent(world)
        assert await synced(world) == [DONE]
        assert records_sent(world) - before == records
        assert world.current(other, volume)


async def test_a_flush_that_fails_is_the_answer_whatever_the_copy_has(
    world: CopiesWorld, disk: Disk
) -> None:
    volume = await following(world)
    disk.answer = SyncedCall(Answer(errno.EIO), refused=True)
    world.put(world.a, volume, "file", b"x")
    assert await synced(world) == [Answer(errno.EIO)]


async def test_a_doubt_before_the_flush_is_answered_by_a_generation_after_it(
    world: CopiesWorld, disk: Disk
) -> None:
    volume = await following(world)
    disk.writes = lambda: world.put(world.a, volume, "late", b"l")
    world.a.disk.untold.add(volume.id)
    world.put(world.a, volume, "file", b"x")
    assert await synced(world) == [DONE]
    assert world.current(world.replica(volume), volume)


async def test_what_was_told_and_not_sent_before_the_flush_is_in_a_generation(
    world: CopiesWorld, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the flush nothing new is told: what was lost on its way must not count as sent."""
    volume = await following(world)
    cut = SparseSnapshotDriver.cut_now

    def lost(driver: SparseSnapshotDriver, place: LinePlace) -> Cut | Doubt:
        cut(driver, place)
        monkeypatch.setattr(SparseSnapshotDriver, "cut_now", cut)
        raise StorageError("the image cannot be read")

    monkeypatch.setattr(SparseSnapshotDriver, "cut_now", lost)
    world.put(world.a, volume, "file", b"x")
    assert await synced(world) == [DONE]
    assert world.current(world.replica(volume), volume)


async def test_a_disk_that_hangs_keeps_the_volume_from_nobody_else(
    world: CopiesWorld, disk: Disk
) -> None:
    """What is written meanwhile is sent by the next interval."""
    volume = await following(world)
    disk.flush_seconds = 40 * CopiesPace().hold
    world.put(world.a, volume, "file", b"x")
    group = asyncio.create_task(synced(world))
    await world.until(lambda: world.current(world.replica(volume), volume))
    world.put(world.a, volume, "other", b"y")
    await world.until(lambda: world.current(world.replica(volume), volume))
    assert not group.done()
    assert await group == [DONE]
    assert world.current(world.replica(volume), volume)


async def test_a_thread_that_nobody_waits_for_any_more_takes_nothing_from_the_next_run(
    world: CopiesWorld, disk: Disk
) -> None:
    volume = await following(world)
    disk.flush_seconds = 10 * FLUSH_SECONDS
    world.put(world.a, volume, "file", b"x")
    group = asyncio.create_task(synced(world))
    await asyncio.sleep(FLUSH_SECONDS)
    group.cancel()
    with pytest.raises(asyncio.CancelledError):
        await group
    disk.flush_seconds = FLUSH_SECONDS
    assert await synced(world) == [DONE]
    assert world.current(world.replica(volume), volume)
    world.put(world.a, volume, "later", b"y")
    flushed = disk.flushed
    await world.until(lambda: disk.flushed > flushed)
    assert await synced(world) == [DONE]
    assert world.current(world.replica(volume), volume)


async def test_no_thread_cuts_while_somebody_else_has_the_lock_or_is_about_to(
    world: CopiesWorld, disk: Disk
) -> None:
    """A lock that was just given up is not locked, and whoever waits for it comes first."""
    volume = await following(world)
    group = world.a.up.replicator.replicated(volume.name).group
    has_it, leave = asyncio.Event(), asyncio.Event()

    async def another() -> None:
        async with group:
            has_it.set()
            await leave.wait()

    async with group:
        waiting = asyncio.create_task(another())
        await asyncio.sleep(0)
        before = disk.with_cuts
        asked = world.a.up.acknowledging.make_durable(volume.name, [CALL])
        syncing = asyncio.create_task(
            asked
        )  # which runs when the lock is given up, and nobody has it yet
    await has_it.wait()
    await asyncio.sleep(0.1)
    assert (disk.with_cuts, syncing.done()) == (before, False)
    leave.set()
    assert await syncing == [DONE]
    assert disk.with_cuts == before + 1
    await waiting


async def test_a_record_that_cannot_be_made_of_what_was_told_ends_its_line(
    world: CopiesWorld, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await following(world)
    ship = Lines._ship

    def broken(lines: Lines, *args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(Lines, "_ship", ship)
        raise RuntimeError("a bug")

    world.put(world.a, volume, "file", b"x")
    monkeypatch.setattr(Lines, "_ship", broken)
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    assert await synced(world) == [DONE]
    assert world.current(world.replica(volume), volume)
    assert [type(each) for each in told] == [RuntimeError]


async def test_nothing_is_cut_for_a_replication_that_another_one_has_followed(
    world: CopiesWorld,
) -> None:
    """Whoever waited for the lock with it would take what the new run must tell."""
    volume = await following(world)
    replicator = world.a.up.replicator
    former = replicator.replicated(volume.name)
    former.end()
    async with former.group:
        with pytest.raises(Unavailable):
            await replicator.advance(former)
        with pytest.raises(Unavailable):
            await replicator.make(former)


async def test_the_record_that_a_group_waits_for_says_what_its_sync_call_has_made_durable(
    world: CopiesWorld, disk: Disk
) -> None:
    """So a disk that was set back by two calls is noticed: the notes up to the one before are on it."""
    volume = await following(world)
    for number in range(3):
        disk.writes = lambda name=f"journal-{number}": world.put(world.a, volume, name, b"j")  # type: ignore[misc]
        world.put(world.a, volume, f"file-{number}", b"x")
        assert await synced(world) == [DONE]
    records = world.replica(volume).disk.homes[volume.id].records
    last, ahead = (place for place, _ in reversed(records[-2:]))
    # The second group sent nothing ahead: its record, before these two, was the last that was answered.
    assert (last.number - last.acknowledged, ahead.number - last.acknowledged) == (2, 1)
