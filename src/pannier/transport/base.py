"""The transport's protocols: how generations and records are sent to another node, and who takes them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pannier.core.generation import Generation
from pannier.core.line import Buffer, LinePlace, LineRecord, encode
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.storage.base import Driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a sender says first: which generation of which volume, and under which grant.

    The receiver refuses it unless its own record of the cluster, or the store, says that the
    sending node (the name in its certificate) is the holder at ``epoch``.
    """

    volume_id: str
    volume_name: str
    driver: str
    epoch: int
    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What was sent. ``base`` is what it is a difference to, None for a whole generation."""

    bytes: int
    base: Generation | None
    seconds: float


def offer_of(volume: Volume, generation: Generation) -> Offer:
    """The offer of one of a holder's generations."""
    return Offer(
        volume_id=volume.id,
        volume_name=volume.name,
        driver=volume.spec.driver,
        epoch=volume.grant.epoch,
        generation=generation,
    )


class Gate(Protocol):
    """The receiving node's decision about an offer, asked before its stream and after it."""

    async def admit(self, offer: Offer, *, peer: str) -> Driver:
        """Admit an offer, and return the driver that receives it.

        Raises:
            Denied: the volume of that name has another id now.
            Stale: ``peer`` does not hold it at this epoch, or this node is taking it over.
            VolumeNotFound: there is no such volume any more.
            NotHolder: this node does not have the volume's driver.
            StoreUnavailable: the record had to be read, and could not be.
            StorageError: the driver is not open, or the disk or the record cannot be read.
        """
        ...

    async def confirm(self, offer: Offer, *, peer: str) -> None:
        """Allow the sender to be told that the generation is whole and durable here, which it is by now.

        A container's fsync may be waiting for just this confirmation. So a node that has begun to
        take the volume over must not confirm anything of an older epoch. The generation stays here
        in any case.

        Raises:
            Stale: ``peer`` does not hold it at this epoch, or this node is taking it over.
            VolumeNotFound: there is no such volume any more.
            StoreUnavailable: the record had to be read, and could not be.
            StorageError: the record cannot be read, or the end of a takeover cannot be written down.
        """
        ...


class Sender(Protocol):
    """Sends generations to other nodes."""

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
    ) -> Sent:
        """Send one generation, as the difference to the one before it that both ends have, or to a later one.

        Returns when the receiver has confirmed that it is whole and durable there. ``progress`` is
        called with the bytes sent so far, at most some times a second. While ``may_wait`` says so, nobody
        waits for it, and it keeps to the rate for catching up; a thread calls it. Cancelling stops both ends.
        A later offer of the same volume to the same node ends this one with PeerUnavailable.

        Raises:
            PeerUnavailable: no connection, or it broke, or the receiver was silent for the stall time.
            Denied: one of the nodes does not accept the other's certificate.
            InvalidInput: the receiver sent something that is not of the protocol.
            StorageError: the driver here failed.
            SetBack: the receiver has what this node has sent and lacks now.
            PannierError: what the receiver reported, as its own class.
        """
        ...


ChooseBase = Callable[[Generation | None, int], Generation | None]
"""Called with the best base that both ends have, and how many bytes of the difference to it have arrived before;
returns what the stream shall be a difference to: that generation, or None to send everything."""


class ChoosingSender(Sender, Protocol):
    """A sender that asks what to send a difference to."""

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
        choose_base: ChooseBase | None = None,
    ) -> Sent:
        """See :meth:`Sender.send`. ``choose_base`` is called once before each stream; None takes the best base."""
        ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """A record, encoded once for all its receivers.

    Attributes:
        pieces: the encoded record. They may not change while the parcel is being sent.
    """

    pieces: tuple[Buffer, ...]

    @classmethod
    def of(cls, record: LineRecord) -> Parcel:
        """The parcel of a record. Large pieces of its content are not copied."""
        return cls(tuple(encode(record)))

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.pieces))


class RecordGate(Protocol):
    """The receiving node's decision about records, and where they are kept."""

    def take(self, place: LinePlace, encoded: Buffer, *, volume_name: str, peer: str) -> None:
        """Keep a record, and return when it is durable here. Threads of the transport call it, and it may block.

        Records of one volume that came over one connection are given one at a time, in the order in which they came.
        Those of different volumes come at the same time, and should share one flush. A sync call waits for this,
        so it must not wait for the event loop.

        Args:
            encoded: the whole record, checked; it may be kept.
            peer: the name in the sending node's certificate.

        Raises:
            Stale: ``peer`` does not hold the volume at this epoch, or this node is taking it over.
            Denied: the volume of that name has another id now.
            NotFollowing: this node lacks what came before the record.
            JournalFull: there is no room for it now.
            StorageError: it could not be written.
        """
        ...


class SendsRecords(Protocol):
    """Sends records to other nodes."""

    async def send(self, parcel: Parcel, *, to: Node, volume_name: str) -> None:
        """Send one record. Returns when the receiver has confirmed that it is durable there.

        Records to one node are sent in the order of the calls; there is no need to wait for one before the next. A
        call that is cancelled leaves the others alone; its record may arrive.

        Raises:
            PeerUnavailable: no connection, or it broke, or the receiver was silent for the stall time, or it is of
                an older version. The record may or may not have arrived.
            InvalidInput: the record is too long to be sent.
            NotFollowing: the receiver lacks what came before.
            JournalFull: the receiver has no room for it now.
            Denied: one of the nodes does not accept the other's certificate, or the volume is another one.
            PannierError: what else the receiver reported, as its own class.
        """
        ...
