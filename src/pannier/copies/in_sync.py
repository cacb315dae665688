"""Which copies count: the record's ``in_sync``, changed by compare-and-swap.

A write is acknowledged when every node that may take the volume over has it, and the record says
which nodes may. So a node that does not answer must leave the record before anything is acknowledged
without it, and a node that comes back must have everything before it joins. If a change of the record
had no answer, the record may be in the old or in the new state: then sync calls wait for the nodes
that either state names.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Versioned
from pannier.copies.replicated import Replicated
from pannier.core.acknowledging import in_sync_after
from pannier.core.errors import NotHolder, StoreUnavailable, Unavailable
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)


class InSync:
    """Changes the records' ``in_sync``. The caller has the volume's group lock."""

    def __init__(
        self,
        *,
        cluster: Cluster,
    ) -> None:
        self._cluster = cluster

    async def leave(self, replicated: Replicated, nodes: frozenset[str], *, why: str) -> None:
        """From now on these nodes do not count, and cannot take over.

        Raises:
            StoreUnavailable, OutcomeUnknown: they still count; NotHolder.
        """
        await self._change(replicated, add=frozenset(), drop=nodes)
        log.warning(
            "copies.left", volume=replicated.volume.name, nodes=",".join(sorted(nodes)), why=why
        )

    async def join(self, replicated: Replicated, node: str) -> None:
        """This node has everything that was acknowledged, and counts from now on."""
        await self._change(replicated, add=frozenset({node}), drop=frozenset())
        log.info("copies.joined", volume=replicated.volume.name, node=node)

    async def _change(
        self, replicated: Replicated, *, add: frozenset[str], drop: frozenset[str]
    ) -> None:
        volume, circle = replicated.volume, replicated.circle

        async def read() -> Versioned[Volume]:
            if replicated.ended:
                raise Unavailable(f"volume {volume.name} is not replicated at the moment")
            return await self._cluster.fresh(volume.name)

        def decide(record: Volume) -> Volume | None:
            if (record.id, record.grant) != (volume.id, volume.grant):
                raise NotHolder(
                    f"volume {volume.name} is held by node {record.grant.node} "
                    f"(epoch {record.grant.epoch})",
                    remedy="ask that node",
                )
            wanted = in_sync_after(record, add=add, drop=drop)
            if wanted == record.in_sync and not circle.unsettled:
                return None
            return replace(record, in_sync=wanted)

        async def write(record: Volume, former: Versioned[Volume]) -> Versioned[Volume]:
            before = circle.unsettled, circle.required
            circle.unsettled = True  # until there is an answer
            circle.required |= frozenset(record.in_sync) | frozenset(former.record.in_sync)
            try:
                return await self._cluster.registry.replace_volume(record, expect=former.revision)
            except StoreUnavailable:  # certainly not done
                circle.unsettled, circle.required = before
                raise

        found = await self._cluster.registry.change(read, decide, write=write)
        circle.unsettled = False
        circle.required = frozenset(found.record.in_sync)
        self._cluster.catalog.remember(found.record, revision=found.revision)
