"""Histories of schedules: nodes, their power, the store and their clocks come and go around the beginning of each hour; no
snapshot of an hour is made twice, none is left out once all is well, and none goes that the schedule keeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from machines import Died, Machine
from world import ACTOR, run_virtual

from pannier.core import schedules
from pannier.core.errors import PannierError
from pannier.core.pace import Pace
from pannier.core.schedules import Period, Slot, parse_schedule
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume
from pannier.holding.snapshots import Snapshots

HISTORIES = 30
HOURS = 6
HOUR = 3600.0
SCHEDULE = parse_schedule("hourly:3,daily:2")
USUAL = Pace()
QUICK = Pace(
    copies=replace(USUAL.copies, generation=1.0, tidy=2.0, snapshots=5.0, snapshots_again=10.0),
    holding=replace(
        USUAL.holding, snapshot=5.0, schedules_look=4.0, snapshot_grace=20.0, snapshots_look=10.0
    ),
)
REFUSED = (PannierError, Died, TimeoutError, OSError)
"""What a person or a container may hear while things fail."""


class History:
    """One of them, from a seed."""

    def __init__(self, world: CopiesWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(f"schedules {seed}")
        self.seen: dict[str, Snapshot] = {}
        """All snapshots that were there at the last look, in the order in which they were made."""
        self.number = 0

    async def play(self) -> None:
        """Raises AssertionError where one is doubled or lost, or one goes that is kept."""
        world = self.world
        volume = await world.volume(
            world.a, copies=self.random.choice("23"), snapshots=str(SCHEDULE)
        )
        world.losing(volume)  # what is synced is looked after by other histories
        await world.unmount(world.a, "vol")
        for _ in range(HOURS):
            await self._around_an_hour()
            await self._all_well()
            self._inspect()
            assert Slot.of(Period.HOURLY, world.wall_time()).name in self._names()

    async def _around_an_hour(self) -> None:
        """The hour begins some seconds from now; things fail before, then, and after."""
        world = self.world
        before = self.random.choice((2.0, 5.0, 9.0))
        world.wall += HOUR - before - world.wall_time() % HOUR
        doings = [self._take, self._power, self._crash, self._store_away, self._jump, self._by_hand]
        for _ in range(self.random.randint(1, 4)):
            await self.random.choice(doings)()
            await asyncio.sleep(self.random.choice((0.0, 0.7, 3.0)))
            self._inspect()

    async def _all_well(self) -> None:
        """The holder is there, or a copy takes over; and all had time for what is due."""
        self.world.mend_store()
        for machine in self.world.machines.values():
            if machine.run is None:
                await machine.start()
        await asyncio.sleep(60.0)
        world = self.world
        world.wall += max(0.0, 120.0 - world.wall_time() % HOUR)
        await asyncio.sleep(60.0)

    def _names(self) -> list[str]:
        return [each.name for each in self.world.now_record().snapshots]

    def _inspect(self) -> None:
        there = self.world.now_record().snapshots
        new = [each for each in there if self.seen.get(each.name) != each]
        starts = [each.slot_start for each in there if each.slot_start is not None]
        assert len(set(starts)) == len(starts), f"one slot has two: {self._names()}"
        for old in [each for each in self.seen.values() if each not in there]:
            later = [each for each in new if each.name != old.name]
            gone = schedules.not_kept(SCHEDULE, [*self.seen.values(), *later])
            assert old in gone, f"{old.name} is gone, and was to be kept"
            del self.seen[old.name]  # a clock that was wrong may have come back to its hour
        self.seen.update((each.name, each) for each in new)

    # -- what people do, and what fails -----------------------------------------------------------

    def _up(self) -> Machine:
        return self.random.choice([m for m in self.world.machines.values() if m.run is not None])

    async def _take(self) -> None:
        """A container somewhere wants the volume: a move, or a takeover where the holder is down."""
        machine = self._up()
        self.number += 1
        use = f"use{self.number}"
        try:
            async with asyncio.timeout(20.0):
                await self.world.mount(machine, "vol", use)
            await self.world.unmount(machine, "vol", use)
        except REFUSED:
            return

    async def _by_hand(self) -> None:
        self.number += 1
        name = f"mine{self.number}"
        try:
            async with asyncio.timeout(20.0):
                await self._up().ask(
                    lambda run: run.service.by(ACTOR).create_snapshot(
                        "vol", name, keep_seconds=None, labels={}
                    )
                )
        except REFUSED:
            return

    async def _power(self) -> None:
        await self._off(Machine.power_off)

    async def _crash(self) -> None:
        await self._off(Machine.crash)

    async def _off(self, end: Callable[[Machine], None]) -> None:
        """Mostly the holder; a copy may take the volume over meanwhile, and the hour begin."""
        if sum(m.run is not None for m in self.world.machines.values()) < 3:
            return
        machine = self.world.machines[self.world.now_record().grant.node]
        if machine.run is None or self.random.random() < 0.3:
            machine = self._up()
        end(machine)
        await asyncio.sleep(self.random.choice((0.5, 6.0, 15.0)))
        if self.random.random() < 0.7:
            await self._take()
        await machine.start()

    async def _store_away(self) -> None:
        self.world.cut_store(*self.random.sample(sorted(self.world.machines), 1))
        await asyncio.sleep(self.random.choice((1.0, 8.0)))
        self.world.mend_store()

    async def _jump(self) -> None:
        """All clocks are wrong for a while."""
        jump = self.random.choice((-HOUR, HOUR, 400 * 24 * HOUR))
        self.world.wall += jump
        await asyncio.sleep(self.random.choice((1.0, 9.0)))
        self.world.wall -= jump


def play(seed: int, directory: Path) -> None:
    """Play the history of a seed."""

    async def work() -> None:
        world = CopiesWorld(directory, driver=SparseSnapshotDriver, seed=seed, pace=QUICK)
        world.without -= {"schedules"}
        async with world:
            await History(world, seed).play()

    run_virtual(work())


@pytest.mark.timeout(600)
def test_no_hours_snapshot_is_doubled_or_lost(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        play(seed, tmp_path / str(seed))


def _one_of_each_daemon(patch: pytest.MonkeyPatch) -> None:
    """The name is not the slot's: each daemon believes that it has to make its own."""
    numbers = iter(range(10_000))
    patch.setattr(Slot, "name", property(lambda self: f"{self.start:.0f}.{next(numbers)}"))


