"""The hooks of containers run around the snapshots of their volumes; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from machines import HoldingEngine
from world import ACTOR, Fault, Machine, event_loop_policy

from pannier.contract.views import SnapshotView
from pannier.core.errors import (
    Conflict,
    EngineUnavailable,
    InvalidInput,
    PannierError,
    PoolFull,
    StorageError,
)
from pannier.core.generation import Generation
from pannier.core.hooks import SnapshotMoment, read_hooks
from pannier.core.pace import Pace
from pannier.engine.base import Container, Executed
from pannier.testing.engine import FakeEngine

__all__ = ["event_loop_policy"]

PACE = Pace().holding
BEFORE, AFTER = "pannier.hook.pre-snapshot", "pannier.hook.post-snapshot"
LABELS = {BEFORE: "quiet", AFTER: "loud", f"{BEFORE}.timeout": "30s"}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def prepared(world: CopiesWorld, **labels: str) -> FakeEngine:
    """A volume in use on node a, by a container with hooks. Both end well."""
    await world.synced_volume(world.a)
    engine = world.a.engine
    put(engine, "db", {**LABELS, **labels})
    engine.commands |= {"quiet": Executed(0, ""), "loud": Executed(0, "")}
    return engine


def put(engine: FakeEngine, name: str, labels: dict[str, str]) -> None:
    container = Container(id=f"id-{name}", name=name, service=None, running=True, labels=labels)
    engine.put(container, volumes=("vol",))


async def snap(machine: Machine, snapshot: str = "first") -> SnapshotView:
    return await machine.ask(
        lambda run: run.service.by(ACTOR).create_snapshot(
            "vol", snapshot, keep_seconds=None, labels={}
        )
    )


def commands(engine: FakeEngine) -> list[str]:
    return [command for _, command in engine.executed]


def on_command(engine: FakeEngine, act: Callable[[str], None]) -> None:
    """Let something happen when a command is run."""
    execute = engine.execute

    async def acting(container: str, command: str, *, timeout_seconds: float) -> Executed:
        act(command)
        return await execute(container, command, timeout_seconds=timeout_seconds)

    engine.execute = acting  # type: ignore[method-assign, assignment]


async def test_a_snapshot_has_what_the_first_hook_wrote_and_not_what_the_second_did(
    world: CopiesWorld,
) -> None:
    engine = await prepared(world)
    volume = world.now_record()
    on_command(engine, lambda command: world.put(world.a, volume, command))
    made = await snap(world.c)
    assert commands(engine) == ["quiet", "loud"]
    assert (made.hook_failures, made.on) == ([], ["a", *volume.replicas])
    content = world.a.disk.homes[volume.id].generations[Generation.parse(made.generation)]
    assert set(content) == {"synced", "quiet"}


async def test_every_container_with_the_volume_has_its_hooks_run_once(world: CopiesWorld) -> None:
    engine = await prepared(world)
    put(engine, "web", {AFTER: "loud"})
    put(engine, "log", {})
    engine.put(
        Container(id="id-old", name="old", service=None, running=False, labels=LABELS),
        volumes=("vol",),
    )
    await snap(world.a)
    assert sorted(engine.executed) == [("id-db", "loud"), ("id-db", "quiet"), ("id-web", "loud")]


async def test_a_hook_that_hangs_is_ended_and_nothing_is_made(world: CopiesWorld) -> None:
    engine = await prepared(world)
    del engine.commands["quiet"]
    with pytest.raises(
        Conflict, match=r"pre-snapshot hook failed: it was ended after its 30 s in db on node a"
    ):
        await snap(world.a)
    assert commands(engine) == ["quiet", "loud"]
    assert not world.now_record().snapshots


async def test_a_hook_that_may_fail_is_told(world: CopiesWorld) -> None:
    engine = await prepared(world, **{f"{BEFORE}.on-failure": "continue"})
    engine.commands |= {"quiet": Executed(3, "no disk\n"), "loud": Executed(4, "")}
    made = await snap(world.a)
    assert made.hook_failures == [
        "the pre-snapshot hook failed: exit status 3 (no disk) in db on node a",
        "the post-snapshot hook failed: exit status 4 in db on node a",
    ]
    assert world.now_record().snapshots


async def test_a_second_hook_that_may_not_fail_leaves_the_snapshot(world: CopiesWorld) -> None:
    engine = await prepared(world, **{f"{AFTER}.on-failure": "abort"})
    engine.commands["loud"] = Executed(4, "")
    with pytest.raises(Conflict, match=r"snapshot first of volume vol was made, but .*status 4"):
        await snap(world.a)
    assert [each.name for each in world.now_record().snapshots] == ["first"]


async def test_the_second_hook_runs_when_no_snapshot_is_made(world: CopiesWorld) -> None:
    engine = await prepared(world)
    world.a.disk.refused.add(world.now_record().id)
    with pytest.raises(StorageError):
        await snap(world.a)
    world.a.disk.refused.clear()
    assert commands(engine) == ["quiet", "loud"]
    world.fail_at_label("store.commit", Fault.LOSE_REQUEST, of="a")
    with pytest.raises(PannierError):
        await snap(world.a, "second")
    assert commands(engine) == ["quiet", "loud"] * 2


async def test_the_second_hook_runs_after_the_daemon_died_in_between(world: CopiesWorld) -> None:
    engine = await prepared(world)
    del engine.commands["quiet"]
    asked = asyncio.create_task(snap(world.a))
    await world.until(lambda: commands(engine) == ["quiet"])
    world.a.crash()
    await engine.stop()  # what is left of that run in this process can do nothing
    engine = world.a.engine = HoldingEngine()
    put(engine, "db", LABELS)
    engine.commands |= {"quiet": Executed(0, ""), "loud": Executed(0, "")}
    await world.a.start()
    await world.until(lambda: commands(engine) == ["loud"], seconds=60)
    await snap(world.a)
    assert commands(engine) == ["loud", "quiet", "loud"]
    asked.cancel()


async def test_the_second_hook_waits_for_an_engine_that_does_not_answer(
    world: CopiesWorld,
) -> None:
    engine = await prepared(world)
    answers = [False]

    def act(command: str) -> None:
        if command == "loud" and not answers[0]:
            raise EngineUnavailable("container db is paused")

    on_command(engine, act)
    made = await snap(world.a)
    assert ["is tried again: container db is paused" in each for each in made.hook_failures] == [
        True
    ]
    await asyncio.sleep(3600)
    answers[0] = True
    await world.until(lambda: "loud" in commands(engine))


async def test_two_snapshots_take_turns_in_a_container(world: CopiesWorld) -> None:
    engine = await prepared(world)
    await asyncio.gather(snap(world.a, "first"), snap(world.b, "second"))
    assert commands(engine) == ["quiet", "loud"] * 2
    assert len(world.now_record().snapshots) == 2


async def test_one_that_waits_too_long_is_refused(world: CopiesWorld) -> None:
    engine = await prepared(world, **{f"{BEFORE}.timeout": "5m"})
    del engine.commands["quiet"]
    first = asyncio.create_task(snap(world.a, "first"))
    await world.until(lambda: commands(engine) == ["quiet"])
    with pytest.raises(Conflict, match="hooks of another snapshot are run in db on node a"):
        await snap(world.a, "second")
    with pytest.raises(Conflict, match="ended after its 300 s"):
        await first


@pytest.mark.parametrize("may_fail", [True, False])
async def test_a_container_in_which_nothing_can_be_run_keeps_no_snapshot_from_being_made_if_its_hooks_may_fail(
    world: CopiesWorld, may_fail: bool
) -> None:
    """As one that is paused: its second hook is tried for a day."""
    how = "continue" if may_fail else "abort"
    engine = await prepared(world, **{f"{BEFORE}.on-failure": how})

    def paused(command: str) -> None:
        raise EngineUnavailable("the container is paused")

    on_command(engine, paused)
    if may_fail:
        assert len((await snap(world.a, "first")).hook_failures) == 2
        second = await snap(world.a, "second")
        assert ["were left out" in each for each in second.hook_failures] == [True]
    else:
        with pytest.raises(Conflict, match="could not be run"):
            await snap(world.a, "first")
        with pytest.raises(Conflict, match="hooks of another snapshot"):
            await snap(world.a, "second")


async def test_nothing_is_run_where_nothing_can_be_made(world: CopiesWorld) -> None:
    engine = await prepared(world)
    await snap(world.a)
    engine.executed.clear()
    with pytest.raises(Conflict, match="first"):
        await snap(world.a)
    target = next(name for name in ("b", "c") if name not in world.now_record().replicas)
    move = asyncio.create_task(world.move(world.b, "vol", target, wait_seconds=20))
    await world.until(lambda: world.a.up.handovers.of(world.now_record()) is not None)
    with pytest.raises(Conflict, match=f"volume vol is on its way to node {target}"):
        await snap(world.a, "second")
    await asyncio.gather(move, return_exceptions=True)
    assert commands(engine) == []


async def test_a_label_that_means_nothing_is_told(world: CopiesWorld) -> None:
    engine = await prepared(world, **{"pannier.hook.pre-snapshoot": "quiet"})
    with pytest.raises(InvalidInput, match="pre-snapshoot means nothing"):
        await snap(world.a)
    assert commands(engine) == []


async def test_without_its_engine_only_what_nobody_uses_is_snapshot(world: CopiesWorld) -> None:
    engine = await prepared(world)
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await snap(world.a)
    await world.unmount(world.a, "vol")
    await snap(world.a)


async def test_a_full_pool_is_told_before_anything_is_run(world: CopiesWorld) -> None:
    engine = await prepared(world)
    world.a.disk.free_bytes = 0
    await asyncio.sleep(2 * Pace().agent.room_calm)
    with pytest.raises(PoolFull, match=r"volume vol can be made on node a: the pool has room for"):
        await snap(world.b)
    assert commands(engine) == []
    world.a.disk.free_bytes = 1 << 40
    await asyncio.sleep(2 * Pace().agent.room_calm)
    await snap(world.b)


async def test_a_pool_that_is_full_in_the_midst_is_told_and_the_second_hook_runs_when_it_can(
    world: CopiesWorld,
) -> None:
    """The container stands still by then: the engine runs nothing in it."""
    engine = await prepared(world)
    answers = [True]

    def act(command: str) -> None:
        if command == "quiet":
            world.a.disk.refused.add(world.now_record().id)
            answers[0] = False
        elif not answers[0]:
            raise EngineUnavailable("container db is paused")

    on_command(engine, act)
    with pytest.raises(StorageError):
        await snap(world.a)
    assert commands(engine) == ["quiet"]
    assert not world.now_record().snapshots
    world.a.disk.refused.clear()
    answers[0] = True
    await world.until(lambda: commands(engine) == ["quiet", "loud"])


def test_both_pairs_are_read() -> None:
    hooks = read_hooks({**LABELS, "pannier.hook.pre-move": "x"})
    assert hooks[SnapshotMoment.BEFORE].abort
    assert not hooks[SnapshotMoment.AFTER].abort
    assert (hooks[SnapshotMoment.BEFORE].timeout_seconds, len(hooks)) == (30.0, 3)
