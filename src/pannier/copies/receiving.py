"""Which generations and records this node takes in from others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from pannier.agent.custody import Custody
from pannier.agent.drivers import Drivers
from pannier.agent.lease import Lease
from pannier.agent.promises import Promises
from pannier.cluster.cluster import Cluster
from pannier.copies.cloned import ClonedCopies
from pannier.core.errors import Denied, NotHolder, PannierError, Stale
from pannier.core.line import Buffer, LinePlace
from pannier.core.recovery import newest_of
from pannier.core.restored import check_disk_is_not_newer
from pannier.core.volume import Grant, Volume
from pannier.storage.base import Driver, LocalCopy
from pannier.storage.lines import LineDriver, line_driver
from pannier.transport.base import Offer

log = structlog.get_logger(__name__)

KEPT_GENERATIONS = 3
"""How many generations a replica keeps, besides snapshots, before older ones are tidied away at the next offer."""
KEPT_DURING_MOVE = 30
"""The same on a node that is no replica. A move sends a generation every two seconds, and the last one
must not wait while older ones are deleted: with some gigabytes of cached pages that takes a second."""


class Reception:
    """Admits a generation only from the node that holds its volume at that epoch."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        custody: Custody,
        drivers: Drivers,
        lease: Lease,
        promises: Promises,
        cloned: ClonedCopies,
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._drivers = drivers
        self._lease = lease
        self._promises = promises
        self._cloned = cloned
        self._refused: set[str] = set()
        self._tidying: dict[str, asyncio.Task[None]] = {}

    @contextmanager
    def refusing(self, volume: Volume) -> Iterator[None]:
        """Take nothing of a volume in, and confirm nothing, in this block: what is here of it is being removed."""
        self._refused.add(volume.id)
        try:
            yield
        finally:
            self._refused.discard(volume.id)

    async def admit(self, offer: Offer, *, peer: str) -> Driver:
        """See :class:`~pannier.transport.base.Gate`. Older generations are tidied away first; a clone of which nothing is here
        begins with what is.

        Nothing of that waits for the store, or for whoever may be waiting for it: the sender's sync calls wait for this.

        Raises:
            StoreIsOlder: what is here is of a later epoch, so the record is not believed.
        """
        volume = await self._volume_of(offer, peer=peer)
        driver = self._drivers.of(volume)
        kept = KEPT_GENERATIONS if self._cluster.node in volume.replicas else KEPT_DURING_MOVE
        copy = await driver.inspect(volume.id)
        check_disk_is_not_newer(volume, copy.state, node=self._cluster.node)
        if not copy.generations:
            await self._cloned.begin(volume)
        elif _unnamed(volume, copy) > kept:
            await self._tidy(volume)
            if _unnamed(volume, await driver.inspect(volume.id)) > kept:
                self._tidy_by_the_store(volume)
        return driver

    async def _tidy(self, volume: Volume) -> None:
        """Tidy away what can be without the store. Whoever has the lock now is not waited for: there is a next offer.

        A power cut may have taken back what was remembered of a snapshot that this node has confirmed. So nothing is done
        before the store has answered since.
        """
        lock = self._custody.lock(volume)
        if lock.locked() or not self._cluster.catalog.trusted:
            return
        async with lock:
            # A takeover may need what would be removed.
            if not self._promises.refuses(volume.id, epoch=volume.grant.epoch):
                await self._custody.tidy_copy(volume)

    def _tidy_by_the_store(self, volume: Volume) -> None:
        """Have all that is not needed tidied away when the store answers; the offer does not depend on it."""
        if volume.id not in self._tidying:
            task = asyncio.create_task(self._tidy_all(volume), name=f"tidy {volume.name}")
            self._tidying[volume.id] = task
            task.add_done_callback(lambda _: self._tidying.pop(volume.id))

    async def _tidy_all(self, volume: Volume) -> None:
        try:
            # Read before the lock is taken: a store that hangs must not hang under the lock.
            await self._cluster.fresh(volume.name)
            async with self._custody.lock(volume):
                if not self._promises.refuses(volume.id, epoch=volume.grant.epoch):
                    await self._custody.tidy(volume)
        except (PannierError, OSError) as error:
            log.info("volume.not-tidied", volume=volume.name, error=str(error))

    def take(self, place: LinePlace, encoded: Buffer, *, volume_name: str, peer: str) -> None:
        """See :class:`~pannier.transport.base.RecordGate`."""
        driver = self.admit_record(place, volume_name=volume_name, peer=peer)
        driver.keep(place, encoded)
        self.confirm_record(place, volume_name=volume_name, peer=peer)

    def admit_record(self, place: LinePlace, *, volume_name: str, peer: str) -> LineDriver:
        """Decide about a record by what this node remembers: a sync call must not wait for the store.

        Raises:
            Stale, Denied: as :meth:`take`; also where the store may know better. A generation asks it.
            NotHolder, StorageError: this node does not keep records.
        """
        volume = self._cluster.catalog.volume(volume_name)
        if volume is None or volume.grant != Grant(peer, place.epoch):
            raise Stale(
                f"node {self._cluster.node} does not know that node {peer} holds volume {volume_name} at epoch "
                f"{place.epoch}",
                remedy="send a generation",
            )
        if volume.id != place.volume:
            raise Denied(
                f"volume {volume_name} is another one now ({volume.id})",
                remedy="the sender's record is out of date",
            )
        self.confirm_record(place, volume_name=volume_name, peer=peer)
        driver = line_driver(self._drivers.of(volume))
        if driver is None:
            raise NotHolder(f"volume {volume_name} is kept in generations only")
        return driver

    def confirm_record(self, place: LinePlace, *, volume_name: str, peer: str) -> None:
        """Allow the sender to be told that a record is durable here.

        Raises:
            Stale: this node takes the volume over, just frees its records, or another machine has this node's name.
        """
        if self._lease.name_taken:
            raise Stale(
                f"another machine acts as node {self._cluster.node}, to which a copy of volume {volume_name} belongs",
                remedy=f"see pannier doctor on the machine at the address of node {self._cluster.node}",
            )
        if place.volume in self._refused:
            raise self._removing(volume_name)
        if self._promises.refuses(place.volume, epoch=place.epoch):
            raise Stale(
                f"volume {volume_name} is being taken over from node {peer}",
                remedy="that node must read the record again",
            )

    async def _volume_of(self, offer: Offer, *, peer: str) -> Volume:
        """The record by which something may be taken in from ``peer``. Raises as :meth:`admit`."""
        await self._check(offer, peer=peer)
        volume = self._cluster.catalog.volume(offer.volume_name)
        if volume is None or not _fits(volume, offer, peer):
            volume = (await self._cluster.fresh(offer.volume_name)).record
        if volume.id != offer.volume_id:
            raise Denied(
                f"volume {offer.volume_name} is another one now ({volume.id})",
                remedy="the sender's record is out of date",
            )
        if not _fits(volume, offer, peer):
            raise _not_the_holder(volume, offer, peer)
        return volume

    async def confirm(self, offer: Offer, *, peer: str) -> None:
        """See :class:`~pannier.transport.base.Gate`: not while this node takes the volume over.

        The records before the generation are freed now, and no earlier: a takeover needs those that stand on
        the generation with which it begins, and whoever takes over from now on begins with this one.
        """
        await self._check(offer, peer=peer)
        driver = self._drivers.get(offer.driver)
        if isinstance(driver, LineDriver):
            await driver.settle(offer.volume_id, offer.generation)

    async def settle(self, volume: Volume) -> None:
        """Free the records that the newest generation here makes useless: after a restart they may be there again.

        A takeover refuses first and chooses its generation then. So where none refuses yet, it will begin with this
        one or a newer one.
        """
        driver = line_driver(self._drivers.of(volume))
        if driver is None or volume.grant.node == self._cluster.node:
            return
        newest = newest_of(volume, (await driver.inspect(volume.id)).generations)
        if newest is not None and not self._promises.refuses(volume.id, epoch=volume.grant.epoch):
            await driver.settle(volume.id, newest)

    def _removing(self, volume_name: str) -> Stale:
        return Stale(
            f"node {self._cluster.node} is just removing something of volume {volume_name}: it is short of room",
            remedy="ask again",
        )

    async def _check(self, offer: Offer, *, peer: str) -> None:
        """Raise as :meth:`confirm`; also Unavailable where another machine has this node's name."""
        await self._lease.check_name_not_taken()
        if offer.volume_id in self._refused:
            raise self._removing(offer.volume_name)
        if not self._promises.refuses(offer.volume_id, epoch=offer.epoch):
            return
        fresh = await self._cluster.fresh(offer.volume_name)
        await self._promises.settle(fresh.record, revision=fresh.revision)
        if not _fits(fresh.record, offer, peer):
            raise _not_the_holder(fresh.record, offer, peer)
        if self._promises.refuses(offer.volume_id, epoch=offer.epoch):
            raise Stale(
                f"volume {offer.volume_name} is being taken over from node {peer}, whose lease ran "
                f"out in the store",
                remedy="that node must read the record again",
            )


def _unnamed(volume: Volume, copy: LocalCopy) -> int:
    """How many generations are here that are no snapshots."""
    return len(set(copy.generations) - volume.named)


def _not_the_holder(volume: Volume, offer: Offer, peer: str) -> Stale:
    return Stale(
        f"node {peer} does not hold volume {offer.volume_name} at epoch {offer.epoch}: "
        f"node {volume.grant.node} does, at epoch {volume.grant.epoch}",
        remedy="the sender must read the record again",
    )


def _fits(volume: Volume, offer: Offer, peer: str) -> bool:
    """Whether ``peer`` may send this by the record. A generation of a later epoch cannot be genuine."""
    return (
        volume.id == offer.volume_id
        and volume.grant == Grant(peer, offer.epoch)
        and offer.generation.epoch <= offer.epoch
    )
