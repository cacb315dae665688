"""Which copy goes on when the holder is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pannier.core.errors import Conflict, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.volume import Durability, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCopy:
    """What a node has of a volume.

    Attributes:
        generation: its newest one that is no stray.
        record: its newest record on top of that: the generation that was the newest when the record was made, and its number.
        lacks: why it may lack what it has confirmed; empty if it lacks nothing.
    """

    generation: Generation
    record: tuple[Generation, int] | None = None
    lacks: str = ""

    @property
    def reach(self) -> tuple[Generation, int, bool]:
        """How far it is, compared with other copies of the same holder's volume. What lacks something counts without its
        records: nobody knows how many of them are of use."""
        generation, number = self.generation, 0
        if self.record is not None and not self.lacks:
            generation, number = max((generation, number), self.record)
        return generation, number, not self.lacks


def found_copy(
    record: Volume,
    generations: Iterable[Generation],
    *,
    last: tuple[Generation, int] | None = None,
    lacks: str = "",
) -> FoundCopy | None:
    """What a node has of a volume; None where it has nothing but strays.

    Args:
        last: of its newest record: see :attr:`FoundCopy.record`.
    """
    newest = newest_of(record, generations)
    if newest is None:
        return None
    if last is not None and not record.grew_out_of(last[0]):
        last = None
    return FoundCopy(generation=newest, record=last, lacks=lacks)


@dataclass(frozen=True, slots=True)
class Successor:
    """The node that shall hold the volume, and what it has of it."""

    node: str
    copy: FoundCopy


def choose_successor(
    record: Volume,
    *,
    holder_up: bool,
    copies: Mapping[str, FoundCopy | None],
) -> Successor:
    """The node whose copy is furthest among those that answered.

    Args:
        copies: what each node has; None if it did not answer, or has nothing.

    Raises:
        Conflict: the holder is up: nothing is lost, and a move loses nothing.
        Unavailable: no node that answered has a copy.
    """
    holder = record.grant.node
    if holder_up:
        raise holder_is_up(record)
    found = [
        Successor(node, copy)
        for node, copy in sorted(copies.items())
        if node != holder and copy is not None
    ]
    if not found:
        raise Unavailable(
            f"no node that answers has a copy of volume {record.name}; node {holder} has the data",
            remedy=f"start node {holder} again, or another node of {', '.join(record.replicas)}"
            if record.replicas
            else f"start node {holder} again; the volume was made with one copy",
        )
    return max(found, key=lambda one: one.copy.reach)


def holder_is_up(record: Volume) -> Conflict:
    """The error for a volume that nobody may take from its holder."""
    return Conflict(
        f"node {record.grant.node}, which holds volume {record.name}, is up",
        remedy=f"pannier volume move {record.name} NODE loses nothing",
    )


# -- without asking anybody: a copy in sync ---------------------------------------------------------


def takeover_possible(record: Volume, *, node: str, holder_up: bool) -> bool:
    """Whether the holder is gone and a copy may go on, as ``node`` sees it."""
    return record.grant.node != node and not holder_up and bool(record.in_sync)


def all_alike(record: Volume) -> bool:
    """Whether every copy in sync has all that was acknowledged, so that any may go on. Copies of a
    volume with ``durability=interval`` may differ."""
    return record.spec.durability is Durability.FSYNC


def newest_of(record: Volume, generations: Iterable[Generation]) -> Generation | None:
    """The newest of a copy's generations that is no stray; None where it has none."""
    return max((each for each in generations if record.grew_out_of(each)), default=None)


def choose_in_sync(record: Volume, copies: Mapping[str, FoundCopy | None], *, node: str) -> str:
    """The copy in sync that takes over: the one that is furthest, of equal ones that on ``node``.

    Args:
        copies: what each copy in sync has; None if it did not answer, or has nothing: a node whose
            damaged copy is in quarantine may still be in sync.

    Raises:
        Unavailable: none has anything, or each may lack what it has confirmed.
    """
    there = {
        name: copy.reach for name, copy in copies.items() if copy is not None and not copy.lacks
    }
    lacking = {name: copy.lacks for name, copy in copies.items() if copy is not None and copy.lacks}
    if not there and lacking:
        why = "; ".join(f"{name}: {lacks}" for name, lacks in sorted(lacking.items()))
        raise Unavailable(
            f"node {record.grant.node}, which holds volume {record.name}, is down, and each copy in sync that answers may "
            f"lack what it has confirmed ({why})",
            remedy=f"start one of {', '.join((record.grant.node, *sorted(set(record.in_sync) - set(lacking))))}; or "
            f"accept the loss: pannier volume recover {record.name}",
        )
    if not there:
        raise Unavailable(
            f"node {record.grant.node}, which holds volume {record.name}, is down, and so is "
            f"every node with a copy in sync: {', '.join(record.in_sync)}",
            remedy=f"start one of {', '.join((record.grant.node, *record.in_sync))}",
        )
    return max(there, key=lambda name: (there[name], name == node))


def check_takeover(record: Volume, *, node: str, epoch: int, promised_seconds: float) -> None:
    """Whether ``node`` may take the volume over from the holder at ``epoch``, if that one is gone.

    Args:
        promised_seconds: for how long this node has promised not to take it over.

    Raises:
        Stale: it has a new holder. Conflict: the copy here is not in sync. Unavailable: promised.
    """
    if record.grant.epoch != epoch:
        raise Stale(
            f"volume {record.name} has a new holder, {record.grant.node}", remedy="look again"
        )
    if node not in record.in_sync:
        raise Conflict(
            f"node {node} has no copy of volume {record.name} that is in sync",
            remedy=f"in sync are {', '.join(record.in_sync) or 'none'}",
        )
    check_not_promised(record, node=node, promised_seconds=promised_seconds)


def check_not_promised(record: Volume, *, node: str, promised_seconds: float) -> None:
    """Whether ``node`` is free of promises to leave the volume alone.

    Raises:
        Unavailable: it has promised to for ``promised_seconds`` more.
    """
    if promised_seconds > 0:
        raise Unavailable(
            f"node {node} has promised not to take volume {record.name} over for "
            f"{promised_seconds:.0f} s",
            remedy="its holder lives, or lived a moment ago; try again then",
        )
