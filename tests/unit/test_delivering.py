"""A copy that cannot take in a difference gets everything, whatever the reason is; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import Content, SingleTreeDriver, SnapshotDriver, SparseSnapshotDriver
from world import Machine, event_loop_policy

from pannier.contract.words import Level
from pannier.core.delivery import SENT_ANEW
from pannier.core.errors import Corrupt, PannierError, PeerUnavailable, StorageError
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace, Pace
from pannier.core.volume import HistoryEntry, Volume

__all__ = ["event_loop_policy"]

A_WHILE = 10.0
PACE = CopiesPace(refused_limit=60.0)
"""With a limit that a test can wait for."""

Hurt = Callable[[CopiesWorld, Machine, Volume], None]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, pace=Pace(copies=PACE)) as world:
        yield world


def told(world: CopiesWorld) -> list[HistoryEntry]:
    return [line for line in world.now_record().history if line.what == SENT_ANEW]


def refuses_differences(error: Exception) -> Hurt:
    def hurt(world: CopiesWorld, replica: Machine, volume: Volume) -> None:
        bases = frozenset(world.generations(replica, volume))

        def refuse(base: Generation | None, content: Content) -> None:
            if base in bases:
                raise error

        replica.disk.taking = refuse

    return hurt


def base_is_other_than_it_was(world: CopiesWorld, replica: Machine, volume: Volume) -> None:
    home = replica.disk.homes[volume.id]
    for generation in home.generations:
        home.described[generation] = home.generations[generation] = {"bulk": b"other bytes"}


def base_is_gone_at_the_holder(world: CopiesWorld, replica: Machine, volume: Volume) -> None:
    """It is listed there, and cannot be read any more."""
    driver = world.a.up.driver
    send, bases = driver.send, frozenset(world.generations(replica, volume))

    def refuse(volume_id: str, generation: Generation, *, base: Generation | None) -> object:
        if base in bases:
            raise Corrupt(f"generation {base} is not whole here")
        return send(volume_id, generation, base=base)

    driver.send = refuse  # type: ignore[method-assign, assignment]


def sender_has_a_bug(world: CopiesWorld, replica: Machine, volume: Volume) -> None:
    driver = world.a.up.driver
    send, bases = driver.send, frozenset(world.generations(replica, volume))

    def fail(volume_id: str, generation: Generation, *, base: Generation | None) -> object:
        if base in bases:
            raise KeyError(str(base))
        return send(volume_id, generation, base=base)

    driver.send = fail  # type: ignore[method-assign, assignment]


KINDS: dict[str, Hurt] = {
    "hash-unfit": base_is_other_than_it_was,
    "base-missing": refuses_differences(Corrupt("generation 1.1 is not here, or not whole")),
    "stream-refused": refuses_differences(
        StorageError("btrfs receive: chattr failed: Operation not permitted")
    ),
    "base-unreadable": refuses_differences(StorageError("cannot receive it: Input/output error")),
    "not-foreseen-there": refuses_differences(
        PannierError("receiving failed in a way that was not foreseen")
    ),
    "file-changed": refuses_differences(
        Corrupt("'f' in this node's copy is no longer what it was")
    ),
    "base-gone-here": base_is_gone_at_the_holder,
    "not-foreseen-here": sender_has_a_bug,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", [SnapshotDriver, SparseSnapshotDriver])
async def test_whatever_a_difference_fails_of_the_copy_arrives(
    tmp_path: Path, kind: str, driver: type[SnapshotDriver]
) -> None:
    async with CopiesWorld(tmp_path, driver=driver) as world:
        await _whatever_it_fails_of(world, kind)


async def _whatever_it_fails_of(world: CopiesWorld, kind: str) -> None:
    volume = await world.volume(world.a)
    world.put(world.a, volume, "bulk", b"x" * 10_000)
    replica = world.replica(volume)
    await world.until(lambda: world.current(replica, volume))
    await asyncio.sleep(A_WHILE)
    world.sent.clear()
    world.careless.add(replica.name)
    KINDS[kind](world, replica, volume)
    world.put(world.a, volume)
    await world.save(world.a)
    await world.until(lambda: world.current(replica, volume))
    assert [transfer.base for transfer in world.sent_to(replica.name)][:1] == [None]
    await world.until(lambda: replica.name in world.now_record().in_sync)
    (line,) = told(world)
    assert line.node == replica.name
    assert "3 differences in a row did not arrive: " in line.detail
    world.put(world.a, volume)
    await world.save(world.a)
    await world.until(lambda: world.current(replica, volume))
    assert world.sent_to(replica.name)[-1].base is not None, "from then on it gets differences"
    (copy,) = (await world.copies(world.a)).values()
    assert (copy.error, copy.sent_anew, copy.refused) == ("", "", "")
    # The mistake that was made on purpose is told as any other, and ends no task but its own.
    world.violations = [found for found in world.violations if "KeyError" not in found]


def refuses_everything(why: str) -> Callable[[Generation | None, Content], None]:
    def refuse(base: Generation | None, content: Content) -> None:
        raise Corrupt(why)

    return refuse


async def written(world: CopiesWorld) -> tuple[Volume, Machine]:
    """A volume with a copy in sync, and a write since its newest generation."""
    volume = await world.saved_volume(world.a)
    replica = world.replica(volume)
    await world.until(lambda: world.current(replica, volume))
    world.sent.clear()
    world.tries.clear()
    return volume, replica


async def test_a_copy_that_takes_in_nothing_says_so_and_is_tried_more_and_more_seldom(
    world: CopiesWorld,
) -> None:
    volume, replica = await written(world)
    before = world.copy(replica, volume)
    replica.disk.taking = refuses_everything("'f' cannot be kept here as it is")
    world.put(world.a, volume)
    await asyncio.sleep(900)
    times = [at for _, at in world.tries]
    pauses = [later - at for at, later in pairwise(times)]
    assert max(pauses) <= PACE.refused_limit + 2
    assert min(pauses[-3:]) >= PACE.refused_limit - 2
    assert len(times) < 25
    assert world.copy(replica, volume) == before, "what it has stays"
    assert replica.name not in world.now_record().in_sync
    (copy,) = (await world.copies(world.a)).values()
    assert copy.refused == "'f' cannot be kept here as it is"
    assert "3 differences in a row" in copy.sent_anew
    for findings in (
        await world.a.ask(lambda run: run.service.doctor()),
        await world.a.ask(lambda run: run.service.explain_volume("vol")),
    ):
        assert any(
            found.level == Level.PROBLEM and "not even as a whole: 'f' cannot" in found.what
            for found in findings
        )
    assert len(told(world)) == 1
    replica.disk.taking = None
    await world.until(lambda: world.current(replica, volume), seconds=PACE.refused_limit + 60)
    await world.until(lambda: replica.name in world.now_record().in_sync)
    (copy,) = (await world.copies(world.a)).values()
    assert (copy.error, copy.sent_anew, copy.refused) == ("", "", "")


@pytest.mark.parametrize("restarted", ["the copy", "the holder"])
async def test_a_restart_ends_the_pause(tmp_path: Path, restarted: str) -> None:
    async with CopiesWorld(tmp_path) as world:
        await _a_restart_ends_the_pause(world, restarted)


async def _a_restart_ends_the_pause(world: CopiesWorld, restarted: str) -> None:
    volume, replica = await written(world)
    replica.disk.taking = refuses_everything("it cannot")
    world.put(world.a, volume)
    await asyncio.sleep(1200)
    replica.disk.taking = None
    machine = replica if restarted == "the copy" else world.a
    await world.down(machine)
    await asyncio.sleep(2)
    await machine.start()
    await world.until(lambda: world.current(replica, volume), seconds=10.0)


async def test_the_first_generation_of_a_copy_that_takes_in_nothing_is_tried_seldom_too(
    world: CopiesWorld,
) -> None:
    for machine in (world.b, world.c):
        machine.disk.taking = refuses_everything("it cannot")
    volume = await world.volume(world.a)
    world.put(world.a, volume)
    await asyncio.sleep(900)
    assert len(world.tries) < 25
    (copy,) = (await world.copies(world.a)).values()
    assert (copy.refused, copy.sent_anew) == ("it cannot", "")
    assert not told(world)


async def test_where_every_difference_fails_everything_is_sent_more_and_more_seldom(
    world: CopiesWorld,
) -> None:
    volume, replica = await written(world)

    def refuse(base: Generation | None, content: Content) -> None:
        if base is not None:
            raise Corrupt("it does not fit")

    replica.disk.taking = refuse
    for _ in range(180):
        world.put(world.a, volume)
        await asyncio.sleep(5)
    assert all(transfer.base is None for transfer in world.sent_to(replica.name))
    assert 2 <= len(world.sent_to(replica.name)) <= 8
    assert len(told(world)) == 1, "the history has room for other lines"


async def test_power_fails_at_the_holder_before_everything_was_sent(world: CopiesWorld) -> None:
    volume, replica = await written(world)
    refuses_differences(Corrupt("it does not fit"))(world, replica, volume)
    world.put(world.a, volume)
    await world.until(lambda: told(world))
    await world.down(world.a)
    await world.a.start()
    await world.mount(world.a, "vol")
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume))


async def test_the_history_is_told_once_the_store_answers_and_nothing_waits_for_that(
    world: CopiesWorld,
) -> None:
    volume, replica = await written(world)
    refuses_differences(Corrupt("it does not fit"))(world, replica, volume)
    world.cut_store()
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume))
    await asyncio.sleep(60)
    assert not told(world)
    world.mend_store()
    await world.until(lambda: told(world))
    (line,) = told(world)
    assert line.detail == "3 differences in a row did not arrive: it does not fit"


async def test_a_difference_to_which_no_answer_comes_is_given_up_in_the_end(
    world: CopiesWorld,
) -> None:
    volume, replica = await written(world)
    refuses_differences(PeerUnavailable("the connection broke"))(world, replica, volume)
    world.put(world.a, volume)
    await world.until(lambda: world.current(replica, volume), seconds=900)
    assert len(world.tries) == PACE.broken_tries + 1


@pytest.mark.parametrize("driver", [SnapshotDriver, SingleTreeDriver])
async def test_a_move_to_a_node_that_takes_in_no_difference_arrives(
    tmp_path: Path, driver: type[SnapshotDriver]
) -> None:
    async with CopiesWorld(tmp_path, driver=driver) as world:
        volume = await world.create(world.a, "vol")
        for there, back in ((world.a, world.b), (world.b, world.a)):
            await world.mount(there, "vol")
            world.put(there, volume)
            await world.unmount(there, "vol")
            if back is world.a:
                refuses_differences(Corrupt("it does not fit"))(world, back, volume)
                described = back.disk.homes[volume.id].described
                described.update({each: {"file": b"other bytes"} for each in described})
            await world.mount(back, "vol")
            await world.unmount(back, "vol")
        assert world.now_record().grant.node == "a"
        assert world.contents("vol") == world.acked[volume.id]
