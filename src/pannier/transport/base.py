"""The transport's protocols: how the mover sends a generation to another node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pannier.core.generation import Generation
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
    """What was sent. ``base`` is what it was a difference to, None for a whole generation."""

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
    """The receiving node's judgement about an offer, asked before its stream and after it."""

    async def admit(self, offer: Offer, *, peer: str) -> Driver:
        """The driver that shall receive it.

        Raises:
            Denied: ``peer`` may not send this; Stale: an older epoch; StorageError.
        """
        ...

    async def confirm(self, offer: Offer, *, peer: str) -> None:
        """Let the sender hear that the generation is whole and durable here, which it is by now.

        A confirmation may be all that a container's fsync waits for. So a node that has begun to
        take the volume over must not give one any more for an older epoch.

        Raises:
            Stale: not for this epoch any more; Denied. The generation stays all the same.
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
    ) -> Sent:
        """Send one generation, as the difference to the newest one that both ends have.

        Returns when the receiver has confirmed that it is whole and durable there. ``progress`` is
        called with the bytes sent so far, at most some times a second. Cancelling stops both ends.
        A later offer of the same volume to the same node ends this one with PeerUnavailable.

        Raises:
            PeerUnavailable: no connection, or it broke, or nothing moved for the stall time.
            PannierError: what the receiver reported, as its own class.
        """
        ...
