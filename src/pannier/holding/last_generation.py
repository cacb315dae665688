"""Sending a moving volume's last generation to the other copies, besides the target."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.storage.base import Driver
from pannier.transport.base import Sender, offer_of

log = structlog.get_logger(__name__)


class LastGeneration:
    """Sends to other copies, and never delays the target.

    The next holder begins with the last generation. A copy that has it, too, gets only differences
    from then on, and counts as in sync at once.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        sender: Sender,
        driver: Driver,
        volume: Volume,
    ) -> None:
        self._cluster = cluster
        self._sender = sender
        self._driver = driver
        self._volume = volume
        self._sending: dict[str, asyncio.Task[bool]] = {}

    def send(self, generation: Generation, *, to: Iterable[str]) -> None:
        """Begin to send to those of the nodes that are up."""
        catalog = self._cluster.catalog
        for name in to:
            node = catalog.node(name)
            if node is not None and catalog.is_up(name):
                self._sending[name] = asyncio.create_task(
                    self._reaches(node, generation),
                    name=f"last generation {self._volume.name} {name}",
                )

    async def _reaches(self, node: Node, generation: Generation) -> bool:
        volume, driver = self._volume, self._driver
        try:
            await self._sender.send(offer_of(volume, generation), to=node, driver=driver)
        except PannierError as error:
            log.info("handover.copy-behind", volume=volume.name, node=node.name, error=str(error))
            return False
        return True

    async def reached(self, *, seconds: float) -> tuple[str, ...]:
        """The nodes that have it after at most ``seconds``."""
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=seconds)
        return tuple(name for name, task in self._sending.items() if task.done() and task.result())

    async def end(self) -> None:
        """Give up what is on its way: whoever holds the volume next sends it again."""
        for task in self._sending.values():
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
