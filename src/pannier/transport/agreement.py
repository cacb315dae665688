"""What a sender does when it hears what the receiver has."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.errors import SetBack
from pannier.core.generation import Generation, newest_common
from pannier.core.set_back import proof_of_set_back
from pannier.storage.base import Driver, LocalCopy
from pannier.transport.base import Offer


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is to be sent: nothing, a generation whole, or its difference to ``base``."""

    there: bool
    base: Generation | None = None


def agree(
    offer: Offer, driver: Driver, ours: LocalCopy, theirs: tuple[Generation, ...]
) -> Agreement:
    """Decide what to send.

    Args:
        ours: what is here of the volume.
        theirs: the receiver's whole generations.

    Raises:
        SetBack: the receiver has what this node has sent and lacks now.
    """
    if driver.generations_in_use:
        newest = proof_of_set_back(ours.generations, theirs, epoch=offer.epoch)
        if newest is not None:
            raise SetBack(
                f"generation {newest} of volume {offer.volume_name} is there, and this node, which has sent "
                f"it, lacks it now: its disk was set back",
                remedy=f"see pannier volume history {offer.volume_name}",
                newest=str(newest),
            )
    if offer.generation in theirs:
        return Agreement(there=True)
    return Agreement(there=False, base=newest_common(ours.generations + ours.bases, theirs))
