"""Which copy goes on when the holder is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pannier.core.errors import Conflict, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.volume import Durability, Volume


@dataclass(frozen=True, slots=True)
class Successor:
    """The node that shall hold the volume, and the generation with which it begins."""

    node: str
    generation: Generation


def choose_successor(
    record: Volume,
    *,
    holder_up: bool,
    copies: Mapping[str, Iterable[Generation]],
) -> Successor:
    """The node with the newest generation among those that answered.

    Args:
        copies: all whole generations on each node that answered.

    Raises:
        Conflict: the holder is up: nothing is lost, and a move loses nothing.
        Unavailable: no node that answered has a copy.
    """
    holder = record.grant.node
    if holder_up:
        raise Conflict(
            f"node {holder}, which holds volume {record.name}, is up",
            remedy=f"pannier volume move {record.name} NODE loses nothing",
        )
    found = [
        Successor(node, generation)
        for node, generations in sorted(copies.items())
        for generation in generations
        if node != holder and record.grew_out_of(generation)
    ]
    if not found:
        raise Unavailable(
            f"no node that answers has a copy of volume {record.name}; node {holder} has the data",
            remedy=f"start node {holder} again, or another node of {', '.join(record.replicas)}"
            if record.replicas
            else f"start node {holder} again; the volume was made with one copy",
        )
    return max(found, key=lambda one: one.generation)


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


def choose_in_sync(record: Volume, newest: Mapping[str, Generation | None], *, node: str) -> str:
    """The copy in sync that takes over: the newest one, of equal ones that on ``node``.

    Args:
        newest: what each copy in sync has; None if it did not answer, or has nothing: a node whose
            damaged copy is in quarantine may still be in sync.

    Raises:
        Unavailable: none has anything.
    """
    there = {name: found for name, found in newest.items() if found is not None}
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
