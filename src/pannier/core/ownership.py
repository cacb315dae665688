"""What a node has to do to serve a volume, decided from its record and the local copy.

Nothing here acts. The same table answers Mount, start-up and clean-up, so that they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.volume import Volume


@dataclass(frozen=True, slots=True)
class AskHolder:
    """Another node holds it: ask that one."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Serve:
    """The live tree of the present epoch is here and writable. This is the only plan to follow by a
    remembered record: a holder's tree stays writable until the holder itself has given it away."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Unseal:
    """A hand-over was begun and, if the record is fresh, not completed: writing may go on."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Promote:
    """This node was made the holder and has the generation with which its epoch begins."""

    base: Generation
    epoch: int
    on_top: OnTop


@dataclass(frozen=True, slots=True)
class Lost:
    """The record says that the data is here, and it is not. Never answered by an empty directory."""

    epoch: int
    base: Generation | None


@dataclass(frozen=True, slots=True)
class Disbelieve:
    """The record is older than this disk: nothing is served by it."""

    epoch: int


Plan = AskHolder | Serve | Unseal | Promote | Lost | Disbelieve


def plan_serving(record: Volume, copy: LocalState, *, node: str) -> Plan:
    """How ``node`` gets from what it has to a writable tree of ``record``'s epoch."""
    epoch = record.grant.epoch
    if is_older(record, copy):
        return Disbelieve(copy.newest_epoch)
    if record.grant.node != node:
        return AskHolder(record.grant.node, epoch)
    sealed = copy.sealed.get(epoch)
    if sealed is not None:
        return Unseal(epoch) if sealed else Serve(epoch)
    if record.base is not None and record.base in copy.generations:
        return Promote(record.base, epoch, record.on_top)
    return Lost(epoch, record.base)


@dataclass(frozen=True, slots=True)
class LocalState:
    """What this node's disk has of a volume: each live tree's epoch with whether it is sealed."""

    sealed: dict[int, bool]
    generations: frozenset[Generation]
    records: int = 0
    """The epoch of the newest record in the journal; 0 without any."""

    @property
    def newest_epoch(self) -> int:
        """The latest epoch of which anything is here; 0 where nothing is."""
        return max(*self.sealed, *(each.epoch for each in self.generations), self.records, 0)


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What may go, and what must be shown to a human.

    Attributes:
        drop: epochs of sealed live trees: all they hold is in a generation.
        delete: generations that nobody needs.
        strays: epochs with data here that no other node has, and that the volume did not grow out of:
            a tree that was never sealed, or generations after the one with which a successor began.
    """

    drop: tuple[int, ...] = ()
    delete: tuple[Generation, ...] = ()
    strays: tuple[int, ...] = ()


def is_older(record: Volume, copy: LocalState) -> bool:
    """Whether the record is older than this disk, as after the store was restored from an older backup. Nothing is served,
    taken in or deleted on its word then. This is the one place that compares them."""
    return copy.newest_epoch > record.grant.epoch


def plan_cleanup(
    record: Volume,
    copy: LocalState,
    *,
    node: str,
    needed: frozenset[Generation] = frozenset(),
) -> Cleanup:
    """What ``node`` no longer needs of a volume.

    A holder keeps its base, its newest generation, and those ``needed`` because another copy has
    them as its newest. Any other node keeps its newest one, so that the next transfer, or a move back,
    sends only the difference. Nothing is deleted on a holder that does not have its live tree yet. Snapshots
    stay wherever they are, and are no strays: the record names them.
    """
    epoch = record.grant.epoch
    if is_older(record, copy):
        return Cleanup()
    holds = record.grant.node == node
    ours = sorted(g for g in copy.generations if record.grew_out_of(g))
    stray = copy.generations - set(ours) - record.named
    if holds and epoch not in copy.sealed:
        keep = set(ours)
    elif holds:
        keep = set(ours[-1:]) | needed | ({record.base} if record.base else set())
    else:
        keep = set(ours[-1:])
    keep |= record.named
    former = sorted(e for e in copy.sealed if not (holds and e == epoch))
    strays = {e for e in former if not copy.sealed[e]} | {g.epoch for g in stray}
    return Cleanup(
        drop=tuple(e for e in former if e not in strays and copy.generations),
        delete=tuple(g for g in ours if g not in keep),
        strays=tuple(sorted(strays)),
    )
