"""This node's lease in the store: granted, renewed again and again, and granted anew where it ran out.

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
    """

    lease: str | None = None
    term: int = 0
    until: float = -inf
    ended_early_until: float = -inf


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
        self._key = f"alive/{node}"
        self._value = boot_id.encode()
        self._terms = terms
        self._clock = clock
        self._wanted = wanted
        self._publish = publish
        self._held = Held()
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
        asked_at = self._clock.now()
        if self._held.lease is not None:
            try:
                async with asyncio.timeout(self._terms.ttl / 6):  # in time to ask another member
                    await self._store.renew_lease(self._held.lease)
            except Stale:
                self._set(Held(term=self._held.term, ended_early_until=self._held.until))
            else:
                self._set(replace(self._held, until=self._terms.trusted_until(asked_at)))
                return
        asked_at = self._clock.now()
        lease = await self._store.grant_lease(self._terms.ttl)
        current = await self._store.get(self._key)
        try:
            await self._store.commit(
                Change(self._key, self._value, current.revision if current else ABSENT, lease)
            )
        except Stale:
            await self._store.revoke_lease(lease)  # an older lease ended meanwhile; try next turn
            return
        until = self._terms.trusted_until(asked_at)
        self._set(replace(self._held, lease=lease, term=self._held.term + 1, until=until))

    def _set(self, held: Held) -> None:
        self._held = held
        self._publish(held)
