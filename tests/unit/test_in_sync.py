"""Who counts, and who has begun to take over: whatever became of a change without an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Fault, Machine, Step, event_loop_policy

from pannier.agent.promises import Refusal
from pannier.cluster.registry import Versioned
from pannier.core.errors import OutcomeUnknown, PannierError, Stale, StorageError
from pannier.core.pace import Pace
from pannier.core.volume import Grant, Volume
from pannier.store.base import ABSENT, Change

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]

UNKNOWN = (Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path) as world:
        await asyncio.sleep(USUAL.holding.promise)
        yield world


async def without_c(world: CopiesWorld) -> Volume:
    """A volume on a with copies on b and c, of which c is not in sync, but has caught up."""
    volume = await world.synced_volume(world.a, copies="3")
    world.slow["c"] = 30.0
    world.put(world.a, volume, "without", b"1")
    await world.sync(world.a)
    assert world.now_record().in_sync == ("b",)
    del world.slow["c"]
    return volume


# -- changes of the record ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", UNKNOWN)
async def test_leaving_without_an_answer(world: CopiesWorld, fault: Fault) -> None:
    """Nothing is acknowledged before it is certain that the replica cannot take over."""
    volume = await world.synced_volume(world.a, copies="3")
    await world.down(world.c)
    world.fail_at_label("store.commit", fault, of="a")
    world.put(world.a, volume, "more", b"1")
    with pytest.raises(OutcomeUnknown):
        await world.sync(world.a)
    for number in range(30):
        world.put(world.a, volume, f"more{number}", b"1")
        await world.sync(world.a)
        assert world.now_record().in_sync == ("b",)
        await asyncio.sleep(1)


@pytest.mark.parametrize("fault", UNKNOWN)
async def test_joining_without_an_answer(world: CopiesWorld, fault: Fault) -> None:
    volume = await without_c(world)
    world.fail_at_label("store.commit", fault, of="a")
    for number in range(45):
        world.put(world.a, volume, f"more{number}", b"1")
        await world.sync(world.a)
        await asyncio.sleep(1)
    assert set(world.now_record().in_sync) == {"b", "c"}


async def test_a_joining_that_comes_late_is_waited_for_when_replication_began_anew(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a hand-over that failed; meanwhile the one that joins is lost again."""
    volume = await without_c(world)
    monkeypatch.setattr(world.random, "choice", lambda _: 10.0)
    world.fail_at_label("store.commit", Fault.LATE, of="a")
    await world.until(lambda: world._late)
    await world.a.ask(lambda run: run.replicator.pause(volume))
    world.cut_link("a", "c")
    for number in range(30):
        world.put(world.a, volume, f"more{number}", b"1")
        await world.sync(world.a)
        await asyncio.sleep(1)
    assert world.now_record().in_sync == ("b",)


async def test_a_daemon_that_remembers_too_little_acknowledges_nothing_on_that(
    world: CopiesWorld,
) -> None:
    """Its memory on disk is from before the replica joined, and the store is away."""
    volume = await world.volume(world.a)
    await world.until(lambda: world.now_record().in_sync)
    file = world.a.state / "catalog.json"
    text = file.read_text()
    world.cut_store("a")
    world.a.crash()
    file.write_text(text.replace('"in_sync":["b"]', '"in_sync":[]'))
    await world.a.start()
    remembered = world.a.up.catalog.volume("vol")
    assert remembered is not None
    assert remembered.in_sync == ()
    world.isolate("a")
    with contextlib.suppress(OSError):
        world.put(world.a, volume, "more", b"1")
    for _ in range(10):
        with pytest.raises(PannierError):
            await world.sync(world.a)
        await asyncio.sleep(1)


# -- takeovers that were begun --------------------------------------------------------------------------


async def begun(world: CopiesWorld, fault: Fault) -> tuple[Volume, Machine]:
    """``b`` has begun to take the volume over and heard nothing; its holder is only cut off."""
    volume = await world.synced_volume(world.a, nodes="a,b")
    world.losing(volume)
    world.isolate("a")
    world.cut_store("a")
    await world.until(lambda: world.data.get("alive/a") is None)
    commit = world.b.up.registry.store.commit

    async def commit_and_lose_the_store(*changes: object) -> int:
        try:
            return await commit(*changes)  # type: ignore[arg-type]
        finally:
            world.cut_store("b")

    world.b.up.registry.store.commit = commit_and_lose_the_store  # type: ignore[method-assign]
    world.fail_at_label("store.commit", fault, of="b")
    with pytest.raises(OutcomeUnknown):
        await world.b.ask(lambda run: run.takeover.take("vol", epoch=1))
    return volume, world.b


def says_nothing_good(machine: Machine, volume: Volume) -> bool:
    refuses = machine.up.promises.refuses(volume.id, epoch=1)
    return refuses and not machine.up.promising.promise({volume.id: 1}, seconds=10, peer="a")


@pytest.mark.parametrize("restart", [None, Machine.crash, Machine.power_off])
async def test_a_takeover_that_comes_late_loses_nothing(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch, restart: object
) -> None:
    """The holder reaches the taker again, and it alone."""
    monkeypatch.setattr(world.random, "choice", lambda _: 20.0)
    volume, taker = await begun(world, Fault.LATE)
    if restart is not None:
        restart(taker)  # type: ignore[operator]
        await taker.start()
    assert says_nothing_good(taker, volume)
    world.mend_links()
    await asyncio.sleep(3)
    container = await _mount_again(world)
    for number in range(30):
        with contextlib.suppress(OSError, PannierError):
            world.put(world.a, volume, f"more{number}", b"1")
            await world.sync(world.a)
        await asyncio.sleep(1)
    assert world.now_record().grant == Grant("b", 2)
    assert container is None


