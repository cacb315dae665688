"""What became of generations whose names went to the store, and no answer came.

A change that is still on its way may name a generation later. Until it is known that it will not, the generation must not be
tidied away: a snapshot would have a name, and nobody its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from functools import partial

import structlog

from pannier.cluster.cluster import Cluster
from pannier.core.errors import NotFound, PannierError
from pannier.core.generation import Generation
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

Named = tuple[str, Generation]
"""A volume's name, and a generation of it that was to get a name."""


class Naming:
    """Finds out. The caller has the volumes' locks, so that nothing is tidied away meanwhile."""

    def __init__(self, *, cluster: Cluster, clock: Clock, pace: HoldingPace) -> None:
        self._cluster = cluster
        self._clock = clock
        self._pace = pace
        self._settling: set[asyncio.Task[None]] = set()

    async def end(self, volume: str, generation: Generation) -> bool:
        """Whether a generation has its name. If not, it gets none any more: the volume's record is written anew, and a change
        that is on its way fails then.

        Raises:
            VolumeNotFound; StoreUnavailable, OutcomeUnknown, Stale: it is not known.
        """

        def anew(found: Volume) -> Volume | None:
            return None if generation in found.named else found

        read = partial(self._cluster.fresh, volume)
        now = await self._cluster.registry.change(read, anew)
        self._cluster.catalog.remember(now.record, revision=now.revision)
        return generation in now.record.named

    async def end_all(self, made: Collection[Named]) -> bool:
        """The same of several, once. Whether it is known of all what became of them."""
        known = True
        for volume, generation in made:
            try:
                await self.end(volume, generation)
            except NotFound:  # the volume is gone
                continue
            except PannierError as error:
                log.warning("snapshot.not-known", volume=volume, error=str(error))
                known = False
        return known

    async def settle(
        self, made: Collection[Named], locks: AsyncExitStack, *, tried_for: float = 0.0
    ) -> bool:
        """Find out once, and whether or not the caller goes on, until it is known. Returns whether it is already.

        Args:
            locks: of the volumes. They are held as long, but no longer than :attr:`HoldingPace.kept` seconds.
            tried_for: for so many seconds somebody else may still try to name them.
        """
        known = await self.end_all(made)
        if not known or tried_for:
            work = self._until_known(made, locks.pop_all(), tried_for)
            task = asyncio.create_task(work, name="settle names")
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
        return known

    async def _until_known(
        self, made: Collection[Named], locks: AsyncExitStack, tried_for: float
    ) -> None:
        began = self._clock.now()
        async with locks:
            while self._clock.now() < began + self._pace.kept:
                await asyncio.sleep(self._pace.settle_look)
                if await self.end_all(made) and self._clock.now() >= began + tried_for:
                    return
