"""Which nodes keep a volume's copies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pannier.core.errors import Conflict, InvalidInput
from pannier.core.volume import Volume, VolumeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node as placement sees it.

    Attributes:
        copies: how many it keeps already.
        room: tenths of its pool that are free.
    """

    name: str
    up: bool
    drained: bool
    drivers: tuple[str, ...]
    copies: int
    room: int = 10


def fit(candidates: Iterable[Candidate], *, driver: str) -> list[Candidate]:
    """Nodes that may get a new copy: those with the fewest copies first, then by most room.

    Nodes with less than a tenth of their pool free come after all others.
    """
    chosen = [c for c in candidates if c.up and not c.drained and driver in c.drivers]
    return sorted(chosen, key=lambda c: (c.room == 0, c.copies, -c.room, c.name))


def place_holder(spec: VolumeSpec, candidates: Iterable[Candidate], *, here: str) -> str:
    """The node on which a new volume is made.

    The first wished-for node that can take it; without a wish ``here``, else the emptiest that can.

    Raises:
        InvalidInput: a wished-for node is unknown: it is not passed over. Conflict: there is no node.
    """
    nodes = {candidate.name: candidate for candidate in candidates}
    for wished in spec.nodes:
        if wished not in nodes:
            raise InvalidInput(
                f"nodes={','.join(spec.nodes)} names {wished}, which is no node of this cluster",
                remedy=f"the nodes are {', '.join(nodes)}",
            )
    asked = spec.nodes or (here,)
    for name in asked:
        candidate = nodes.get(name)
        if candidate and candidate.up and not candidate.drained:
            return name
    fitting = fit(nodes.values(), driver=spec.driver)
    if spec.nodes or not fitting:
        raise Conflict(
            f"no new volume can be made on {', '.join(asked)}: down, drained, or not in the cluster",
            remedy="see pannier node ls; end a drain with: pannier node drain NODE --undo",
        )
    return fitting[0].name


def place_moved(record: Volume, candidates: Iterable[Candidate]) -> str | None:
    """The node that a volume is given to when its holder is to be emptied; None if there is none.

    One that has a copy already comes before the emptiest.
    """
    fitting = [c.name for c in fit(candidates, driver=record.spec.driver)]
    others = [name for name in fitting if name != record.grant.node]
    return next((name for name in others if name in record.replicas), next(iter(others), None))


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
    return (former, *others)[: record.spec.copies - 1]


def replicas_after_loss(record: Volume, *, target: str) -> tuple[str, ...]:
    """The replicas once ``target`` took the volume over from a holder that is lost.

    The lost one comes last, since it may return soon, if there is a place left for it.
    """
    others = tuple(name for name in record.replicas if name != target)
    return (*others, record.grant.node)[: record.spec.copies - 1]


def repair_replicas(
    record: Volume, candidates: Iterable[Candidate], *, gone: frozenset[str]
) -> tuple[str, ...]:
    """The replicas, with those that are ``gone`` replaced where another node is fit.

    One that cannot be replaced now stays while its node is in the cluster: on its return it needs
    only the difference. A replacement is looked for again later.
    """
    holder = record.grant.node
    nodes = list(candidates)
    listed = [name for name in record.replicas if name != holder]
    kept = [name for name in listed if name not in gone]
    spare = [
        c.name
        for c in fit(nodes, driver=record.spec.driver)
        if c.name not in (*kept, holder) and c.name not in gone
    ]
    waited_for = [name for name in listed if name in gone and name in {c.name for c in nodes}]
    return tuple((kept + spare + waited_for)[: record.spec.copies - 1])
