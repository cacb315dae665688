"""Which copies count: the record's ``in_sync``, changed by compare-and-swap.

A write is acknowledged when every node that may take the volume over has it; who may, the record
says. So a node that does not answer must leave the record before anything is acknowledged without
it, and one that comes back must have everything before it joins. Where a change had no answer, both
the old and the new state may be the record's: then all that either names are waited for.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from pannier.cluster.cluster import Cluster
from pannier.copies.replicated import Replicated
from pannier.core.acknowledging import in_sync_after
from pannier.core.errors import NotHolder, Stale, StoreUnavailable, Unavailable
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
            StoreUnavailable, OutcomeUnknown: they count still; NotHolder.
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
        while True:
            if replicated.ended:
                raise Unavailable(f"volume {volume.name} is not replicated at the moment")
            fresh = await self._cluster.fresh(volume.name)
            record = fresh.record
            if (record.id, record.grant) != (volume.id, volume.grant):
                raise NotHolder(
                    f"volume {volume.name} is held by node {record.grant.node} "
                    f"(epoch {record.grant.epoch})",
                    remedy="ask that node",
                )
            wanted = in_sync_after(record, add=add, drop=drop)
            if wanted == record.in_sync and not circle.unsettled:
                circle.required = frozenset(wanted)
                return
            changed: Volume = replace(record, in_sync=wanted)
            before = circle.unsettled, circle.required
            circle.unsettled = True  # until there is an answer
            circle.required |= frozenset(wanted) | frozenset(record.in_sync)
            try:
                revision = await self._cluster.registry.replace_volume(
                    changed, expect=fresh.revision
                )
            except Stale:
                continue
            except StoreUnavailable:  # certainly not done
                circle.unsettled, circle.required = before
                raise
            circle.unsettled = False
            circle.required = frozenset(wanted)
            self._cluster.catalog.remember(changed, revision=revision)
            return
