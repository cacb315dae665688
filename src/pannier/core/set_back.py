"""Whether a holder's disk was set back, as to a snapshot of its virtual machine. Pure.

A holder makes each generation durable at home before it sends it. So whatever a copy has of the holder's
own epoch, the holder has made: it has it still, or something newer.

Between two generations there are records. The holder notes each one on its disk before it answers the sync calls
that wait for it, and the next sync call makes the note durable. A record says which one was noted before the sync
call that was the newest then. So a holder that has not noted that one had its disk set back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pannier.core.generation import Generation
from pannier.core.line import LinePlace

MOST_RUNS = 64
"""So many runs of an epoch are remembered. A copy in sync has the generation with which a run begins before
anything of that run is answered: it is a few runs behind at most."""


@dataclass(frozen=True, slots=True)
class Noted:
    """How far a run came, as its holder remembers it.

    Attributes:
        number: of the run's newest record.
        began: sequence of the generation on which the run's first record stands.
    """

    epoch: int
    run: str
    number: int
    began: int


def noting(noted: Sequence[Noted], place: LinePlace) -> tuple[Noted, ...]:
    """What a holder remembers once it has made a record, oldest run first. Other epochs are forgotten."""
    ours = [one for one in noted if one.epoch == place.epoch]
    began = place.generation.sequence
    if ours and ours[-1].run == place.run:
        began = ours.pop().began
    return (*ours, Noted(place.epoch, place.run, place.number, began))[-MOST_RUNS:]


def lacks_records(noted: Sequence[Noted], last: LinePlace | None, *, epoch: int) -> bool:
    """Whether a copy has a record that its holder cannot have made, as its disk is now.

    Args:
        noted: what the holder remembers.
        last: the newest record of the copy that no generation there has made useless.
        epoch: the holder's.
    """
    if last is None or last.epoch != epoch:
        return False
    ours = [one for one in noted if one.epoch == epoch]
    known = next((one.number for one in ours if one.run == last.run), None)
    if known is None and len(ours) >= MOST_RUNS and last.generation.sequence < ours[0].began:
        return False  # of a run that is forgotten
    return last.acknowledged > (known or 0)


def lacks_confirmed(
    ours: Collection[Generation],
    last: LinePlace | None,
    *,
    generation: Generation | None,
    record: tuple[str, Generation, int] | None,
) -> bool:
    """Whether a copy lacks what its holder was told that it has: the copy's disk was set back.

    What a copy has only grows. So it looks at what it has after it was told what it should have.

    Args:
        ours: what the copy has, without strays.
        last: the newest record that it keeps.
        generation: the newest that it has confirmed to the holder; None if the holder has not heard of any.
        record: the newest that it has confirmed: its run, the newest generation when it was made, its number; None without any.
    """
    newest = max(ours, default=None)
    if (
        generation is not None
        and generation not in ours
        and (newest is None or newest.number <= generation.number)
    ):
        return True
    if record is None:
        return False
    run, made_after, number = record
    has_it_in_generation = newest is not None and made_after.number < newest.number
    has_it = last is not None and last.run == run and last.number >= number
    return not (has_it or has_it_in_generation)


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
