"""Histories of clones: nodes, their power and the store's answers come and go. There is a whole clone, or nothing of one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from copies_world import CopiesWorld
from fake_driver import Content, SparseSnapshotDriver
from machines import Died, Machine
from world import ACTOR, Fault, run_virtual

from pannier.cluster.registry import Registry
from pannier.core.clone_source import CloneSource
from pannier.core.errors import PannierError
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.holding.clones import Clones

HISTORIES = 30
USUAL = Pace()
QUICK = Pace(
    copies=replace(USUAL.copies, generation=1.0, tidy=2.0, snapshots=5.0),
    holding=replace(USUAL.holding, snapshot=10.0, unborn_look=5.0),
)
REFUSED = (PannierError, Died, TimeoutError)
"""What a person may hear while things fail."""


class CloneHistory:
    """One of them, from a seed. Nobody writes to a clone, so that all of it stays what it began as, wherever it goes."""

    def __init__(self, world: CopiesWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(f"clones {seed}")
        self.volume: Volume
        self.began: dict[str, Content] = {}
        """What each clone began as, by its id."""
        self.written = 0
        self.named = 0

    async def play(self) -> None:
        """Raises AssertionError where a clone is not what it began as, or something is left of one that is not there."""
        world = self.world
        self.volume = await world.volume(world.a, copies=self.random.choice("123"))
        world.losing(self.volume)  # what is written to it is looked after by other histories
        await self._write()
        await self._snapshot()
        doings = [self._clone, self._clone, self._clone, self._write, self._snapshot]
        doings += self.random.sample(
            [self._power, self._crash, self._store_away, self._move, self._move_clone], 3
        )
        for _ in range(20):
            await self.random.choice(doings)()
            await asyncio.sleep(self.random.choice((0.0, 0.3, 3.0)))
            self._inspect()
        await self._end_well()

    async def _end_well(self) -> None:
        self.world.faults = lambda step: None
        self.world.mend_store()
        for machine in self.world.machines.values():
            if machine.run is None:
                await machine.start()
        await asyncio.sleep(60.0)
        self._inspect()
        for record in self._clones():
            assert set(record.in_sync) == set(record.replicas), f"{record.name} is not in sync"
        known = {record.id for record in (*self._clones(), self.volume)}
        for machine in self.world.machines.values():
            left = machine.disk.homes.keys() - known
            assert not left, f"{machine.name} has {left}, which is no volume"
            assert not any(home.unborn for home in machine.disk.homes.values())

    def _clones(self) -> list[Volume]:
        names = [f"clone{number}" for number in range(1, self.named + 1)]
        return [record for name in names if (record := self.world.record(name)) is not None]

    def _inspect(self) -> None:
        for record in self._clones():
            assert record.origin is not None
            first = self.began.setdefault(record.id, self._source_of(record))
            assert self.world.contents(record.name) == first, f"{record.name} is another one now"
            for name, machine in self.world.machines.items():
                home = machine.disk.homes.get(record.id)
                for generation, found in home.generations.items() if home else ():
                    assert found == first, f"{generation} of {record.name} on {name} is {found}"

    def _source_of(self, record: Volume) -> Content:
        assert record.origin is not None
        for machine in self.world.machines.values():
            home = machine.disk.homes.get(record.origin.volume_id)
            if home and record.origin.generation in home.described:
                return dict(home.described[record.origin.generation])
        raise AssertionError(f"{record.name} is a clone of what never was")

    # -- what people do ---------------------------------------------------------------------------

    def _up(self) -> Machine:
        return self.random.choice([m for m in self.world.machines.values() if m.run is not None])

    async def _clone(self) -> None:
        """Of a snapshot, of now, or of another clone; some of the store's answers get lost."""
        self.named += 1
        new, sources = f"clone{self.named}", ["vol", *(each.name for each in self._clones())]
        source = CloneSource(self.random.choice(sources))
        names = [each.name for each in self.world.now_record(source.volume).snapshots]
        if names and self.random.random() < 0.6:
            source = replace(source, snapshot=self.random.choice(names))
        options = self.random.choice(({}, {"copies": "1"}, {"copies": "2"}, {"copies": "3"}))
        if self.random.random() < 0.5:
            faults = (Fault.LATE, Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.CUT_BEFORE)
            self.world.fail_at_label("store.commit", self.random.choice(faults))
        try:
            async with asyncio.timeout(20.0):
                await self._up().ask(
                    lambda run: run.service.by(ACTOR).clone_volume(
                        source.volume, new=new, snapshot=source.snapshot or None, options=options
                    )
                )
        except REFUSED:
            pass
        self.world.faults = lambda step: None
        await self._all_start()
        if (record := self.world.record(new)) is not None:
            self.world.losing(record)  # nobody writes to it, and this looks after it

    async def _snapshot(self) -> None:
        self.written += 1
        try:
            async with asyncio.timeout(40.0):
                await self._up().ask(
                    lambda run: run.service.by(ACTOR).create_snapshot(
                        "vol", f"s{self.written}", keep_seconds=None, labels={}
                    )
                )
        except REFUSED:
            return

    async def _write(self) -> None:
        holder = self.world.machines[self.world.now_record().grant.node]
        if holder.run is None:
            return
        self.written += 1
        use = f"use{self.written}"
        try:
            async with asyncio.timeout(20.0):
                await self.world.mount(holder, "vol", use)
            self.world.put(holder, self.volume, f"file{self.written % 5}", b"%d" % self.written)
            await self.world.unmount(holder, "vol", use)
        except (*REFUSED, OSError):
            return

    async def _move(self) -> None:
        await self._move_one("vol")

    async def _move_clone(self) -> None:
        if clones := self._clones():
            await self._move_one(self.random.choice(clones).name)

    async def _move_one(self, name: str) -> None:
        try:
            async with asyncio.timeout(20.0):
                await self.world.move(self._up(), name, self._up().name, wait_seconds=5.0)
        except REFUSED:
            return

    # -- what fails -------------------------------------------------------------------------------

    async def _all_start(self) -> None:
        for machine in self.world.machines.values():
            if machine.run is None:
                await machine.start()

    async def _power(self) -> None:
        await self._off(Machine.power_off)

    async def _crash(self) -> None:
        await self._off(Machine.crash)

    async def _off(self, end: Callable[[Machine], None]) -> None:
        """In the midst of a clone, or of nothing."""
        making = asyncio.ensure_future(self._clone())
        await asyncio.sleep(self.random.choice((0.0, 0.001, 0.01, 0.1)))
        end(self._up())
        await making
        await asyncio.sleep(self.random.choice((0.5, 20.0)))
        await self._all_start()

    async def _store_away(self) -> None:
        self.world.cut_store(self._up().name)
        await self._clone()
        self.world.mend_store()


