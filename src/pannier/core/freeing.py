"""What gives its room where a pool or a journal gets full, and in which order: pure decisions.

Everything that is freed on need is in this order, and :mod:`pannier.node.freeing` alone frees it. What files
no longer need (trim) is not in it: nobody can miss that, so it is given back whenever room gets scarce.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from pannier.core.generation import Generation
from pannier.core.ownership import LocalState, is_older
from pannier.core.room import RoomLevel
from pannier.core.volume import Volume

_PATIENCE = 15.0
"""Seconds for which what was deleted may take to become free before more is deleted. The kernel frees some
gigabytes a second; a subvolume that somebody still has open stays for ever, and must not keep others from
giving way."""


class Rank(IntEnum):
    """What it costs to free something; the lowest is freed first."""

    REMOVED = 1
    """A volume in the trash: it cannot be restored any more."""
    SPARE = 2
    """A generation that no copy needs: the next move sends everything, and not the difference."""
    PART = 3
    """What a broken transfer has brought: the next one begins anew."""
    STRAY = 4
    """Writes that no other node has. Only a person gives them up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeable:
    """Something in a pool that may be freed.

    Attributes:
        rank: what it costs.
        age: the lower, the older, among those of one rank.
        volume: the volume's id; name: what people call it.
        generations: those that are freed, of a SPARE.
    """

    rank: Rank
    age: int = 0
    volume: str
    name: str
    generations: tuple[Generation, ...] = ()


def in_order(found: Iterable[Freeable], *, level: RoomLevel) -> tuple[Freeable, ...]:
    """What may be freed by itself, in the order in which it is; one at a time, as long as room is short.

    Args:
        level: of the pool. Transfers keep their parts until writers stand still.
    """
    last = Rank.PART if level is RoomLevel.FULL else Rank.SPARE
    may_go = (each for each in found if each.rank <= last)
    return tuple(sorted(may_go, key=lambda each: (each.rank, each.age, each.volume)))


def may_free(*, coming: bool, waited: float) -> bool:
    """Whether something more is deleted now.

    Args:
        coming: whether the kernel still gives back what was deleted before. That may be enough.
        waited: seconds since the last deletion, or since room got short.
    """
    return not coming or waited > _PATIENCE


def beyond(sizes: Iterable[tuple[str, int]], *, most_bytes: int) -> tuple[str, ...]:
    """Which removed volumes are too many for the trash: the oldest, until the rest fits.

    Args:
        sizes: ids and bytes, oldest first.
        most_bytes: what all of them may take.
    """
    known = list(sizes)
    left, gone = sum(size for _, size in known), []
    for volume, size in known:
        if left <= most_bytes:
            break
        left -= size
        gone.append(volume)
    return tuple(gone)


def spare_generations(
    record: Volume, copy: LocalState, *, node: str, needed: frozenset[Generation] | None
) -> tuple[Generation, ...]:
    """Generations that only save sending, oldest first: ``node`` can lose them, and no copy is worse off.

    A holder's live tree is the volume, so without other copies it needs none. Another node without a copy of
    its own keeps one of the time before the volume was moved away. Strays and snapshots are never among them.

    Args:
        needed: what other copies may have as their newest; None if this is not known.
    """
    if is_older(record, copy):
        return ()
    ours = sorted(each for each in copy.generations if record.grew_out_of(each))
    unnamed = tuple(each for each in ours if each not in record.named)
    if record.grant.node == node:
        if copy.sealed.get(record.grant.epoch) is not False:
            return ()  # it is not there yet, or just given away
        if not record.replicas:
            return unnamed
        kept = None if needed is None else {*needed, *ours[-2:]}
        return () if kept is None else tuple(each for each in unnamed if each not in kept)
    arriving = any(each.epoch == record.grant.epoch for each in ours)
    return () if node in record.replicas or copy.sealed or arriving else unnamed


# -- records in a journal -------------------------------------------------------------------------------


class RecordsRank(IntEnum):
    """What it costs to free a volume's records on this node; the lowest is freed first."""

    NOBODYS = 1
    """This node holds the volume, or keeps no copy of it any more: nothing."""
    REMOVED = 2
    """It is in the trash, and its holder is up and has all of it: when it is restored, this copy gets the difference again."""
    REMOVED_ALONE = 3
    """It is in the trash, and its holder is not up. If that never comes back, what was written last is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeableRecords:
    """Records of one volume that may be freed on this node.

    Attributes:
        age: the lower, the earlier the volume was removed.
        volume: the volume's id.
    """

    rank: RecordsRank
    age: int = 0
    volume: str


def is_crowded(*, live_bytes: int, most_bytes: int) -> bool:
    """Whether a journal frees records: when more than half of what may live does.

    The other half is for the volumes that are written to. It is as much as one of them may have, and takes the disk longer
    to fill than the time between two looks.
    """
    return 2 * live_bytes > most_bytes


def records_in_order(found: Iterable[FreeableRecords]) -> tuple[FreeableRecords, ...]:
    """In which order records are freed; one volume at a time, as long as the journal is crowded."""
    return tuple(sorted(found, key=lambda each: (each.rank, each.age, each.volume)))


def rank_records(
    record: Volume, copy: LocalState, *, node: str, holder_up: bool
) -> RecordsRank | None:
    """What it costs to free a volume's records on ``node``; None where they are needed."""
    if is_older(record, copy):
        return None
    if record.grant.node == node:  # until its live tree is there, it is made with them
        return RecordsRank.NOBODYS if record.grant.epoch in copy.sealed else None
    if node not in record.replicas:
        return RecordsRank.NOBODYS
    if record.removed_at is None:
        return None
    return RecordsRank.REMOVED if holder_up else RecordsRank.REMOVED_ALONE
