"""A record that is on its way before this node's disk has flushed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from test_lines import following, records_sent
from world import event_loop_policy

from pannier.barrier.calls import DONE, Answer, OpenFile, SyncCall
from pannier.barrier.local_sync import SyncedCall
from pannier.copies import local

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
        flushed: how many flushes have ended.
    """

    answer: SyncedCall = field(default_factory=lambda: SyncedCall(DONE))
    writes: Callable[[], None] = lambda: None
    flushed: int = 0

    async def sync_group(
        self, calls: Sequence[SyncCall], *, root: Path, given: Callable[[], None] | None
    ) -> list[SyncedCall]:
        if given is not None:
            given()
        await asyncio.sleep(FLUSH_SECONDS)
        self.writes()
        self.flushed += 1
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
