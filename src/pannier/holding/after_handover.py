"""What a node does when it hears that a volume was given to it, or taken from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from pannier.agent.custody import Custody
from pannier.agent.lease import Lease
from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.pace import HoldingPace
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)


class AfterHandover:
    """Makes a volume ready before anybody asks for it, and ends the use of one that is lost.

    Args:
        start: runs work in the background under a name.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        lease: Lease,
        start: Callable[[Coroutine[Any, Any, None], str], None],
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._lease = lease
        self._start = start
        self._pace = pace

    def hear(self, change: Changed) -> None:
        """A listener for the catalog. A record of an older epoch came late, and is no change of holder."""
        if change.kind != "volumes" or not isinstance(change.after, Volume):
            return
        after, node = change.after, self._cluster.node
        before = change.before if isinstance(change.before, Volume) else None
        if before is not None and before.id != after.id:
            before = None
        if before is not None and after.grant.epoch <= before.grant.epoch:
            return
        if after.grant.node == node and after.base is not None:
            self._start(self._make_ready(after), f"make ready {after.name}")
        elif before is not None and before.grant.node == node != after.grant.node:
            self._lease.forget(before)
            self._start(self._depose(before, after), f"depose {after.name}")

    async def _make_ready(self, volume: Volume) -> None:
        try:
            async with self._custody.lock(volume):
                await self._custody.serve(volume)
        except PannierError as error:
            log.warning("volume.not-made-ready", volume=volume.name, error=str(error))
        await self._tidy(volume)

    async def _depose(self, before: Volume, after: Volume) -> None:
        """Stop what uses the former tree: after a recovery elsewhere, containers may still run."""
        try:
            async with self._custody.lock(before):
                await self._custody.depose_if_live(before, successor=after.grant.node)
        except PannierError as error:
            log.error("volume.not-deposed", volume=before.name, error=str(error))
        await self._tidy(after)

    async def _tidy(self, volume: Volume) -> None:
        """Remove what is not needed. If this fails, the next start repeats it (:meth:`Custody.adopt`)."""
        await asyncio.sleep(self._pace.tidy_after)
        try:
            async with self._custody.lock(volume):
                await self._custody.tidy(volume)
        except PannierError as error:
            log.warning("volume.not-tidied", volume=volume.name, error=str(error))
