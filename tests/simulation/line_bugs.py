"""Mistakes in records and their lines, each of which some history must show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from failover_bugs import BUGS, bug
from fake_driver import Content, Home, SnapshotDriver, SparseSnapshotDriver
from machines import Machine, Run
from plots import (
    copy_that_is_set_back,
    generation_that_comes_under_a_takeover,
    record_that_comes_under_a_takeover,
    record_that_is_damaged_after_a_takeover,
)
from stepping import SteppedSparseDriver

from pannier.copies.lines import Lines
from pannier.copies.replicated import OpenLine, Replicated
from pannier.copies.replication import Replicator
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Cut, Doubt, LinePlace, OnTop, Tail, decode, new_run
from pannier.core.line import tail as real_tail

__all__ = ["BUGS"]

# -- the holder ------------------------------------------------------------------------------------


@bug()
def _take_a_doubt_for_nothing_written(patch: pytest.MonkeyPatch) -> None:
    real = SteppedSparseDriver.cut

    async def cut(self: SteppedSparseDriver, place: LinePlace) -> Cut | Doubt:
        found = await real(self, place)
        if isinstance(found, Doubt) and await self.watch(place.volume, epoch=place.epoch) is None:
            return Cut(size=0, ranges=())
        return found

    patch.setattr(SteppedSparseDriver, "cut", cut)


@bug()
def _go_on_after_a_cut_whose_answer_was_lost(patch: pytest.MonkeyPatch) -> None:
    real = Lines.cut

    async def cut(self: Lines, replicated: Replicated) -> bool:
        line = replicated.line
        try:
            return await real(self, replicated)
        except Exception:
            replicated.line = line
            raise

    patch.setattr(Lines, "cut", cut)


@bug()
def _watch_after_the_snapshot_with_which_a_run_begins(patch: pytest.MonkeyPatch) -> None:
    real = Replicator.make

    async def make(
        self: Replicator, replicated: Replicated, *, written_out: bool = False
    ) -> Generation:
        began, before = self._clock.now(), replicated.line
        if before is not None:
            return await real(self, replicated, written_out=written_out)
        volume = replicated.volume
        generation = await self._drivers.of(volume).snapshot(volume.id, epoch=volume.grant.epoch)
        if await self._lines.watch(replicated):
            replicated.line = OpenLine(new_run(), generation)
        await replicated.note_made(generation, at=began)
        return generation

    patch.setattr(Replicator, "make", make)


@bug()
def _say_that_a_generation_has_a_record_that_was_cut_after_it(patch: pytest.MonkeyPatch) -> None:
    async def make(
        self: Replicator, replicated: Replicated, *, written_out: bool = False
    ) -> Generation:
        began = self._clock.now()
        volume = replicated.volume
        begins = replicated.line is None and await self._lines.watch(replicated)
        generation = await self._drivers.of(volume).snapshot(volume.id, epoch=volume.grant.epoch)
        if begins:
            replicated.line = OpenLine(new_run(), generation)
        else:
            await self._lines.cut(replicated)
            if (line := replicated.line) is not None:
                line.generation, line.included, line.bytes = generation, line.number, 0
        await replicated.note_made(generation, at=began)
        return generation

    patch.setattr(Replicator, "make", make)


@bug()
def _confirm_the_newest_position_by_any_record(patch: pytest.MonkeyPatch) -> None:
    real = Replicated.note_followed

    def note_followed(
        self: Replicated, node: str, place: LinePlace, *, position: int, at: float
    ) -> None:
        real(self, node, place, position=self.position, at=at)

    patch.setattr(Replicated, "note_followed", note_followed)


@bug()
def _take_a_record_that_was_not_answered_for_confirmed(patch: pytest.MonkeyPatch) -> None:
    real = Lines._send_one

    async def send_one(self: Lines, replicated: Replicated, name: str, encoded: Any) -> None:
        try:
            await real(self, replicated, name, encoded)
        except Exception:
            return

    patch.setattr(Lines, "_send_one", send_one)


# -- the copy --------------------------------------------------------------------------------------


@bug(first=560)
def _keep_a_record_without_the_one_before(patch: pytest.MonkeyPatch) -> None:
    """From a holder that goes on to send them; the present one does not."""
    patch.setattr("pannier.core.line.follows", lambda place, *, last, newest: True)
    patch.setattr(Replicated, "note_not_following", lambda self, *_: self._note_answer())


@bug()
def _confirm_a_record_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    real_keep, real_cut = SparseSnapshotDriver.keep, Machine.power_off
    newest: dict[int, tuple[Home, LinePlace]] = {}

    def keep(self: SparseSnapshotDriver, place: LinePlace, encoded: Buffer) -> None:
        real_keep(self, place, encoded)
        newest[id(self.disk)] = self.disk.homes[place.volume], place

    def power_off(self: Machine) -> None:
        home, place = newest.pop(id(self.disk), (None, None))
        if home is not None:
            home.records = [one for one in home.records if one[0] != place]
        real_cut(self)

    patch.setattr(SparseSnapshotDriver, "keep", keep)
    patch.setattr(Machine, "power_off", power_off)


@bug()
def _free_records_before_their_generation_is_durable(patch: pytest.MonkeyPatch) -> None:
    real = SnapshotDriver.receive

    @asynccontextmanager
    async def receive(
        self: SnapshotDriver, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        if volume in self.disk.homes:
            self.disk.homes[volume].records.clear()
        async with real(self, volume, generation, base=base) as fd:
            yield fd

    patch.setattr(SnapshotDriver, "receive", receive)


@bug(generation_that_comes_under_a_takeover, first=680)
def _free_records_when_their_generation_has_come(patch: pytest.MonkeyPatch) -> None:
    real = SnapshotDriver.receive

    @asynccontextmanager
    async def receive(
        self: SnapshotDriver, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        async with real(self, volume, generation, base=base) as fd:
            yield fd
        if isinstance(self, SparseSnapshotDriver):
            await self.settle(volume, generation)

    patch.setattr(SnapshotDriver, "receive", receive)


@bug(record_that_comes_under_a_takeover)
def _confirm_a_record_while_taking_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Run, "take_record", _take_without_a_second_look)


async def _take_without_a_second_look(
    self: Run, encoded: bytes, *, volume_name: str, peer: str
) -> None:
    place = decode(encoded).place
    driver = self.reception.admit_record(place, volume_name=volume_name, peer=peer)
    fault = await self.before("driver.keep")
    driver.keep(place, encoded)
    await self.after("driver.keep", fault)


@bug(copy_that_is_set_back)
def _find_out_that_a_copy_was_set_back_and_not_remember_it(patch: pytest.MonkeyPatch) -> None:
    """The daemon that has found it knows it, and the next one does not."""
    real = SparseSnapshotDriver._missing
    known: dict[int, set[str]] = {}

    async def lack(self: SparseSnapshotDriver, volume: str) -> None:
        known.setdefault(id(self), set()).add(volume)

    def missing(self: SparseSnapshotDriver, volume: str) -> str:
        return real(self, volume) or ("set back" if volume in known.get(id(self), ()) else "")

    patch.setattr(SparseSnapshotDriver, "lack", lack)
    patch.setattr(SparseSnapshotDriver, "_missing", missing)


# -- a takeover ------------------------------------------------------------------------------------


@bug()
def _begin_with_a_generation_alone(patch: pytest.MonkeyPatch) -> None:
    def take(
        self: SparseSnapshotDriver,
        volume: str,
        home: Home,
        generation: Generation,
        on_top: OnTop,
    ) -> Content:
        return SnapshotDriver._take(self, volume, home, generation, on_top)

    patch.setattr(SparseSnapshotDriver, "_take", take)


@bug()
def _put_records_on_top_in_another_order(patch: pytest.MonkeyPatch) -> None:
    def tail(places: Sequence[LinePlace], base: Generation) -> Tail:
        return Tail(places=real_tail(places, base).places[::-1])

    patch.setattr("fake_driver.tail", tail)


@bug()
def _put_records_on_top_that_the_generation_has(patch: pytest.MonkeyPatch) -> None:
    async def settle(self: SparseSnapshotDriver, volume: str, generation: Generation) -> None:
        return

    patch.setattr(SparseSnapshotDriver, "settle", settle)
    patch.setattr("fake_driver.tail", lambda places, base: Tail(places=tuple(places)))


@bug(record_that_is_damaged_after_a_takeover)
def _leave_out_silently_what_is_missing(patch: pytest.MonkeyPatch) -> None:
    """Whoever took over looked before that."""
    real = SparseSnapshotDriver._take

    def take(
        self: SparseSnapshotDriver,
        volume: str,
        home: Home,
        generation: Generation,
        on_top: OnTop,
    ) -> Content:
        if on_top is OnTop.ALL:
            on_top = OnTop.WHAT_IS_HERE
        return real(self, volume, home, generation, on_top)

    patch.setattr(SparseSnapshotDriver, "_take", take)
