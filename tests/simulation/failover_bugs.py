"""Mistakes in leases, copies and takeovers, each of which some history must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from plots import (
    Plot,
    container_that_outlives_its_epoch,
    copy_that_cannot_be_tidied,
    crash_right_after_a_join,
    generation_that_comes_under_a_takeover,
    holder_out_of_time,
    holder_that_hears_late,
    holder_that_was_copied,
    join_that_hangs,
    lease_that_ends_under_a_takeover,
    only_generations_arrive,
    store_that_is_restored,
    takeover_that_hangs,
)

from pannier.agent import custody
from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.fencing import Fencing
from pannier.agent.lease import Lease
from pannier.agent.own_name import OwnName
from pannier.agent.promises import Promises, Takeovers
from pannier.agent.renewal import Renewal
from pannier.cluster.registry import Registry, Versioned
from pannier.copies.acknowledging import Acknowledging
from pannier.copies.in_sync import InSync
from pannier.copies.quarantined import QuarantinedCopies
from pannier.copies.receiving import Reception
from pannier.copies.replicated import Circle, Replicated
from pannier.copies.replication import Replicator
from pannier.core import acknowledging
from pannier.core.errors import OutcomeUnknown, PannierError, StorageError
from pannier.core.generation import Generation
from pannier.core.lease import Standing, Terms
from pannier.core.ownership import Cleanup, LocalState, plan_cleanup
from pannier.core.volume import Volume
from pannier.holding.memories import Memories
from pannier.holding.takeover import Takeover
from pannier.host.clock import Clock
from pannier.storage.base import Driver
from pannier.transport.base import Offer

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, tuple[Patch, Plot | None, int]] = {}
"""By name: how to plant it, the plot that aims at it, if chance would take too long, and the seed to begin
with: not far before one that showed it."""


def bug(plot: Plot | None = None, *, first: int = 0) -> Callable[[Patch], Patch]:
    def note(plant: Patch) -> Patch:
        BUGS[plant.__name__.lstrip("_")] = plant, plot, first
        return plant

    return note


# -- acknowledging ---------------------------------------------------------------------------------


@bug()
def _acknowledge_before_the_confirmation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pannier.core.acknowledging.unconfirmed", lambda could_take, call: frozenset())


@bug()
def _acknowledge_without_a_silent_replica(patch: pytest.MonkeyPatch) -> None:
    """As if it were enough to know that it is behind."""
    silent: dict[str, frozenset[str]] = {}
    real = acknowledging.rivals

    async def leave(
        self: InSync, replicated: Replicated, nodes: frozenset[str], *, why: str
    ) -> None:
        silent[replicated.volume.id] = nodes

    def rivals(volume: Volume, known: Volume | None, required: frozenset[str]) -> frozenset[str]:
        return real(volume, known, required) - silent.get(volume.id, frozenset())

    patch.setattr(InSync, "leave", leave)
    patch.setattr("pannier.core.acknowledging.rivals", rivals)
    patch.setattr("pannier.copies.acknowledging.rivals", rivals)


@bug()
def _acknowledge_by_an_earlier_position(patch: pytest.MonkeyPatch) -> None:
    """The one that is under way is new enough, is it not?"""
    real = Replicator.advance

    async def advance(self: Replicator, replicated: Replicated) -> int:
        before = replicated.position
        made = await real(self, replicated)
        return before or made

    patch.setattr(Replicator, "advance", advance)


@bug(only_generations_arrive)
def _acknowledge_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standing, "holds", lambda self, rivals: True)


@bug()
def _treat_leaving_with_an_unknown_outcome_as_done(patch: pytest.MonkeyPatch) -> None:
    real = Registry.replace_volume

    async def replace_volume(self: Registry, volume: Volume, *, expect: int) -> Versioned[Volume]:
        try:
            return await real(self, volume, expect=expect)
        except OutcomeUnknown:
            return Versioned(volume, expect + 1)

    patch.setattr(Registry, "replace_volume", replace_volume)


@bug()
def _join_without_catching_up(patch: pytest.MonkeyPatch) -> None:
    async def join(self: Acknowledging, replicated: Replicated, node: str) -> None:
        async with replicated.group:
            await self._in_sync.join(replicated, node)

    patch.setattr(Acknowledging, "_join", join)


@bug(join_that_hangs)
def _forget_who_may_have_joined_when_replication_begins_anew(patch: pytest.MonkeyPatch) -> None:
    def circle(self: Replicator, volume: Volume) -> Circle:
        replicated = self._replicated.get(volume.id)
        return replicated.circle if replicated else Circle(frozenset(volume.in_sync))

    patch.setattr(Replicator, "circle", circle)


@bug(crash_right_after_a_join, first=100)
def _believe_a_memory_without_rivals(patch: pytest.MonkeyPatch) -> None:
    real = Lease._was_proven
    patch.setattr(
        Lease, "_was_proven", lambda self, volume: not volume.in_sync or real(self, volume)
    )


# -- clocks ----------------------------------------------------------------------------------------


@bug(only_generations_arrive)
def _count_the_lease_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    for part in (Lease, Renewal):
        real = part.__init__

        def init(self: Any, *args: Any, clock: Clock, real: Any = real, **named: Any) -> None:
            real(self, *args, clock=replace(clock, now=clock.unix), **named)

        patch.setattr(part, "__init__", init)


@bug(only_generations_arrive)
def _count_the_lease_from_the_answer_and_to_its_end(patch: pytest.MonkeyPatch) -> None:
    real = Renewal._renew

    async def renew(self: Renewal) -> None:
        await real(self)
        if self._held.lease is not None:
            self._set(replace(self._held, until=self._clock.now() + self._terms.ttl))

    patch.setattr(Renewal, "_renew", renew)
    patch.setattr(Terms, "margin", property(lambda self: 0.0))


@bug(only_generations_arrive)
def _count_a_promise_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    real = Lease.promised

    def promised(self: Lease, volume: Volume, promises: dict[str, float]) -> None:
        real(self, volume, {name: self._clock.now() + 12.0 for name in promises})

    patch.setattr(Lease, "promised", promised)


@bug(holder_that_was_copied)
def _take_the_name_of_another_machine_that_lives(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OwnName, "other_boot", lambda self, entry: "")


# -- taking over -----------------------------------------------------------------------------------


@bug(holder_out_of_time, first=1060)
def _accept_an_older_epoch(patch: pytest.MonkeyPatch) -> None:
    async def admit(self: Reception, offer: Offer, *, peer: str) -> Driver:
        return self._drivers.named(offer.driver)

    async def check(self: Reception, offer: Offer, *, peer: str) -> None:
        return

    patch.setattr(Reception, "admit", admit)
    patch.setattr(Reception, "_check", check)


@bug(generation_that_comes_under_a_takeover)
def _confirm_while_taking_over(patch: pytest.MonkeyPatch) -> None:
    async def check(self: Reception, offer: Offer, *, peer: str) -> None:
        return

    patch.setattr(Reception, "_check", check)


@bug()
def _take_over_with_a_copy_that_is_not_in_sync(patch: pytest.MonkeyPatch) -> None:
    real_check, real_possible = Takeover._check, Takeover.possible

    def named(self: Takeover, volume: Volume) -> Volume:
        return replace(volume, in_sync=(*volume.in_sync, self._cluster.node))

    patch.setattr(Takeover, "_check", lambda s, v, epoch: real_check(s, named(s, v), epoch))
    patch.setattr(Takeover, "possible", lambda s, v: real_possible(s, named(s, v)))

    async def choose(self: Takeover, volume: Volume) -> str:
        return self._cluster.node

    patch.setattr(Takeover, "_choose", choose)


@bug(lease_that_ends_under_a_takeover, first=4000)
def _choose_the_base_before_the_refusal(patch: pytest.MonkeyPatch) -> None:
    real_take, real_newest = Takeover.take, Drivers.newest
    chosen: dict[tuple[str, str], Generation | None] = {}

    async def take(self: Takeover, name: str, *, epoch: int) -> Volume:
        record = (await self._cluster.fresh(name)).record
        chosen[(self._cluster.node, record.id)] = await real_newest(self._drivers, record)
        return await real_take(self, name, epoch=epoch)

    async def newest(self: Drivers, volume: Volume) -> Generation | None:
        return chosen.get((self._node, volume.id)) or await real_newest(self, volume)

    patch.setattr(Takeover, "take", take)
    patch.setattr(Drivers, "newest", newest)


@bug(lease_that_ends_under_a_takeover)
def _take_over_from_a_live_holder(patch: pytest.MonkeyPatch) -> None:
    """No guard on its lease in the change of the record, and no proof when it is granted anew."""
    patch.setattr(Lease, "_is_proven", lambda self, volume, held: held.term > 0)
    patch.setattr(Lease, "_was_proven", lambda self, volume: self.term > 0)

    async def take_volume(
        self: Registry, volume: Volume, *, expect: int, former: str
    ) -> Versioned[Volume]:
        return await self.replace_volume(volume, expect=expect)

    patch.setattr(Registry, "take_volume", take_volume)


@bug(only_generations_arrive)
def _take_over_while_promised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Promises, "seconds_left", lambda self, volume_id: 0.0)


@bug(only_generations_arrive)
def _forget_promises_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    real = Promises.__init__

    def init(self: Promises, **parts: Any) -> None:
        real(self, **parts)
        self._not_before = -inf

    patch.setattr(Promises, "__init__", init)


@bug(takeover_that_hangs)
def _forget_a_takeover_that_was_begun_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Promises, "_load", lambda self: Takeovers())


@bug(takeover_that_hangs)
def _end_the_refusal_when_the_outcome_is_unknown(patch: pytest.MonkeyPatch) -> None:
    real = Takeover.take

    async def take(self: Takeover, name: str, *, epoch: int) -> Volume:
        try:
            return await real(self, name, epoch=epoch)
        except PannierError:
            self._promises._refused.clear()
            raise

    patch.setattr(Takeover, "take", take)


@bug()
def _begin_a_takeover_with_another_generation_than_the_newest(patch: pytest.MonkeyPatch) -> None:
    async def newest(self: Drivers, volume: Volume) -> Generation | None:
        copy = await self.of(volume).inspect(volume.id)
        return min((g for g in copy.generations if volume.grew_out_of(g)), default=None)

    patch.setattr(Drivers, "newest", newest)


# -- what is kept and ended ------------------------------------------------------------------------


@bug()
def _delete_the_copy_that_a_replica_needs(patch: pytest.MonkeyPatch) -> None:
    def plan(
        record: Volume, copy: LocalState, *, node: str, needed: frozenset[Generation] = frozenset()
    ) -> Cleanup:
        found = plan_cleanup(record, copy, node=node, needed=needed)
        if record.grant.node != node and len(copy.generations) > 1:
            return replace(found, delete=tuple(sorted(copy.generations)[-1:]))
        return found

    patch.setattr(custody, "plan_cleanup", plan)


@bug()
def _delete_the_base_that_a_replica_needs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replicated, "needed", lambda self: frozenset())


@bug()
def _drop_a_stray(patch: pytest.MonkeyPatch) -> None:
    real = Custody.depose

    async def depose(self: Custody, volume: Volume, *, successor: str) -> None:
        await real(self, volume, successor=successor)
        driver = self._drivers.of(volume)
        await driver.seal(volume.id, epoch=volume.grant.epoch)
        await driver.drop_live(volume.id, epoch=volume.grant.epoch)
        for one in (await driver.inspect(volume.id)).generations:
            if one.epoch == volume.grant.epoch:
                await driver.delete_generation(volume.id, one)

    patch.setattr(Custody, "depose", depose)


@bug(takeover_that_hangs)
def _leave_containers_alone_when_the_lease_is_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fencing, "_look", lambda self, volume: None)


@bug(holder_that_hears_late)
def _let_containers_go_on_when_there_is_a_lease_again(patch: pytest.MonkeyPatch) -> None:
    def covered(self: Fencing, volume: Volume) -> bool:
        return self._clock.now() < self._lease.until

    patch.setattr(Fencing, "_covered", covered)


@bug(container_that_outlives_its_epoch, first=100)
def _serve_again_beside_a_container_of_an_earlier_epoch(patch: pytest.MonkeyPatch) -> None:
    real = Custody._end_former

    async def end_former(self: Custody, volume: Volume) -> None:
        if volume.grant.node != self._cluster.node:
            await real(self, volume)

    patch.setattr(Custody, "_end_former", end_former)


# -- copies that cannot be tidied up -----------------------------------------------------------------


@bug(copy_that_cannot_be_tidied)
def _set_a_copy_apart_that_counts(patch: pytest.MonkeyPatch) -> None:
    async def make_anew(self: QuarantinedCopies, volume: Volume, reason: StorageError) -> None:
        await self._drivers.of(volume).set_apart(volume.id)

    patch.setattr(QuarantinedCopies, "_make_anew", make_anew)


# -- a store that was restored -----------------------------------------------------------------------


@bug(store_that_is_restored, first=30)
def _believe_a_store_that_was_restored(patch: pytest.MonkeyPatch) -> None:
    for module in ("cluster", "catalog"):
        patch.setattr(f"pannier.cluster.{module}.is_behind", lambda record, known: False)


@bug(store_that_is_restored)
def _go_on_after_a_start_without_asking_the_others(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Memories) -> None:
        pass

    patch.setattr(Memories, "look", nothing)
    patch.setattr(Memories, "asked", nothing)
