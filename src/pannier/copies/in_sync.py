"""Which copies count: the record's ``in_sync``, changed by compare-and-swap.

A write is acknowledged when every node that may take the volume over has it; who may, the record
says. So a node that does not answer must leave the record before anything is acknowledged without
it, and one that comes back must have everything before it joins. Where a change had no answer, both
the old and the new state may be the record's: then all that either names are waited for.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.registry import Versioned
from pannier.copies.replicated import Circle, Held
from pannier.core.errors import NotHolder, StoreUnavailable, Unavailable
from pannier.core.volume import Volume

log = structlog.get_logger(__name__)


class InSync:
    """Changes the records' ``in_sync``. The caller has the volume's group lock."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody

    def rivals(self, volume: Volume, circle: Circle) -> frozenset[str]:
        """Every node that could take the volume over, as far as this node can know."""
        known = self._custody.catalog.volume(volume.name)
        if known is None or (known.id, known.grant) != (volume.id, volume.grant):
            return circle.required
        return circle.required | frozenset(known.in_sync)

    async def leave(self, held: Held, nodes: frozenset[str], *, why: str) -> None:
        """From now on these nodes do not count, and cannot take over.

        Raises:
            StoreUnavailable, OutcomeUnknown: they count still; NotHolder.
        """
        await self._change(held, add=frozenset(), drop=nodes)
        log.warning("copies.left", volume=held.volume.name, nodes=",".join(sorted(nodes)), why=why)

    async def join(self, held: Held, node: str) -> None:
        """This node has everything that was acknowledged, and counts from now on."""
        await self._change(held, add=frozenset({node}), drop=frozenset())
        log.info("copies.joined", volume=held.volume.name, node=node)

    async def _change(self, held: Held, *, add: frozenset[str], drop: frozenset[str]) -> None:
        custody, volume, circle = self._custody, held.volume, held.circle

        async def read() -> Versioned[Volume]:
            if held.ended:
                raise Unavailable(f"volume {volume.name} is not replicated at the moment")
            return await custody.fresh(volume.name)

        def decide(record: Volume) -> Volume | None:
            if (record.id, record.grant) != (volume.id, volume.grant):
                raise NotHolder(
                    f"volume {volume.name} is held by node {record.grant.node} "
                    f"(epoch {record.grant.epoch})",
                    remedy="ask that node",
                )
            wanted = tuple(
                name
                for name in record.replicas
                if (name in record.in_sync or name in add) and name not in drop
            )
            if wanted == record.in_sync and not circle.unsettled:
                return None
            return replace(record, in_sync=wanted)

        async def write(record: Volume, former: Versioned[Volume]) -> int:
            before = circle.unsettled, circle.required
            circle.unsettled = True  # until there is an answer
            circle.required |= frozenset(record.in_sync) | frozenset(former.record.in_sync)
            try:
                return await custody.registry.replace_volume(record, expect=former.revision)
            except StoreUnavailable:  # certainly not done
                circle.unsettled, circle.required = before
                raise

        found = await custody.registry.change(read, decide, write=write)
        circle.unsettled = False
        circle.required = frozenset(found.record.in_sync)
        custody.catalog.remember(found.record, revision=found.revision)
