"""Which nodes keep a volume's copies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pannier.core.errors import Conflict
from pannier.core.volume import Volume, VolumeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node as placement sees it. ``copies`` is the number of copies that it keeps already."""

    name: str
    up: bool
    drained: bool
    drivers: tuple[str, ...]
    copies: int


def fit(candidates: Iterable[Candidate], *, driver: str) -> list[Candidate]:
    """Nodes that may get a new copy, the emptiest first."""
    chosen = [c for c in candidates if c.up and not c.drained and driver in c.drivers]
    return sorted(chosen, key=lambda c: (c.copies, c.name))


def place_replicas(
    spec: VolumeSpec, candidates: Iterable[Candidate], *, holder: str
) -> tuple[str, ...]:
    """The nodes for the copies beside the holder's: wished-for ones first, then the emptiest.

    Raises:
        Conflict: there are not enough nodes that may get one.
    """
    wanted = spec.copies - 1
    others = [c.name for c in fit(candidates, driver=spec.driver) if c.name != holder]
    wished = [name for name in spec.nodes if name in others]
    chosen = (wished + [name for name in others if name not in wished])[:wanted]
    if len(chosen) < wanted:
        raise Conflict(
            f"copies={spec.copies} needs {wanted} nodes beside {holder} that are up, not drained "
            f"and have the {spec.driver} driver; there are {len(chosen)}",
            remedy="see pannier node ls; start a node, or ask for fewer copies",
        )
    return tuple(chosen)


def replicas_after_move(record: Volume, *, target: str) -> tuple[str, ...]:
    """The replicas once ``target`` is the holder: the former holder stays one.

    A target that had no copy takes the place of the last replica, so that the number stays.
    """
    former = record.grant.node
    others = tuple(name for name in record.replicas if name != target)
    return ((former, *others))[: len(record.replicas)]


def repair_replicas(
    record: Volume, candidates: Iterable[Candidate], *, gone: frozenset[str]
) -> tuple[str, ...]:
    """The replicas without those that are ``gone``, each replaced where another node is fit.

    Fewer than wanted is better than none: what cannot be replaced now is asked for again later.
    """
    holder = record.grant.node
    kept = [name for name in record.replicas if name not in gone and name != holder]
    spare = [
        c.name
        for c in fit(candidates, driver=record.spec.driver)
        if c.name not in (*kept, holder) and c.name not in gone
    ]
    return tuple((kept + spare)[: record.spec.copies - 1])
