"""Containers of this node, other than Swarm's, that ask for a volume with other options than it has.

``docker run --mount ...,volume-opt=copies=2`` of a volume that is there succeeds, and Docker asks nobody. Nothing of it is
taken over: only Swarm shows everything that is declared at present, so that two that contradict each other are seen.
"""

from __future__ import annotations

import asyncio

import structlog

from pannier.cluster.cluster import Cluster
from pannier.copies.option_changes import DeclaredVolume, OptionChanges, declared_volumes
from pannier.core.declarations import Declaration
from pannier.core.errors import PannierError
from pannier.core.pace import NodePace
from pannier.engine.base import Engine

log = structlog.get_logger(__name__)

_ONLY_TOLD = "a container's options are not applied; pannier volume set does that"


async def declared_here(engine: Engine, cluster: Cluster) -> list[DeclaredVolume]:
    """Each volume of which a container on this node declares an option.

    They are not told apart by name: one that is started again and again would fill the volume's history.

    Raises:
        EngineUnavailable: it does not answer.
    """
    who = f"a container on {cluster.node}"
    return declared_volumes(
        (
            (mount.source, Declaration(who, mount.options, _ONLY_TOLD))
            for mount in await engine.declared_mounts()
            if mount.options
        ),
        cluster,
    )


class AskedByContainers:
    """Tells each difference once."""

    def __init__(
        self, *, engine: Engine, cluster: Cluster, changes: OptionChanges, pace: NodePace
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._changes = changes
        self._pace = pace

    async def run(self) -> None:
        """For ever: run as a task."""
        await self._cluster.catalog.synced.wait()
        while True:
            await asyncio.sleep(self._pace.containers_look)
            try:
                for found in await declared_here(self._engine, self._cluster):
                    for left in found.settled(self._cluster).left:
                        await self._changes.tell(found.volume, left)
            except PannierError as error:
                log.debug("options.not-compared", error=str(error))
