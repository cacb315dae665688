"""Histories of snapshots: nodes and their power come and go, volumes move, and what a copy has said to have, it keeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import Content, SparseSnapshotDriver
from machines import Died, Machine
from world import ACTOR, run_virtual

from pannier.cluster.catalog import Catalog
from pannier.core import ownership
from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.ownership import Cleanup, LocalState
from pannier.core.pace import Pace
from pannier.core.volume import Volume

HISTORIES = 60
USUAL = Pace()
QUICK = Pace(
    copies=replace(USUAL.copies, generation=1.0, tidy=2.0, snapshots=5.0, snapshots_again=10.0),
    holding=replace(USUAL.holding, snapshot=10.0),
)
REFUSED = (PannierError, Died, TimeoutError)
"""What a person may hear while things fail."""


class History:
    """One of them, from a seed."""

    def __init__(self, world: CopiesWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(f"snapshots {seed}")
        self.volume: Volume
        self.made: dict[Generation, Content] = {}
        """What each snapshot was when it was made."""
        self.kept: set[tuple[str, str]] = set()
        """Nodes that have said to have a snapshot, with its name."""
        self.removed: set[str] = set()
        self.number = 0
        self.uses = 0

    async def play(self) -> None:
        """Raises AssertionError where a snapshot is gone, or is not what it was."""
        world = self.world
        self.volume = await world.volume(world.a, copies=self.random.choice("123"))
        world.losing(self.volume)  # what is synced is looked after by other histories
        await world.unmount(world.a, "vol")
        doings = [
            self._snapshot,
            self._snapshot,
            self._write,
            self._write,
            self._write,
            self._remove,
        ]
        doings += self.random.sample(
            [self._power, self._crash, self._store_away, self._move, self._forget], 3
        )
        for _ in range(25):
            await self.random.choice(doings)()
            await asyncio.sleep(self.random.choice((0.0, 0.3, 3.0)))
            self._inspect()
        await self._end_well()

    async def _end_well(self) -> None:
        """All is there again: each copy gets all that its holder has."""
        self.world.mend_store()
        for machine in self.world.machines.values():
            if machine.run is None:
                await machine.start()
        await asyncio.sleep(60.0)
        await self._write()
        await asyncio.sleep(30.0)
        self._inspect()
        record = self.world.now_record()
        holder = self._generations(record.grant.node)
        for each in record.snapshots:
            for node in record.in_sync:
                if each.generation in holder:
                    assert each.generation in self._generations(node), (each.name, node)
        for name in (record.grant.node, *record.replicas):
            left = set(self._generations(name)) - record.named
            assert len(left) <= 10, f"{name} has {len(left)} that nobody needs"

    def _generations(self, name: str) -> dict[Generation, Content]:
        home = self.world.machines[name].disk.homes.get(self.volume.id)
        return dict(home.generations) if home else {}

    def _inspect(self) -> None:
        record = self.world.now_record()
        names = {each.name: each.generation for each in record.snapshots}
        for node, name in self.kept:
            if name in names:
                there = self._generations(node)
                assert names[name] in there, f"{node} has said to have {name}, and has it no more"
        for generation in names.values():
            for node in self.world.machines:
                found = self._generations(node).get(generation)
                made = self.made.setdefault(generation, found) if found is not None else None
                assert found == made, f"{generation} on {node} is {found}, and was {made}"

    # -- what people do ---------------------------------------------------------------------------

    def _up(self) -> Machine:
        return self.random.choice([m for m in self.world.machines.values() if m.run is not None])

    def _holder(self) -> Machine:
        return self.world.machines[self.world.now_record().grant.node]

    async def _snapshot(self) -> None:
        self.number += 1
        name = f"s{self.number}"
        try:
            async with asyncio.timeout(40.0):
                made = await self._up().ask(
                    lambda run: run.service.by(ACTOR).create_snapshot(
                        "vol", name, keep_seconds=None, labels={}
                    )
                )
        except REFUSED:
            return
        self.kept |= {(node, name) for node in made.on or ()}

    async def _remove(self) -> None:
        names = [each.name for each in self.world.now_record().snapshots]
        if names and self.random.random() < 0.3:
            name = self.random.choice(names)
            try:
                await self._up().ask(lambda run: run.service.by(ACTOR).remove_snapshot("vol", name))
            except REFUSED:
                return

    async def _write(self) -> None:
        """A container writes for a while, on the holder or where it takes the volume to."""
        machine = self.random.choice((self._holder(), self._up()))
        if machine.run is None:
            return
        self.uses += 1
        use = f"use{self.uses}"
        try:
            async with asyncio.timeout(20.0):
                await self.world.mount(machine, "vol", use)
            for _ in range(self.random.randint(1, 6)):
                self.number += 1
                self.world.put(machine, self.volume, f"file{self.number % 5}", b"%d" % self.number)
                await asyncio.sleep(self.random.choice((0.1, 1.2)))
            await self.world.unmount(machine, "vol", use)
        except (*REFUSED, OSError):
            return

    async def _move(self) -> None:
        machine, target = self._up(), self._up().name
        try:
            async with asyncio.timeout(20.0):
                await self.world.move(machine, "vol", target, wait_seconds=5.0)
        except REFUSED:
            return

    # -- what fails -------------------------------------------------------------------------------

    async def _power(self) -> None:
        await self._off(Machine.power_off)

    async def _crash(self) -> None:
        await self._off(Machine.crash)

    async def _off(self, end: Callable[[Machine], None]) -> None:
        if sum(m.run is not None for m in self.world.machines.values()) < 3:
            return
        machine = self._up()
        end(machine)
        await asyncio.sleep(self.random.choice((0.5, 20.0)))
        await machine.start()

    async def _forget(self) -> None:
        """A power cut takes back what was remembered lately, and the store cannot be asked for a while."""
        machine = self._up()
        file = machine.state / "catalog.json"
        before = file.read_bytes() if file.exists() else None
        await self._snapshot()
        await self._write()
        if before is None or machine.run is None:
            return
        machine.power_off()
        file.write_bytes(before)
        self.world.cut_store(machine.name)
        await machine.start()
        for _ in range(3):
            await self._write()
        self.world.mend_store()

    async def _store_away(self) -> None:
        self.world.cut_store(*self.random.sample(sorted(self.world.machines), 1))
        await self._write()
        self.world.mend_store()


def play(seed: int, directory: Path) -> None:
    """Play the history of a seed."""

    async def work() -> None:
        world = CopiesWorld(directory, driver=SparseSnapshotDriver, seed=seed, pace=QUICK)
        async with world:
            await History(world, seed).play()

    run_virtual(work())


@pytest.mark.timeout(600)
def test_a_snapshot_stays_where_it_was_said_to_be(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        play(seed, tmp_path / str(seed))


def _tidy_snapshots_away(patch: pytest.MonkeyPatch) -> None:
    real = ownership.plan_cleanup

    def plan(record: Volume, copy: LocalState, **more: object) -> Cleanup:
        return real(replace(record, snapshots=()), copy, **more)  # type: ignore[arg-type]

    patch.setattr("pannier.agent.custody.plan_cleanup", plan)


def _believe_an_old_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Catalog, "trusted", property(lambda self: True))


@pytest.mark.parametrize("plant", [_tidy_snapshots_away, _believe_an_old_memory])
def test_the_simulation_finds_it(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_snapshot_stays_where_it_was_said_to_be(tmp_path)
