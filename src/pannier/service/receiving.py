"""Which generations this node takes in from others."""

from __future__ import annotations

import structlog

from pannier.agent.custody import Custody
from pannier.core.errors import Denied, Stale
from pannier.core.volume import Grant, Volume
from pannier.storage.base import Driver
from pannier.transport.base import Offer

log = structlog.get_logger(__name__)


class Reception:
    """Admits a generation only from the node that holds its volume at that epoch."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody

    async def admit(self, offer: Offer, *, peer: str) -> Driver:
        """See :class:`~pannier.transport.base.Gate`. Older generations are tidied away first."""
        volume = self._custody.catalog.volume(offer.volume_name)
        if volume is None or not _fits(volume, offer, peer):
            volume = (await self._custody.fresh(offer.volume_name)).record
        if volume.id != offer.volume_id:
            raise Denied(
                f"volume {offer.volume_name} is another one now ({volume.id})",
                remedy="the sender's record is out of date",
            )
        if not _fits(volume, offer, peer):
            raise Stale(
                f"node {peer} does not hold volume {offer.volume_name} at epoch {offer.epoch}: "
                f"node {volume.grant.node} does, at epoch {volume.grant.epoch}",
                remedy="the sender must read the record again",
            )
        driver = self._custody.driver(volume)
        async with self._custody.lock(volume):
            await self._custody.tidy(volume)
        return driver


def _fits(volume: Volume, offer: Offer, peer: str) -> bool:
    return volume.id == offer.volume_id and volume.grant == Grant(peer, offer.epoch)
