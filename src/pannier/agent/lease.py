"""This node's lease in the store, and how long this node may act as the holder of each volume.

Others see from ``alive/NODE`` that this node is up, and take nothing over while it is there. A lease
that ran out and was granted anew begins another *term*: this node then holds nothing by that lease
until each volume's record was read and written anew (:meth:`Lease.proven`).
"""

from __future__ import annotations

import asyncio
from math import inf

import structlog

from pannier.core.errors import OutcomeUnknown, PannierError, Stale, Unavailable
from pannier.core.lease import Standing, Terms
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.store.base import ABSENT, Change, Store

log = structlog.get_logger(__name__)


class Lease:
    """Keeps ``alive/NODE`` in the store for as long as this daemon runs, and knows what it proves."""

    def __init__(
        self,
        store: Store,
        *,
        node: str,
        boot_id: str,
        terms: Terms,
        clock: Clock,
    ) -> None:
        self.terms = terms
        self._store = store
        self._key = f"alive/{node}"
        self._value = boot_id.encode()
        self._clock = clock
        self._lease: str | None = None
        self._until = -inf
        self._ended_early_until = -inf
        self._term = 0
        self._proven: dict[str, tuple[int, int]] = {}
        self._promises: dict[str, dict[str, float]] = {}
        self.withheld = ""
        """Why the lease is deliberately not renewed, such as a failed disk; empty while it is."""

    @property
    def term(self) -> int:
        """Rises with every lease that had to be granted anew; 0 before the first."""
        return self._term

    @property
    def until(self) -> float:
        """The end of the lease for this node, which is earlier than the store's."""
        return self._until

    @property
    def in_danger(self) -> bool:
        """Whether a renewal that is wanted is overdue: the lease may soon run out."""
        overdue = self._term > 0 and self._until - self._clock.now() < self.terms.ttl * 0.4
        return overdue and not self.withheld

    def proven(self, volume: Volume, *, term: int) -> None:
        """The volume's record was read and written since ``term`` began, and names this node."""
        self._proven[volume.id] = (volume.grant.epoch, term)

    def needs_proof(self, volume: Volume) -> bool:
        """Whether the volume was not proven in the present term yet: see :meth:`proven`."""
        return self._proven.get(volume.id) != (volume.grant.epoch, self._term)

    def _was_proven(self, volume: Volume) -> bool:
        """Whether this run has read the volume's record. One remembered from an earlier run may lack
        rivals. Once it is read, all are known: only the holder changes who they are."""
        return self._proven.get(volume.id, (0, 0))[0] == volume.grant.epoch

    def promised(self, volume: Volume, promises: dict[str, float]) -> None:
        """Peers promised not to take the volume over, each until a time on our clock."""
        self._promises.setdefault(volume.id, {}).update(promises)

    def standing(self, volume: Volume) -> Standing:
        """What proves now that this node holds the volume."""
        return Standing(
            now=self._clock.now(),
            read=volume.spec.copies == 1 or self._was_proven(volume),
            lease_until=-inf if self.needs_proof(volume) else self._until,
            promises=self._promises.get(volume.id, {}),
        )

    def holds(self, volume: Volume, rivals: frozenset[str] | None = None) -> bool:
        """Whether this node may act as the volume's holder now.

        ``rivals`` are those who could take over, where more is known than the record says.
        """
        return self.standing(volume).holds(volume.in_sync if rivals is None else rivals)

    def covers(self, volume: Volume, rivals: frozenset[str]) -> bool:
        """Whether the volume's users may go on.

        If the store ended the lease early, they may until its regular end. This leaves time to prove
        that nobody took the volume over.
        """
        left = self._ended_early_until if self._was_proven(volume) else -inf
        return self.holds(volume, rivals) or self._clock.now() < left

    def ever_proven(self, volume: Volume) -> bool:
        """Whether anything of the volume can have been served by this run: see :meth:`proven`."""
        return self._was_proven(volume)

    def forget(self, volume: Volume) -> None:
        """The volume is another node's now."""
        self._proven.pop(volume.id, None)
        self._promises.pop(volume.id, None)

    async def keep(self) -> None:
        """Renew for ever, through outages of the store: run as a task."""
        while True:
            asked_at = self._clock.now()
            try:
                async with asyncio.timeout(self.terms.ttl / 2):
                    if not self.withheld:
                        await self._renew()
            except (PannierError, TimeoutError) as error:
                log.warning("lease.not-renewed", error=str(error) or "no answer in time")
            took = self._clock.now() - asked_at
            await asyncio.sleep(max(self.terms.renewal - took, self.terms.renewal / 4))

    async def _renew(self) -> None:
        asked_at = self._clock.now()
        if self._lease is not None:
            try:
                async with asyncio.timeout(self.terms.ttl / 6):  # in time to ask another member
                    await self._store.renew_lease(self._lease)
            except Stale:
                self._lease = None
                self._ended_early_until, self._until = self._until, -inf
            else:
                self._until = self.terms.trusted_until(asked_at)
                return
        asked_at = self._clock.now()
        lease = await self._store.grant_lease(self.terms.ttl)
        current = await self._store.get(self._key)
        try:
            await self._store.commit(
                Change(self._key, self._value, current.revision if current else ABSENT, lease)
            )
        except Stale:
            await self._store.revoke_lease(lease)  # an older lease ended meanwhile; try next turn
            return
        self._lease = lease
        self._until = self.terms.trusted_until(asked_at)
        self._term += 1

    def renounce(self) -> None:
        """Nothing is served on this lease any more, until it is renewed."""
        self._until = -inf

    async def end(self) -> None:
        """Say at once that this node is going, instead of letting the lease run out.

        Only for a node whose volumes nobody uses: others may take them over from now on.
        """
        self.renounce()
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await asyncio.wait_for(self._store.revoke_lease(lease), 2.0)
            except (Unavailable, OutcomeUnknown, TimeoutError) as error:
                log.info("lease.not-revoked", error=str(error))
