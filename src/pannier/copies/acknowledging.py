"""Making what was written good on every copy that counts, and deciding which copies count.

What a sync call waits for: a generation with all that was written before it, confirmed by every node
that could take the volume over. A replica that does not confirm in time leaves that circle first, by
the store; where the store cannot be asked either, the call waits. A replica that has caught up joins
it again, between two groups of sync calls. A holder whose own disk fails lets nobody leave: it is
itself the one that does not count any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_never

import structlog

from pannier.agent.custody import Custody
from pannier.copies.in_sync import InSync
from pannier.copies.replicated import Held
from pannier.copies.replication import Replicator
from pannier.core.acknowledging import (
    Acknowledge,
    Claim,
    Confirmations,
    Leave,
    Limits,
    Reason,
    Refuse,
    Replica,
    WaitFor,
    decide,
    left_behind,
    may_join,
    refusal,
    rivals,
)
from pannier.core.errors import NotHolder, PannierError, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.volume import Volume
from pannier.host.clock import boottime

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 5.0
"""So long a sync call waits for a replica whose lease is alive; longer than a busy disk's hiccup."""
JOIN_PATIENCE_SECONDS = 2.0
"""So long sync calls may be held up by a replica that wants to join again."""
LAG_INTERVALS, LAG_SECONDS = 10, 10.0
"""A copy whose newest state is older than so many intervals, and than so, does not count."""
WATCH_SECONDS = 0.5


def _limits() -> Limits:
    return Limits(patience=PATIENCE_SECONDS, lag_intervals=LAG_INTERVALS, lag_seconds=LAG_SECONDS)


