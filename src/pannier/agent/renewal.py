"""This node's lease in the store: granted, renewed again and again, and granted anew where it ran out.

A lease counts only with the node's key in the store. Each renewal looks whether the key is still what this lease made
it. While the key lives and another boot made it, no lease is asked for: see :mod:`pannier.agent.own_name`.

Where this runs is of no importance to it: in the event loop of the node, or in a process of its own
(:mod:`pannier.agent.keeper`). What it brings is one value that does not change (:class:`Held`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import structlog

from pannier.agent.own_name import COPIED_REMEDY, OwnName
from pannier.core.errors import PannierError, Stale
from pannier.core.lease import Terms
from pannier.host.clock import Clock
from pannier.store.base import ABSENT, Change, Store

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """What the store has granted, as its last answers say.

    Attributes:
        lease: its id; None where there is none, or it is known to be over.
        term: rises with every lease that had to be granted anew; 0 before the first.
        until: its end for this node, which is earlier than the store's. Seconds since boot.
        ended_early_until: when the last lease that the store ended before its time would have been over.
        taken_by: the boot id of the machine that has this node's name, or had it at the last look; empty where this
            one has it, and where that is not known.
        taken_since: when that one was first seen. Seconds since boot.
    """

    lease: str | None = None
    term: int = 0
    until: float = -inf
    ended_early_until: float = -inf
    taken_by: str = ""
    taken_since: float = inf


class Keeper(Protocol):
    """Keeps the lease for as long as it runs."""

    def held(self) -> Held:
        """What is held now. Raises nothing, and waits for nothing."""
        ...

    def withhold(self, why: str) -> None:
        """Renew no more while ``why`` is not empty."""
        ...

    async def run(self) -> None:
        """Renew for ever, through outages of the store: run as a task. When it has ended, nothing is renewed any more."""
        ...


class Renewal(Keeper):
    """Keeps the lease in the event loop that runs it.

    Args:
        store: with a session of that loop.
        wanted: whether the node still works; asked before each renewal.
        publish: hears of each change of what is held.
    """

    def __init__(
        self,
        store: Store,
        *,
        node: str,
        boot_id: str,
        terms: Terms,
        clock: Clock,
        wanted: Callable[[], bool] = lambda: True,
        publish: Callable[[Held], None] = lambda _held: None,
    ) -> None:
        self._store = store
        self._name = OwnName(node, boot_id)
        self._terms = terms
        self._clock = clock
        self._wanted = wanted
        self._publish = publish
        self._held = Held()
        self._revision = ABSENT
        self._told = False
        self._withheld = ""

    def held(self) -> Held:
        return self._held

    def withhold(self, why: str) -> None:
        self._withheld = why

    async def run(self) -> None:
        while True:
            asked_at = self._clock.now()
            try:
                async with asyncio.timeout(self._terms.ttl / 2):
                    if not self._withheld and self._wanted():
                        await self._renew()
            except (PannierError, TimeoutError) as error:
                log.warning("lease.not-renewed", error=str(error) or "no answer in time")
            took = self._clock.now() - asked_at
            await asyncio.sleep(max(self._terms.renewal - took, self._terms.renewal / 4))

    async def _renew(self) -> None:
        if self._held.lease is not None:
            await self._renew_held(self._held.lease)
        if self._held.lease is None:
            await self._acquire()

    async def _renew_held(self, lease: str) -> None:
        """Renew it, and see that the node's key is still of this lease. Else the term is over."""
        asked_at, in_time = self._clock.now(), self._terms.ttl / 6  # to ask another member
        try:
            async with asyncio.timeout(in_time):
                await self._store.renew_lease(lease)
        except Stale:
            self._set(Held(term=self._held.term, ended_early_until=self._held.until))
            return
        async with asyncio.timeout(in_time):
            current = await self._store.get(self._name.key)
        if current is not None and current.revision == self._revision:
            self._set(replace(self._held, until=self._terms.trusted_until(asked_at)))
            return
        log.error("lease.key-lost", node=self._name.node, by=self._name.other_boot(current))
        self._set(Held(term=self._held.term))

    async def _acquire(self) -> None:
        current = await self._store.get(self._name.key)
        if other := self._name.other_boot(current):
            self._wait_for(other)
            return
        asked_at = self._clock.now()
        lease = await self._store.grant_lease(self._terms.ttl)
        expect = current.revision if current else ABSENT
        try:
            self._revision = await self._store.commit(
                Change(self._name.key, self._name.value, expect, lease)
            )
        except Stale:
            await self._store.revoke_lease(lease)  # the key has changed meanwhile; try next turn
            return
        if self._held.taken_by:
            log.warning("lease.name-free", node=self._name.node, was=self._held.taken_by)
        term, until = self._held.term + 1, self._terms.trusted_until(asked_at)
        early = self._held.ended_early_until
        self._set(Held(lease=lease, term=term, until=until, ended_early_until=early))

    def _wait_for(self, other: str) -> None:
        """Another boot has the name. Say so at once, and what that means when it cannot be this machine's."""
        now, node = self._clock.now(), self._name.node
        if self._held.taken_by != other:
            log.warning(
                "lease.waits",
                node=node,
                boot=self._name.boot_id,
                for_boot=other,
                remedy=COPIED_REMEDY,
            )
            self._told = False
            self._set(Held(term=self._held.term, taken_by=other, taken_since=now))
        elif not self._told and now - self._held.taken_since > self._terms.of_earlier_boot:
            log.error(
                "lease.another-machine",
                node=node,
                boot=self._name.boot_id,
                other_boot=other,
                what="another machine acts as this node; this one serves nothing",
                remedy=COPIED_REMEDY,
            )
            self._told = True

    def _set(self, held: Held) -> None:
        self._held = held
        self._publish(held)
