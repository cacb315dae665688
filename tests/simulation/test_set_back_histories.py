"""A holder's disk is set back, or only loses what a power cut takes: the one is noticed, the other never taken for it."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import run_virtual

from pannier.copies.replicated import Replicated
from pannier.core.volume import Volume
from pannier.transport import agreement

HISTORIES = 60


class History:
    """One of them, from a seed."""

    def __init__(self, world: CopiesWorld, seed: int) -> None:
        self.world = world
        self.random = random.Random(f"set back {seed}")
        self.volume: Volume
        self.written = 0

    async def play(self) -> None:
        """Raises AssertionError where the holder serves less than was acknowledged, or gives up for nothing."""
        world = self.world
        self.volume = await world.synced_volume(world.a)
        for _ in range(self.random.randint(0, 4)):
            await self._do()
        older = copy.deepcopy(world.a.disk.homes)
        groups = self.random.randint(2, 6)
        for _ in range(groups):
            for _ in range(self.random.randint(0, 2)):
                await self._do()
            await self._sync()
        if self.random.random() < 0.5:  # of that there is a record, and no sync call
            await self._write()
            await asyncio.sleep(1.5)
        is_set_back = self.random.random() < 0.5
        world.losing(self.volume)
        world.a.power_off()
        self._lose_notes()
        if is_set_back:
            world.set_back.add(self.volume.grant)
            world.a.disk.homes = older
        await asyncio.sleep(self.random.choice((0.0, 0.5)))
        await world.a.start()
        await asyncio.sleep(20.0)
        grant = world.now_record().grant
        assert (grant.node == "b") == is_set_back, f"set back: {is_set_back}, held by {grant}"
        await world.mount(world.machines[grant.node], "vol")
        world.inspect()

    async def _do(self) -> None:
        await self.random.choice((self._write, self._sync, self._wait, self._restart))()

    async def _write(self) -> None:
        self.written += 1
        self.world.put(self.world.a, self.volume, f"file-{self.written}", b"%d" % self.written)

    async def _sync(self) -> None:
        await self._write()
        del self.world.a.disk.homes[self.volume.id].notes[:-1]
        await self.world.sync(self.world.a)

    async def _wait(self) -> None:
        await asyncio.sleep(self.random.choice((0.1, 1.5, 12.0)))

    async def _restart(self) -> None:
        self.world.a.crash()
        await self.world.a.start()
        await self.world.until(lambda: "b" in self.world.now_record().in_sync)
        await self.world.mount(self.world.a, "vol")

    def _lose_notes(self) -> None:
        for home in self.world.a.disk.homes.values():
            home.notes[:] = [self.random.choice(home.notes)]


def play(seed: int, directory: Path) -> None:
    """Play the history of a seed."""

    async def work() -> None:
        world = CopiesWorld(
            directory, driver=SparseSnapshotDriver, with_upkeep=True, seed=seed, names=("a", "b")
        )
        async with world:
            await History(world, seed).play()

    run_virtual(work())


def test_a_disk_that_was_set_back_is_noticed_and_no_other(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        play(seed, tmp_path / str(seed))


def _do_not_look_at_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(agreement, "lacks_records", lambda *_, **__: False)


def _tell_of_what_is_not_noted_durably(patch: pytest.MonkeyPatch) -> None:
    real = Replicated.note_acknowledged

    def note_acknowledged(self: Replicated) -> None:
        real(self)
        self.note_synced()

    patch.setattr(Replicated, "note_acknowledged", note_acknowledged)


def _do_not_note(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fake_driver.noting", lambda noted, place: noted)


@pytest.mark.parametrize(
    "plant", [_do_not_look_at_records, _tell_of_what_is_not_noted_durably, _do_not_note]
)
def test_the_simulation_finds_it(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_disk_that_was_set_back_is_noticed_and_no_other(tmp_path)
