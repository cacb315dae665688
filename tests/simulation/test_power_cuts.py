"""Each change of state with the power cut before and after every step, and every answer lost.

A scenario runs once to learn its steps. Then it runs again for every step and every fault that can
happen there: the node whose step it is loses its memory, its mounts and containers and starts again
from its disk and the store; or an answer never comes, though the thing was done, was not done, or is
done later. After each step of each run :meth:`world.World.inspect` compares all disks with what was
promised. At the end the same thing is asked for again and has to succeed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_driver import SingleTreeDriver, SnapshotDriver, SparseSnapshotDriver
from world import Died, Fault, Step, World, run_virtual

from pannier.core.errors import PannierError, VolumeNotFound
from pannier.core.pace import NodePace, Pace

LATE_SECONDS = 40.0
"""After that, whatever was on its way to the store has arrived."""
STARTING_SECONDS = 61.0
"""After that, an answered Mount without a container counts as no use."""


@dataclass(frozen=True)
class Scenario:
    """``act`` is what power cuts shall hit; it is repeated afterwards and must then succeed."""

    name: str
    prepare: Callable[[World], Awaitable[object]]
    act: Callable[[World], Awaitable[object]]
    holder: str
    gone: bool = False
    erased: bool = False
    """No node keeps any of its data."""


async def _nothing(world: World) -> None:
    pass


async def _with_data(world: World) -> None:
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol", b"precious")


async def _moved_there_and_back(world: World) -> None:
    await _with_data(world)
    await world.write_once(world.b, "vol", b"more")
    await world.write_once(world.a, "vol", b"most")


async def _in_use(world: World) -> None:
    await _with_data(world)
    container = await world.run_container(world.a, "vol")
    world.write(world.a, container, "in-use", b"1")


async def _removed(world: World) -> None:
    await _with_data(world)
    await world.remove(world.a, "vol")


async def _create(world: World) -> None:
    await world.create(world.a, "vol")


async def _create_elsewhere(world: World) -> None:
    await world.create(world.a, "vol", nodes="b")


async def _use_on_a(world: World) -> None:
    await world.write_once(world.a, "vol", b"again")


async def _use_on_b(world: World) -> None:
    await world.write_once(world.b, "vol", b"from b")


async def _move_while_used(world: World) -> None:
    """A person moves it; after some rounds the container writes once more and ends."""
    moving = asyncio.ensure_future(world.move(world.c, "vol", "b", wait_seconds=300))
    try:
        await asyncio.sleep(3)
        for container in tuple(world.a.table.containers):
            world.write(world.a, container, "in-use", b"2")
            world.stop_container(world.a, container)
            await world.unmount(world.a, "vol")
        await moving
    finally:
        moving.cancel()


async def _remove(world: World) -> None:
    try:
        await world.remove(world.b, "vol")
    except VolumeNotFound:
        assert _in_trash(world), "it said that nothing is there, and nothing was removed"


async def _restore(world: World) -> None:
    try:
        await world.restore(world.b, "vol")
    except VolumeNotFound:
        assert world.record("vol"), "it said that nothing is there, and nothing was restored"


async def _purge(world: World) -> None:
    for machine in world.machines.values():
        await machine.ask(lambda run: run.trash.empty_overdue(60.0))
    for machine in world.machines.values():
        await machine.ask(lambda run: run.trash.free_purged())


def _in_trash(world: World) -> bool:
    return bool(world.data.list("trash/"))


SCENARIOS = (
    Scenario("create", _nothing, _create, "a"),
    Scenario("create-elsewhere", _nothing, _create_elsewhere, "b"),
    Scenario("first-mount", _create, _use_on_a, "a"),
    Scenario("mount-elsewhere", _with_data, _use_on_b, "b"),
    Scenario("mount-where-it-once-was", _moved_there_and_back, _use_on_b, "b"),
    Scenario("move-while-used", _in_use, _move_while_used, "b"),
    Scenario("remove", _with_data, _remove, "a", gone=True),
    Scenario("restore", _removed, _restore, "a"),
    Scenario("purge", _removed, _purge, "a", gone=True, erased=True),
)
CUTS = (Fault.CUT_BEFORE, Fault.CUT_AFTER)
LOSSES = (Fault.LOSE_REQUEST, Fault.LOSE_ANSWER)


def faults_of(step: Step) -> tuple[Fault, ...]:
    """What can go wrong there."""
    if step.is_commit:
        return (*CUTS, *LOSSES, Fault.LATE)
    if step.label.startswith(("peer.", "sender.", "record.")):
        return (*CUTS, *LOSSES)
    if step.label in ("store.get", "store.list", "driver.inspect", "driver.volumes"):
        return CUTS[:1]  # after a read is before the next step
    return CUTS


@dataclass
class Play:
    """One scenario on one kind of driver."""

    scenario: Scenario
    driver: type[SnapshotDriver]
    directory: Path
    runs: int = field(default=0)

    def world(self, *, seed: int) -> World:
        self.runs += 1
        place = self.directory / str(self.runs)
        return World(place, driver=self.driver, seed=seed, pace=Pace(node=NodePace(trash=0.0)))

    async def learn(self) -> list[Step]:
        """The steps of a run in which nothing fails."""
        async with self.world(seed=0) as world:
            await self.scenario.prepare(world)
            begin = len(world.steps)
            await self.scenario.act(world)
            await asyncio.sleep(LATE_SECONDS)
            steps = world.steps[begin:]
            await self._check_end(world)
            return steps

    async def fail(self, number: int, fault: Fault) -> None:
        """Play it with a fault at one step, and then again without."""
        async with self.world(seed=number) as world:
            await self.scenario.prepare(world)
            world.fail_at(number, fault)
            try:
                await self.scenario.act(world)
            except (Died, PannierError):
                pass
            await asyncio.sleep(LATE_SECONDS)
            await self._start_all(world)
            await asyncio.sleep(STARTING_SECONDS)
            await self.scenario.act(world)
            await self._check_end(world)

    async def _start_all(self, world: World) -> None:
        for machine in world.machines.values():
            if machine.run is None:
                await machine.start()

    async def _check_end(self, world: World) -> None:
        """Where it should be, and of use on every node."""
        if self.scenario.gone:
            assert world.record("vol") is None
            if self.scenario.erased:
                assert not any(machine.disk.homes for machine in world.machines.values())
            return
        record = world.record("vol")
        assert record is not None
        assert record.grant.node == self.scenario.holder
        for machine in world.machines.values():
            await world.write_once(machine, "vol", b"at last")
        world.inspect()


@pytest.mark.parametrize("driver", [SparseSnapshotDriver, SingleTreeDriver])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_whatever_step_fails_nothing_is_lost_and_it_can_be_repeated(
    scenario: Scenario,
    driver: type[SnapshotDriver],
    tmp_path: Path,
) -> None:
    play = Play(scenario, driver, tmp_path)
    steps = run_virtual(play.learn())
    assert steps
    failures = []
    for number, step in enumerate(steps):
        for fault in faults_of(step):
            try:
                run_virtual(play.fail(number, fault))
            except Exception as error:
                failures.append(f"step {number} {step.of}:{step.label}, {fault.value}: {error!r}")
    assert not failures, f"{len(failures)} of {play.runs}:\n" + "\n".join(failures)
