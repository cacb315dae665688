"""The simulation is only worth something if it finds bugs: here are some, each must be found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import failover_histories
import histories
import line_bugs
import pytest
from stepping import SteppedDriver

from pannier.agent import custody
from pannier.agent.custody import Custody
from pannier.agent.use import Use
from pannier.cluster.registry import Registry, Versioned
from pannier.copies.receiving import Reception
from pannier.core.generation import Generation
from pannier.core.ownership import Cleanup, LocalState, Plan, Promote, Unseal, plan_serving
from pannier.core.ownership import plan_cleanup as real_cleanup
from pannier.core.volume import Grant, Volume
from pannier.holding.handover import Handovers
from pannier.storage.base import Driver
from pannier.transport.base import Offer

ENOUGH = 100
"""Histories within which a bug must show."""
ENOUGH_FAILOVERS = 2000

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Patch] = {}


def bug(plant: Patch) -> Patch:
    BUGS[plant.__name__.lstrip("_")] = plant
    return plant


@bug
def _unseal_after_an_unknown_outcome_without_reading(patch: pytest.MonkeyPatch) -> None:
    async def was_given(self: Handovers, volume: Volume, grant: Grant) -> bool:
        await self._drivers.of(volume).unseal(volume.id, epoch=volume.grant.epoch)
        return False

    patch.setattr(Handovers, "_was_given", was_given)


@bug
def _unseal_while_a_change_may_be_on_its_way(patch: pytest.MonkeyPatch) -> None:
    real = Registry.replace_volume

    async def replace_volume(self: Registry, volume: Volume, *, expect: int) -> Versioned[Volume]:
        found = await self.volume(volume.name)
        if found and found.record == volume:
            return found  # writing the same again is of no use, is it?
        return await real(self, volume, expect=expect)

    patch.setattr(Registry, "replace_volume", replace_volume)


@bug
def _serve_a_sealed_tree_on_a_remembered_record(patch: pytest.MonkeyPatch) -> None:
    real = Custody.take_up

    async def take_up(self: Custody, volume: Volume) -> Versioned[Volume]:
        plan = plan_serving(volume, await self._local(volume), node=self._cluster.node)
        if isinstance(plan, Unseal):
            return Versioned(volume, 0)
        return await real(self, volume)

    patch.setattr(Custody, "take_up", take_up)


@bug
def _promote_another_generation_than_the_base(patch: pytest.MonkeyPatch) -> None:
    def plan(record: Volume, copy: LocalState, *, node: str) -> Plan:
        found = plan_serving(record, copy, node=node)
        if isinstance(found, Promote):
            return Promote(min(copy.generations), found.epoch, found.on_top)
        return found

    patch.setattr(custody, "plan_serving", plan)


@bug
def _drop_the_live_tree_before_the_record_changed(patch: pytest.MonkeyPatch) -> None:
    real = Handovers._give

    async def give(self: Handovers, volume: Volume, record: Volume, *, expect: int) -> None:
        await self._drivers.of(volume).drop_live(volume.id, epoch=volume.grant.epoch)
        await real(self, volume, record, expect=expect)

    patch.setattr(Handovers, "_give", give)


@bug
def _give_without_sealing(patch: pytest.MonkeyPatch) -> None:
    real = SteppedDriver.seal

    async def seal(self: SteppedDriver, volume: str, *, epoch: int) -> Any:
        generation = await real(self, volume, epoch=epoch)
        await self._inner.unseal(volume, epoch=epoch)
        return generation

    patch.setattr(SteppedDriver, "seal", seal)


@bug
def _accept_a_generation_from_a_node_that_does_not_hold(patch: pytest.MonkeyPatch) -> None:
    async def admit(self: Reception, offer: Offer, *, peer: str) -> Driver:
        return self._drivers.named(offer.driver)

    patch.setattr(Reception, "admit", admit)


@bug
def _give_while_it_is_in_use(patch: pytest.MonkeyPatch) -> None:
    async def users(self: Use, volume: Volume) -> list[str]:
        return []

    async def in_use(self: Use, volume: Volume) -> bool:
        return False

    patch.setattr(Use, "users", users)
    patch.setattr(Use, "in_use", in_use)


@bug
def _give_while_a_container_is_being_started(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Use, "starting", lambda self, volume: False)


@bug
def _remount_from_under_a_container(patch: pytest.MonkeyPatch) -> None:
    """As if a Mount promoted anew instead of keeping the tree that is there."""

    async def processes(self: Use, volume: Volume) -> list[Any]:
        return []

    patch.setattr(Use, "processes", processes)


@bug
def _give_without_a_new_epoch(patch: pytest.MonkeyPatch) -> None:
    real = Registry.replace_volume

    async def replace_volume(self: Registry, volume: Volume, *, expect: int) -> Versioned[Volume]:
        found = await self.volume(volume.name)
        if found and found.record.grant.node != volume.grant.node:
            volume = replace(volume, grant=Grant(volume.grant.node, found.record.grant.epoch))
        return await real(self, volume, expect=expect)

    patch.setattr(Registry, "replace_volume", replace_volume)


@bug
def _tidy_away_the_sealed_tree_that_one_holds(patch: pytest.MonkeyPatch) -> None:
    def plan(
        record: Volume, copy: LocalState, *, node: str, needed: frozenset[Generation]
    ) -> Cleanup:
        found = real_cleanup(record, copy, node=node, needed=needed)
        return replace(found, drop=tuple(e for e, sealed in copy.sealed.items() if sealed))

    patch.setattr(custody, "plan_cleanup", plan)


@bug
def _delete_what_is_to_be_promoted(patch: pytest.MonkeyPatch) -> None:
    def plan(
        record: Volume, copy: LocalState, *, node: str, needed: frozenset[Generation]
    ) -> Cleanup:
        found = real_cleanup(record, copy, node=node, needed=needed)
        if record.grant.node == node and record.grant.epoch not in copy.sealed:
            return replace(found, delete=tuple(copy.generations))
        return found

    patch.setattr(custody, "plan_cleanup", plan)


def _show(name: str, seed: int, found: AssertionError) -> None:
    """Tell what a bug did. One that only breaks the code it is planted in proves nothing."""
    what = str(found).splitlines()[-2]
    print(f"{name}: found by seed {seed}: {what}")
    assert not re.search(r"\b(Attribute|Index|Key|Name|Type)Error\b", what), what


@pytest.mark.parametrize("name", BUGS)
def test_the_simulation_finds_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BUGS[name](monkeypatch)
    for seed in range(ENOUGH):
        try:
            histories.play(seed, tmp_path / str(seed))
        except AssertionError as found:
            _show(name, seed, found)
            return
    pytest.fail(f"{ENOUGH} histories did not show it")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", line_bugs.BUGS)
def test_the_simulation_of_failovers_finds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, plot, first = line_bugs.BUGS[name]
    plant(monkeypatch)
    for seed in range(first, first + ENOUGH_FAILOVERS):
        try:
            failover_histories.play(seed, plot)
        except AssertionError as found:
            _show(name, seed, found)
            return
    pytest.fail(f"{ENOUGH_FAILOVERS} histories did not show it")