class Durable:
    """The generation path to durable sync calls, for the volumes that this node holds."""

    def __init__(self, custody: Custody, replicator: Replicator) -> None:
        self._custody = custody
        self._replicator = replicator
        self._in_sync = InSync(custody)

    async def make_durable(self, volume: str, calls: Sequence[object] = ()) -> None:
        """See :class:`pannier.barrier.calls.Strategy`: what is written reaches all that count.

        Raises:
            NotHolder: the volume is not held here, or just being given away.
            Unavailable: it cannot be said now; asked again later it may.
        """
        held = self._replicator.held(volume)
        async with held.group:
            generation = await self._replicator.make(held)
            await self._confirmed_by_all(held, generation)
            held.durable = generation

    async def unchanged(self, volume: str) -> bool:
        """See :class:`pannier.barrier.calls.Strategy`."""
        held = self._replicator.held(volume)
        async with held.group:
            same = await self._replicator.make(held) == held.durable
            if refused := refusal(self._claim(held)):
                raise self._refused(held.volume, refused)
            return same

    async def lost(self, name: str, *, epoch: int, node: str) -> None:
        """A replica has nothing any more: it gets everything, and does not count until it has it.

        Raises:
            NotHolder, Stale: the volume is not held here, or not at ``epoch``.
            StoreUnavailable, OutcomeUnknown: it counts still; all is sent to it all the same.
        """
        held = self._replicator.held(name)
        if held.volume.grant.epoch != epoch:
            raise Stale(f"volume {name} is at epoch {held.volume.grant.epoch}", remedy="look again")
        if node in held.progress:
            async with held.group:
                await held.note_lost(node)
                why = "its copy was damaged, or is gone"
                await self._in_sync.leave(held, frozenset({node}), why=why)

    def rivals(self, name: str) -> frozenset[str]:
        """Every node that could take the volume over; see :func:`pannier.core.acknowledging.rivals`."""
        volume = self._custody.catalog.volume(name)
        if volume is None:
            return frozenset()
        return rivals(volume, volume, self._replicator.circle(volume).required)

    def _claim(self, held: Held) -> Claim:
        volume = held.volume
        return Claim(
            volume=volume,
            known=self._custody.catalog.volume(volume.name),
            required=held.circle.required,
            standing=self._custody.lease.standing(volume),
        )

    def _replica(self, held: Held, node: str, *, failures: int) -> Replica:
        """``failures`` are those up to now that do not count."""
        progress = held.progress[node]
        return Replica(
            up=self._custody.catalog.is_up(node),
            confirmed=progress.generation,
            sending=progress.sending,
            error=bool(progress.error),
            failed=progress.failures > failures,
        )

    async def _confirmed_by_all(self, held: Held, generation: Generation) -> None:
        """Wait until it may be acknowledged; those who do not confirm leave."""
        before = {node: progress.failures for node, progress in held.progress.items()}
        began = boottime()
        while True:
            call = Confirmations(
                generation=generation,
                replicas={
                    node: self._replica(held, node, failures=before.get(node, 0))
                    for node in held.progress
                },
                waited=boottime() - began,
                paused=held.ended,  # it is being given away, or sent to other nodes
            )
            match decide(self._claim(held), call, _limits()):
                case Acknowledge():
                    return
                case WaitFor(seconds=left):
                    await self._heard(held, min(WATCH_SECONDS, left + 0.01))
                case Leave(nodes):
                    await self._let_leave(held, nodes)
                case Refuse() as refused:
                    raise self._refused(held.volume, refused)
                case decision:
                    assert_never(decision)

    def _refused(self, volume: Volume, refused: Refuse) -> PannierError:
        node, could_take = self._custody.node, sorted(refused.rivals)
        match refused.reason:
            case Reason.PAUSED:
                return Unavailable(f"volume {volume.name} is not replicated at the moment")
            case Reason.NOT_HELD:
                return NotHolder(f"volume {volume.name} is not held by node {node} any more")
            case Reason.UNPROVEN:
                return Unavailable(
                    f"node {node} cannot prove that it still holds volume {volume.name}",
                    remedy="it needs the store, or every node of " + ", ".join(could_take),
                )
            case Reason.TOO_FEW:
                return Unavailable(
                    f"volume {volume.name} has {1 + len(could_take)} copies in sync and min_copies="
                    f"{volume.spec.min_copies}",
                    remedy="start the nodes of its other copies: pannier volume show "
                    + volume.name,
                )
            case reason:
                assert_never(reason)

    async def _let_leave(self, held: Held, nodes: frozenset[str]) -> None:
        """Go on without these, unless it is this node's own disk that failed: then they are all there
        is, and shall take over.
        """
        await self._custody.driver(held.volume).check_disk(by_writing=True)
        await self._in_sync.leave(held, nodes, why=self._why(held, nodes))

    def _why(self, held: Held, nodes: frozenset[str]) -> str:
        said = [held.progress[n].error for n in sorted(nodes) if n in held.progress]
        return "; ".join(filter(None, said)) or "no answer"

    async def _heard(self, held: Held, seconds: float) -> None:
        """Wait for a replica's next answer, for so long at most."""
        try:
            await asyncio.wait_for(held.answered.wait(), seconds)
        except TimeoutError:
            return

    # -- who counts -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Let replicas join and leave as they catch up and fall behind, for ever: run as a task."""
        while True:
            for held in self._replicator.all_held():
                try:
                    await self._look(held)
                except NotHolder:
                    continue  # it was given away meanwhile
                except PannierError as error:
                    log.info("copies.unchanged", volume=held.volume.name, error=str(error))
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self, held: Held) -> None:
        now, could_take = boottime(), self._claim(held).rivals
        late = left_behind(
            could_take,
            {node: held.lag_seconds(node, now) for node in could_take},
            interval=held.volume.spec.interval,
            limits=_limits(),
        )
        if late:
            await self._custody.fresh(held.volume.name)  # a store that hangs shall hold up nobody
            async with held.group:
                await self._let_leave(held, late)
        known = self._custody.catalog.volume(held.volume.name)
        for node in held.volume.replicas:
            if may_join(node, self._replica(held, node, failures=0), known=known):
                await self._join(held, node)

    async def _join(self, held: Held, node: str) -> None:
        if held.lag_seconds(node, boottime()) > max(2 * held.volume.spec.interval, 2.0):
            return  # it is far behind: sync calls shall not wait for that
        await self._custody.fresh(held.volume.name)  # nor for a store that hangs
        async with held.group:
            generation = await self._replicator.make(held)
            until = boottime() + JOIN_PATIENCE_SECONDS
            while not held.progress[node].has(generation):
                if held.ended or held.progress[node].error or boottime() > until:
                    return
                await self._heard(held, 0.1)
            await self._in_sync.join(held, node)
