"""Whether a holder's disk was set back, as to a snapshot of its virtual machine. Pure.

A holder makes each generation durable at home before it sends it. So whatever a copy has of the holder's
own epoch, the holder has made: it has it still, or something newer.
"""

from __future__ import annotations

from collections.abc import Collection

from pannier.core.generation import Generation


def proof_of_set_back(
    ours: Collection[Generation], theirs: Collection[Generation], *, epoch: int
) -> Generation | None:
    """The newest generation of a copy that its holder cannot have sent, as its disk is now.

    Args:
        ours: what the holder has.
        theirs: what the copy has.
        epoch: the holder's.

    Returns:
        None if there is no such generation: the disk was not set back, as far as this copy can tell.
    """
    mine = {g.sequence: g for g in ours if g.epoch == epoch}
    newest = max(mine, default=0)
    foreign = [
        g
        for g in theirs
        if g.epoch == epoch
        and (g.sequence > newest or (g.sequence in mine and mine[g.sequence] != g))
    ]
    # The copy's newest is what has all of its data, whichever of them gave the proof.
    return max((g for g in theirs if g.epoch == epoch), default=None) if foreign else None
