"""Mending blocks of this node's copy with the bytes that another node has of them.

Each block of a copy has a checksum that was stored when it came. So a damaged copy knows of each block what it shall
be, and takes it from whoever has it; who that is does not matter. Where nobody has it, nothing is guessed.

Only copies are mended. A holder's generations share their blocks with its live image, which a container may be
using, and have no checksums. If one of them alone were put right, the live image would differ from it in that
block: the next generation would bring the damaged bytes to all copies, as what was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

import structlog

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.bodies import MOST_BLOCKS, BlockSum
from pannier.contract.peers import Peers
from pannier.contract.views import BlocksView, BlockView
from pannier.core.errors import NotHolder, PannierError, StorageError
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.pace import CopiesPace
from pannier.core.volume import Volume
from pannier.storage.blocks import MendingDriver

log = structlog.get_logger(__name__)


class Outcome(Enum):
    """What became of damaged blocks."""

    MENDED = "the newest generation has what was received"
    REFUTED = "a node has the same generation, and other bytes as well: nobody has the right ones"
    LOST = "nobody could be asked who has them, or nothing can say what they shall be"


class Mending:
    """Mends this node's copies, and gives others what they mend theirs with."""

    def __init__(
        self, *, cluster: Cluster, drivers: Drivers, peers: Peers, pace: CopiesPace
    ) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers
        self._pace = pace

    async def mend(self, volume: Volume, blocks: Sequence[int]) -> Outcome:
        """Mend blocks of this node's copy, wherever they are damaged. The caller has the volume's lock.

        An older generation that nobody can mend is deleted once the newest is whole: it is of no use.
        """
        try:
            async with asyncio.timeout(self._pace.mend):
                return await self._mend(volume, blocks)
        except (TimeoutError, StorageError) as error:
            log.warning("copy.not-mended", volume=volume.name, error=str(error) or "no answer")
            return Outcome.LOST

    async def _mend(self, volume: Volume, blocks: Sequence[int]) -> Outcome:
        driver = self._driver(volume)
        generations = (await driver.inspect(volume.id)).generations
        if not generations:
            return Outcome.LOST
        *older, newest = generations
        outcome = await self._mend_one(driver, volume, newest, blocks)
        if outcome is Outcome.MENDED:
            for generation in older:
                if await self._mend_one(driver, volume, generation, blocks) is not outcome:
                    log.warning(
                        "copy.damaged-deleted", volume=volume.name, generation=str(generation)
                    )
                    await driver.delete_generation(volume.id, generation)
        return outcome

    async def _mend_one(
        self,
        driver: MendingDriver,
        volume: Volume,
        generation: Generation,
        blocks: Sequence[int],
    ) -> Outcome:
        refuted = False
        for node in self._others(volume):
            wanted = await driver.wanted(volume.id, generation, blocks)
            if not wanted:
                return Outcome.MENDED
            sums = {at: known for at, known in wanted.items() if known is not None}
            try:
                here, found = await self._ask(node, volume, generation, sums)
            except PannierError as error:
                log.info("copy.not-mended-from", node=node.name, error=error.message)
                continue
            refuted |= here
            await driver.mend(volume.id, found)
        wanted = await driver.wanted(volume.id, generation, blocks)
        if not wanted:
            return Outcome.MENDED
        return Outcome.REFUTED if refuted and None not in wanted.values() else Outcome.LOST

    def _others(self, volume: Volume) -> Iterator[Node]:
        """The other nodes that keep it, the holder first."""
        for name in (volume.grant.node, *volume.replicas):
            node = self._cluster.catalog.node(name)
            if node is not None and name != self._cluster.node:
                yield node

    async def _ask(
        self, node: Node, volume: Volume, generation: Generation, sums: Mapping[int, int]
    ) -> tuple[bool, dict[int, bytes]]:
        """Whether a node has this generation, and what it has with these checksums."""
        here, found = False, dict[int, bytes]()
        asked = [BlockSum(start, known) for start, known in sums.items()]
        for first in range(0, len(asked), MOST_BLOCKS):
            answer = await self._peers.to(node).peer_blocks(
                volume.name,
                generation=str(generation),
                blocks=asked[first : first + MOST_BLOCKS],
            )
            here |= answer.here
            found |= {block.start: block.content for block in answer.blocks}
        return here, found

    async def here(
        self, volume: Volume, *, generation: str, blocks: Sequence[BlockSum]
    ) -> BlocksView:
        """What another node asks this one for.

        Raises:
            StorageError; NotHolder: this node does not keep the volume in blocks.
        """
        driver = self._driver(volume)
        found = await driver.find(volume.id, {block.start: block.sum for block in blocks})
        copy = await driver.inspect(volume.id)  # after that: it was here all the time
        return BlocksView(
            here=Generation.parse(generation) in copy.generations,
            blocks=[BlockView(start=start, content=content) for start, content in found.items()],
        )

    def _driver(self, volume: Volume) -> MendingDriver:
        driver = self._drivers.of(volume)
        if not isinstance(driver, MendingDriver):
            raise NotHolder(f"volume {volume.name} is not kept in blocks on {self._cluster.node}")
        return driver