def play(seed: int, directory: Path) -> None:
    """Play the history of a seed."""

    async def work() -> None:
        world = CopiesWorld(directory, driver=SparseSnapshotDriver, seed=seed, pace=QUICK)
        async with world:
            await CloneHistory(world, seed).play()

    run_virtual(work())


@pytest.mark.timeout(600)
def test_there_is_a_whole_clone_or_nothing_of_one(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        play(seed, tmp_path / str(seed))


async def _nothing(*_: Any, **__: Any) -> None:
    """It is not done."""


def _delete_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """That the store does not list it is taken for a reason."""
    patch.setattr(Registry, "give_up_unborn", _nothing)


def _leave_what_was_cut_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clones, "_settle", _nothing)


def _take_any_generation(patch: pytest.MonkeyPatch) -> None:
    """A copy begins with whatever it has of the other volume."""
    real = SparseSnapshotDriver.clone

    async def clone(self: SparseSnapshotDriver, source: str, generation: Any, **more: Any) -> None:
        if not more["unborn"]:
            generation = max(self.disk.homes[source].generations)
        await real(self, source, generation, **more)

    patch.setattr(SparseSnapshotDriver, "clone", clone)


@pytest.mark.parametrize(
    "plant", [_delete_without_a_mark, _leave_what_was_cut_off, _take_any_generation]
)
def test_the_simulation_finds_it(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_there_is_a_whole_clone_or_nothing_of_one(tmp_path)
