"""What this node's lease proves: how long this node may act as the holder of each volume.

Others see from ``alive/NODE`` that this node is up, and take nothing over while it is there. A lease
that ran out and was granted anew begins another *term*: this node then holds nothing by that lease
until each volume's record was read and written anew (:meth:`Lease.proven`).

What is held may change between any two looks, since another process renews it (:mod:`pannier.agent.keeper`). So each
decision looks once.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf

import structlog

from pannier.agent.own_name import OwnName, taken_by
from pannier.agent.renewal import Held, Keeper
from pannier.core.errors import OutcomeUnknown, PannierError, Unavailable
from pannier.core.lease import Standing, Terms
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.store.base import Store

log = structlog.get_logger(__name__)


class Lease:
    """Knows what ``alive/NODE`` in the store proves, for as long as this daemon runs.

    Args:
        store: with which the lease is ended.
        keeper: keeps it until then.
        name: for which it is kept.
    """

    def __init__(
        self, store: Store, *, keeper: Keeper, name: OwnName, terms: Terms, clock: Clock
    ) -> None:
        self.terms = terms
        self._store = store
        self._keeper = keeper
        self._name = name
        self._clock = clock
        self._renounced = False
        self._withheld = ""
        self._proven: dict[str, tuple[int, int]] = {}
        self._promises: dict[str, dict[str, float]] = {}

    def _held(self) -> Held:
        held = self._keeper.held()
        return replace(held, until=-inf) if self._renounced else held

    @property
    def withheld(self) -> str:
        """Why the lease is deliberately not renewed, such as a failed disk; empty while it is."""
        return self._withheld

    @withheld.setter
    def withheld(self, why: str) -> None:
        self._withheld = why
        self._keeper.withhold(why)

    @property
    def term(self) -> int:
        """Rises with every lease that had to be granted anew; 0 before the first."""
        return self._held().term

    @property
    def until(self) -> float:
        """The end of the lease for this node, which is earlier than the store's."""
        return self._held().until

    @property
    def is_current(self) -> bool:
        """Whether it has not run out."""
        return self.until > self._clock.now()

    @property
    def in_danger(self) -> bool:
        """Whether a renewal that is wanted is overdue: the lease may soon run out."""
        held = self._held()
        overdue = held.term > 0 and held.until - self._clock.now() < self.terms.ttl * 0.4
        return overdue and not self.withheld

    @property
    def name_taken(self) -> bool:
        """Whether another boot has this node's name, as far as is known: see :mod:`pannier.agent.own_name`."""
        return bool(self._held().taken_by)

    @property
    def name_taken_by_machine(self) -> bool:
        """Whether it has had it for so long that it is another machine's."""
        since = self._clock.now() - self._held().taken_since
        return self.name_taken and since > self.terms.of_earlier_boot

    async def check_name(self) -> None:
        """Make sure that no other machine has this node's name. Asks the store only without a good lease.

        A run that had no lease yet waits as long as it may be an earlier boot's that has it.

        Raises:
            Unavailable: one has it. StoreUnavailable, OutcomeUnknown, StorageError: that is not known.
        """
        began = self._clock.now()
        while other := await self._other_boot():
            held = self._held()
            since = min(began, held.taken_since)
            if held.term > 0 or self._clock.now() - since > self.terms.of_earlier_boot:
                raise taken_by(self._name, other)
            await asyncio.sleep(self.terms.renewal / 4)

    async def _other_boot(self) -> str:
        """As :meth:`OwnName.other_boot`, of what is known, or of what the store says where it must be asked."""
        held = self._held()
        if held.taken_by or held.until > self._clock.now():
            return held.taken_by
        return self._name.other_boot(await self._store.get(self._name.key))

    async def check_sender(self) -> None:
        """Make sure that what this node sends is its own. Once it had a lease, losing the store stops nothing.

        A run that never had one may be a copied machine's. What that sends would replace what copies have.

        Raises:
            As :meth:`check_name`.
        """
        held = self._held()
        if held.taken_by or held.term == 0:
            await self.check_name()

    async def check_name_not_taken(self) -> None:
        """As :meth:`check_name`, and what cannot be known is allowed: losing the store stops nothing.

        Raises:
            Unavailable: another machine has this node's name.
        """
        held = self._held()
        self._check_taken(held.taken_by)
        if held.term > 0:
            return  # it hears of another machine at its next renewal
        try:
            async with asyncio.timeout(self.terms.renewal):
                entry = await self._store.get(self._name.key)
        except (PannierError, TimeoutError) as error:
            log.info("lease.name-not-known", error=str(error) or "no answer in time")
        else:
            self._check_taken(self._name.other_boot(entry))

    def _check_taken(self, by: str) -> None:
        if by:
            raise taken_by(self._name, by)

    def proven(self, volume: Volume, *, term: int) -> None:
        """The volume's record was read and written since ``term`` began, and names this node."""
        self._proven[volume.id] = (volume.grant.epoch, term)

    def needs_proof(self, volume: Volume) -> bool:
        """Whether the volume was not proven in the present term yet: see :meth:`proven`."""
        return not self._is_proven(volume, self._held())

    def _is_proven(self, volume: Volume, held: Held) -> bool:
        return self._proven.get(volume.id) == (volume.grant.epoch, held.term)

    def _was_proven(self, volume: Volume) -> bool:
        """Whether this run has read the volume's record. One remembered from an earlier run may lack
        rivals. Once it is read, all are known: only the holder changes who they are."""
        return self._proven.get(volume.id, (0, 0))[0] == volume.grant.epoch

    def promised(self, volume: Volume, promises: dict[str, float]) -> None:
        """Peers promised not to take the volume over, each until a time on our clock."""
        self._promises.setdefault(volume.id, {}).update(promises)

    def standing(self, volume: Volume) -> Standing:
        """What proves now that this node holds the volume."""
        return self._standing(volume, self._held())

    def _standing(self, volume: Volume, held: Held) -> Standing:
        return Standing(
            now=self._clock.now(),
            read=not held.taken_by and (volume.spec.copies == 1 or self._was_proven(volume)),
            lease_until=held.until if self._is_proven(volume, held) else -inf,
            promises=self._promises.get(volume.id, {}),
        )

    def holds(self, volume: Volume, rivals: frozenset[str] | None = None) -> bool:
        """Whether this node may act as the volume's holder now.

        ``rivals`` are those who could take over, where more is known than the record says.
        """
        return self._holds(volume, rivals, self._held())

    def _holds(self, volume: Volume, rivals: frozenset[str] | None, held: Held) -> bool:
        return self._standing(volume, held).holds(volume.in_sync if rivals is None else rivals)

    def covers(self, volume: Volume, rivals: frozenset[str]) -> bool:
        """Whether the volume's users may go on.

        If the store ended the lease early, they may until its regular end. This leaves time to prove
        that nobody took the volume over.
        """
        held = self._held()
        left = held.ended_early_until if self._was_proven(volume) else -inf
        return self._holds(volume, rivals, held) or self._clock.now() < left

    def ever_proven(self, volume: Volume) -> bool:
        """Whether anything of the volume can have been served by this run: see :meth:`proven`."""
        return self._was_proven(volume)

    def forget(self, volume: Volume) -> None:
        """The volume is another node's now."""
        self._proven.pop(volume.id, None)
        self._promises.pop(volume.id, None)

    def renounce(self) -> None:
        """Nothing is served on the lease any more, as long as this daemon runs."""
        self._renounced = True

    async def end(self) -> None:
        """Say at once that this node is going, instead of letting the lease run out.

        Only for a node whose volumes nobody uses: others may take them over from now on. Called when the keeper has
        ended: it would have another lease granted.
        """
        self.renounce()
        lease = self._held().lease
        if lease is not None:
            try:
                async with asyncio.timeout(2.0):
                    await self._store.revoke_lease(lease)
            except (Unavailable, OutcomeUnknown, TimeoutError) as error:
                log.info("lease.not-revoked", error=str(error))
