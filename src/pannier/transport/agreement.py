"""What a sender does when it hears what the receiver has.

A receiver that has a part of another generation is sent the rest of that first, as long as the generation is
here: then only the difference to it is left. So a transfer goes on after the sender was restarted, too, although a
sender makes a new generation then. One of a former epoch may be none that the volume has grown out of.
"""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.errors import SetBack
from pannier.core.generation import Generation, best_base
from pannier.core.set_back import lacks_records, proof_of_set_back
from pannier.storage.base import Driver, LocalCopy, ResumingDriver
from pannier.transport.base import ChooseBase, Offer


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is to be sent: nothing, a generation whole, or its difference to ``base``.

    Attributes:
        position: nothing before this byte of the volume: the receiver has it.
        first: another generation of the same epoch that is to be offered before, since a part of it is there.
    """

    there: bool
    base: Generation | None = None
    position: int = 0
    first: Generation | None = None


def agree(
    offer: Offer,
    driver: Driver,
    ours: LocalCopy,
    theirs: LocalCopy,
    *,
    choose_base: ChooseBase | None = None,
) -> Agreement:
    """Decide what to send.

    Args:
        ours: what is here of the volume.
        theirs: what the receiver has of it.
        choose_base: asked where something is to be sent.

    Raises:
        SetBack: the receiver has what this node has sent and lacks now. What would be sent may make a record
            useless there: so this is looked at first.
    """
    if driver.generations_in_use:
        newest = proof_of_set_back(ours.generations, theirs.generations, epoch=offer.epoch)
        if newest is not None:
            raise SetBack(
                f"generation {newest} of volume {offer.volume_name} is there, and this node, which has sent "
                f"it, lacks it now: its disk was set back",
                remedy=f"see pannier volume history {offer.volume_name}",
                newest=str(newest),
            )
    last = theirs.last
    if last is not None and lacks_records(ours.noted, last, epoch=offer.epoch):
        newest = max(
            (g for g in theirs.generations if g.epoch == offer.epoch), default=last.generation
        )
        raise SetBack(
            f"record {last.number} after generation {last.generation} of volume {offer.volume_name} is there, and "
            f"this node, which has sent it, has not noted it: its disk was set back",
            remedy=f"see pannier volume history {offer.volume_name}",
            newest=str(newest),
        )
    if offer.generation in theirs.generations:
        return Agreement(there=True)
    base = best_base(offer.generation, ours.generations + ours.bases, theirs.generations)
    begun = theirs.begun if isinstance(driver, ResumingDriver) else None
    if choose_base is not None:
        arrived = begun.position if begun is not None and begun.base == base else 0
        base = choose_base(base, arrived)
    if begun is None or begun.base != base:
        return Agreement(there=False, base=base)
    if begun.generation == offer.generation:
        return Agreement(there=False, base=base, position=begun.position)
    if begun.generation in ours.generations and begun.generation.epoch == offer.epoch:
        return Agreement(there=False, base=base, first=begun.generation)
    return Agreement(there=False, base=base)