def _only_while_it_runs(patch: pytest.MonkeyPatch) -> None:
    """One is made when the hour begins, and else never."""
    real = schedules.due

    def due(schedule: schedules.Schedule, snapshots: list[Snapshot], *, now: float) -> Slot | None:
        return real(schedule, snapshots, now=now) if now % HOUR < 10 else None

    patch.setattr("pannier.holding.schedules.due", due)


def _all_that_is_old_goes(patch: pytest.MonkeyPatch) -> None:
    """What a clock says decides what is kept."""

    def not_kept(schedule: schedules.Schedule, made: list[Snapshot]) -> tuple[Snapshot, ...]:
        newest = max((each.slot_start or 0.0 for each in made), default=0.0)
        return tuple(
            each
            for each in made
            if each.slot_start is not None and newest - each.slot_start > 2 * HOUR
        )

    patch.setattr("pannier.holding.schedules.not_kept", not_kept)


def _a_persons_goes_too(patch: pytest.MonkeyPatch) -> None:
    real = Snapshots.add

    async def add(self: Snapshots, volume: Volume, made: Snapshot, **more: object) -> Volume:
        start = made.made_at if made.slot_start is None else made.slot_start
        return await real(self, volume, replace(made, slot_start=start), **more)  # type: ignore[arg-type]

    patch.setattr(Snapshots, "add", add)


@pytest.mark.parametrize(
    "plant",
    [_one_of_each_daemon, _only_while_it_runs, _all_that_is_old_goes, _a_persons_goes_too],
)
def test_the_simulation_finds_it(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_no_hours_snapshot_is_doubled_or_lost(tmp_path)
