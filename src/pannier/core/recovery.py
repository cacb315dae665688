"""Which copy goes on when the holder is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pannier.core.errors import Conflict, Unavailable
from pannier.core.generation import Generation
from pannier.core.volume import Volume


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