async def _mount_again(world: CopiesWorld) -> str | None:
    try:
        async with asyncio.timeout(30):
            return await world.run_container(world.a, "vol", "again")
    except (PannierError, TimeoutError):
        return None


async def test_a_takeover_that_did_not_happen_is_over_when_the_holder_is_back(
    world: CopiesWorld,
) -> None:
    volume, taker = await begun(world, Fault.LOSE_REQUEST)
    world.mend_links()
    world.mend_store()
    await asyncio.sleep(3)
    await world.mount(world.a, "vol")
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert not taker.up.promises.refuses(volume.id, epoch=1)
    assert world.copy(taker, volume) == world.contents("vol")


async def test_a_takeover_that_was_given_up_half_way_may_happen_yet(world: CopiesWorld) -> None:
    """Whoever asked for it has gone while the store was asked."""
    volume = await world.synced_volume(world.a, nodes="a,b")
    world.losing(volume)
    world.isolate("a")
    world.cut_store("a")
    await world.until(lambda: world.data.get("alive/a") is None)
    taking = world.b.up.spawn(world.b.up.takeover.take("vol", epoch=1))
    await world.until(lambda: world.b.up.promises.refuses(volume.id, epoch=1))
    world.delay = lambda: 5.0
    await asyncio.sleep(0.1)
    taking.cancel()
    world.delay = lambda: 0.0
    with contextlib.suppress(asyncio.CancelledError):
        await taking
    assert says_nothing_good(world.b, volume)


@pytest.mark.parametrize("up", [True, False])
async def test_a_takeover_that_was_refused_for_certain_is_forgotten(
    world: CopiesWorld, up: bool
) -> None:
    volume = await world.synced_volume(world.a, nodes="a,b")
    if up:
        with pytest.raises(PannierError, match="is up"):
            await world.b.ask(lambda run: run.takeover.take("vol", epoch=1))
    else:
        world.losing(volume)
        world.a.freeze()
        await world.until(lambda: world.data.get("alive/a") is None)
        commit = world.b.up.registry.take_volume

        async def returned(*wishes: object, **named: object) -> Versioned[Volume]:
            world.a.thaw()
            await world.until(lambda: world.data.get("alive/a") is not None)
            return await commit(*wishes, **named)  # type: ignore[arg-type]

        world.b.up.registry.take_volume = returned  # type: ignore[method-assign]
        with pytest.raises(Stale):
            await world.b.ask(lambda run: run.takeover.take("vol", epoch=1))
    assert not world.b.up.promises.refuses(volume.id, epoch=1)
    assert world.now_record().grant == Grant("a", 1)


async def test_a_second_attempt_that_fails_for_certain_says_nothing_of_the_first(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.random, "choice", lambda _: 1000.0)
    volume, taker = await begun(world, Fault.LATE)
    world.mend_store()
    world.cut_store("a")
    world.data.commit(
        (Change("alive/a", b"boot", ABSENT),)
    )  # as if it had just come back, and had not proven anything yet
    with pytest.raises(PannierError, match="is up"):
        await taker.ask(lambda run: run.takeover.take("vol", epoch=1))
    assert says_nothing_good(taker, volume)


async def test_nothing_is_taken_over_that_could_not_be_written_down(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.synced_volume(world.a, nodes="a,b")
    world.losing(volume)
    await world.down(world.a)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pannier.host.state_files.write_file", full)
    with pytest.raises(StorageError, match="takeovers"):
        await world.b.ask(lambda run: run.takeover.take("vol", epoch=1))
    assert world.now_record().grant == Grant("a", 1)
    monkeypatch.undo()
    await world.mount(world.b, "vol")
    assert world.now_record().grant == Grant("b", 2)


async def test_an_old_memory_of_a_holder_that_was_succeeded_confirms_nothing(
    world: CopiesWorld,
) -> None:
    """The taker's memory on disk is from before its own takeover, and the store is away."""
    volume = await world.synced_volume(world.a, nodes="a,b")
    file = world.b.state / "catalog.json"
    await asyncio.sleep(2)
    text = file.read_text()
    world.losing(volume)
    world.a.freeze()
    await world.mount(world.b, "vol")
    assert world.now_record().grant == Grant("b", 2)
    world.cut_store()
    world.b.power_off()
    file.write_text(text)
    await world.b.start()
    assert world.b.up.catalog.volume("vol") == volume
    world.a.thaw()
    for _ in range(10):
        with pytest.raises(PannierError):
            await world.sync(world.a)
        await asyncio.sleep(1)
    assert says_nothing_good(world.b, volume)


async def test_what_was_not_confirmed_but_arrived_is_kept_as_a_base(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a, nodes="a,b")
    fresh = await world.b.up.cluster.fresh("vol")
    promises = world.b.up.promises

    def refuse_meanwhile(step: Step) -> Fault | None:
        if (step.of, step.label) == ("b", "driver.receive"):
            promises._refused[volume.id] = Refusal(1, fresh.revision)
            world.faults = lambda step: None
        return None

    world.faults = refuse_meanwhile
    world.put(world.a, volume, "refused", b"1")
    await world.until(lambda: world.copy(world.b, volume).get("refused"))
    refused = max(world.generations(world.b, volume))
    for number in range(16):
        world.put(world.a, volume, f"later{number}", b"1")
        await asyncio.sleep(0.5)
    assert max(world.generations(world.b, volume)) == refused
    assert refused in world.generations(world.a, volume)
    await world.until(lambda: world.current(world.b, volume))
    assert all(t.base is not None for t in world.sent_to("b")[1:] if t.bytes)
