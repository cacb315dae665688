"""This node's lease in the store: others see from it whether the node is up."""

from __future__ import annotations

import asyncio

import structlog

from pannier.core.errors import OutcomeUnknown, PannierError, Stale, Unavailable
from pannier.store.base import ABSENT, Change, Store

log = structlog.get_logger(__name__)

TTL_SECONDS = 10.0
"""Long enough that a loaded node is not called down, short enough that people see a loss at once."""


class Presence:
    """Keeps ``alive/NODE`` in the store for as long as this daemon runs."""

    def __init__(self, store: Store, *, node: str, boot_id: str) -> None:
        self._store = store
        self._key = f"alive/{node}"
        self._value = boot_id.encode()
        self._lease: str | None = None

    async def keep(self) -> None:
        """Renew for ever, through outages of the store: run as a task."""
        while True:
            try:
                await self._renew()
            except PannierError as error:
                log.warning("presence.not-renewed", error=str(error))
            await asyncio.sleep(TTL_SECONDS / 3)

    async def _renew(self) -> None:
        if self._lease is not None:
            try:
                await self._store.renew_lease(self._lease)
            except Stale:
                self._lease = None
            else:
                return
        lease = await self._store.grant_lease(TTL_SECONDS)
        current = await self._store.get(self._key)
        try:
            await self._store.commit(
                Change(self._key, self._value, current.revision if current else ABSENT, lease)
            )
        except Stale:
            await self._store.revoke_lease(lease)  # an older lease ended between; the next turn
            return
        self._lease = lease

    async def end(self) -> None:
        """Say at once that this node is going, instead of letting the lease run out."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await asyncio.wait_for(self._store.revoke_lease(lease), 2.0)
            except (Unavailable, OutcomeUnknown, TimeoutError) as error:
                log.info("presence.not-revoked", error=str(error))
