"""Conversions, as people ask any node for them; the node that holds the volume does them (:mod:`pannier.holding.conversions`).

With ``stop_service`` the service runs until all but the rest is copied. It is started again whatever happens: see
:class:`~pannier.swarm.service_stops.ServiceStops`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.views import ConversionProgress
from pannier.contract.words import ConversionPhase
from pannier.core.conversion import CONVERTED
from pannier.core.errors import (
    Conflict,
    NotFound,
    OutcomeUnknown,
    PeerUnavailable,
    VolumeInUse,
)
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume
from pannier.holding.conversions import Conversions, ConversionWish
from pannier.holding.filling import followed
from pannier.swarm.service_stops import ServiceStops

Steps = AsyncGenerator[ConversionProgress, None]


class Converting:
    """Has volumes converted where they are held."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        conversions: Conversions,
        stops: ServiceStops,
        peers: Peers,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._conversions = conversions
        self._stops = stops
        self._peers = peers
        self._pace = pace

    async def convert(
        self, name: str, options: Mapping[str, str], *, stop_service: bool, actor: str
    ) -> Steps:
        """See :meth:`~pannier.contract.operations.Operations.convert_volume`."""
        volume = (await self._cluster.fresh(name)).record
        if not stop_service:
            steps = self._steps(volume, options, waits=False, actor=actor)
        else:
            await self._stops.check(name)
            work = _WithStop(
                self._steps(volume, options, waits=True, actor=actor),
                ConversionProgress(
                    phase=ConversionPhase.COPYING, volume=name, node=volume.grant.node
                ),
            )
            steps = followed(
                work.run(partial(self._stops.around, name, actor=actor, what=CONVERTED)),
                name=f"convert {name}, and stop its service",
                progress=work.progress,
                look=self._pace.conversion_look,
            )
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def _steps(
        self, volume: Volume, options: Mapping[str, str], *, waits: bool, actor: str
    ) -> Steps:
        name = volume.name
        if volume.grant.node == self._cluster.node:
            wish = ConversionWish(name=name, options=options, waits=waits, actor=actor)
            steps = self._conversions.run(wish)
        else:
            peer = self._peers.to(self._cluster.holder_of(volume))
            steps = peer.peer_convert(name, options, waits=waits, actor=actor)
        try:
            async with aclosing(steps):
                async for step in steps:
                    yield step
        except NotFound as error:
            if type(error) is not NotFound:
                raise
            raise Conflict(  # the route itself
                f"node {volume.grant.node}, which holds volume {name}, has an earlier version and cannot convert it",
                remedy="upgrade it, or move the volume to a node that can",
            ) from error
        except PeerUnavailable as error:
            raise holder_unreachable(volume, error) from error


@dataclass(slots=True)
class _WithStop:
    """A conversion for which a service is stopped. One task reads its steps from the first to the last.

    Attributes:
        last: the last step that was read.
    """

    steps: Steps
    last: ConversionProgress

    async def progress(self) -> ConversionProgress:
        """How far it is."""
        return self.last

    async def run(self, around: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        """Do it; ``around`` stops the service, does something, and starts the service."""
        async with aclosing(self.steps):
            try:
                await self._read()
            except VolumeInUse:
                await around(self._read)

    async def _read(self) -> None:
        """Read on to the end.

        Raises:
            VolumeInUse: all but the rest is copied, and somebody still uses the volume; this is called again then.
            OutcomeUnknown: the holder has stopped in the midst of it.
        """
        async for step in self.steps:
            self.last = step
            if step.phase is ConversionPhase.WAITING:
                raise VolumeInUse(
                    f"volume {step.volume} is in use on node {step.node} by {', '.join(step.in_use_by)}",
                    remedy="stop and remove that first; nothing was changed",
                )
        if not self.last.ended:
            raise OutcomeUnknown(
                f"volume {self.last.volume} may have been converted: node {self.last.node} did not say",
                remedy=f"see what it is now: pannier volume show {self.last.volume}",
            )
