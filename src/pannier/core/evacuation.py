"""When a lost node's tasks are moved away by Swarm, and when the node is given back to it.

An evacuation is recorded in the store, one record for each node (:class:`Evacuated`), and done in
Swarm. The two cannot be changed in one step, so the record goes through phases. Any manager may do any
step, repeat it, and do it at the same time as others::

              its lease is lost             Swarm drains it          its lease is steady again
    (none) -------------------> DRAINING -------------------> DRAINED -------------------------+
      ^                          ^  |                                                          v
      |  calm                    |  +--------- its lease is steady again -------------> RETURNING
      +------------ RETURNED ----+ lost again                                                  |
                        ^                                                                      |
                        +-------------------- Swarm has it as it was --------------------------+

A step that comes late does no harm. A manager that changes a node in Swarm has read the node first and
the record after it, and Swarm refuses to change a node that was changed since it was read. So a phase
on which another manager may still be acting is left in two steps: the record is changed, *and then*
the node, even if nothing in it has to change. Changes that were decided before then fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pannier.core.record import Record
from pannier.core.swarm import VOLUME_LABEL_PREFIX, Availability, SwarmNode

STEADY_SECONDS = 15.0
"""How long a node's lease must be back without a break before the node gets tasks again, at first."""
LONGEST_STEADY_SECONDS = 900.0
CALM_SECONDS = 900.0
"""Time without a break after which a node's earlier evacuations are forgotten."""
QUIET_SECONDS = 1.0
"""How long Swarm has to end the tasks of a node that lost its labels, before the node is drained."""


class Phase(StrEnum):
    """How far an evacuation is."""

    DRAINING = "draining"
    DRAINED = "drained"
    RETURNING = "returning"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuated(Record):
    """The store's record of what was done to a node in Swarm.

    Attributes:
        swarm: the node's id in Swarm.
        former: the availability that it gets back.
        times: evacuations in a row, with no calm between them.
    """

    node: str
    swarm: str
    former: Availability
    phase: Phase
    times: int = 1

    @property
    def away(self) -> bool:
        """Whether tasks are kept away from the node."""
        return self.phase in (Phase.DRAINING, Phase.DRAINED)

    @property
    def steady_seconds(self) -> float:
        """How long it must be up without a break before it is given back: each time twice as long."""
        doublings = min(self.times - 1, 10)
        return min(STEADY_SECONDS * float(2**doublings), LONGEST_STEADY_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A node of the cluster with all that is known of it.

    Attributes:
        steady_seconds: for how long its lease has been seen without a break; None while it is gone.
        stopping: it said that its daemon stops: a person's doing, and no loss.
        removed: it is not a node of the cluster any more; only its record is left.
        swarm: the node in Swarm, the one that the record names if there is one; None where it is
            not there, or not any more.
        quiet_seconds: for how long the node in Swarm has been seen without a change.
        record: what was done to it.
    """

    name: str
    steady_seconds: float | None
    stopping: bool = False
    removed: bool = False
    swarm: SwarmNode | None = None
    quiet_seconds: float = 0.0
    record: Evacuated | None = None

    @property
    def lost(self) -> bool:
        """Gone without a word."""
        return self.steady_seconds is None and not self.stopping and not self.removed

    def steady_for(self, seconds: float) -> bool:
        """Whether its lease has been there for ``seconds``, or the node is removed."""
        if self.removed:
            return True
        return self.steady_seconds is not None and self.steady_seconds >= seconds


@dataclass(frozen=True, slots=True)
class Remember:
    """Write this record. Nothing is done in Swarm yet."""

    record: Evacuated


@dataclass(frozen=True, slots=True)
class Strip:
    """Take the volumes' labels off the node in Swarm.

    Swarm then counts tasks that are constrained to the labels as ended, and starts them elsewhere. The
    tasks of a node that is only drained start elsewhere only once Swarm itself finds the node down.
    """

    record: Evacuated
    node: SwarmNode


@dataclass(frozen=True, slots=True)
class Drain:
    """Drain the node in Swarm, then write that it is."""

    record: Evacuated
    node: SwarmNode


@dataclass(frozen=True, slots=True)
class Restore:
    """Give the node its former availability if it is drained, otherwise change only its version; then
    write that it has returned.
    """

    record: Evacuated
    node: SwarmNode


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the record."""

    record: Evacuated


Step = Remember | Strip | Drain | Restore | Forget


def plan(subjects: Sequence[Subject], swarm: Sequence[SwarmNode]) -> list[Step]:
    """What to do now, at most one step for each node.

    Args:
        subjects: the nodes of the cluster that are in the Swarm or have a record.
        swarm: all nodes of the Swarm.

    A lost node is evacuated at once, except for a node that a person has drained, and one that Swarm
    calls down, since Swarm has moved its tasks by then. No evacuation begins while half of the Swarm's
    nodes or more are lost or kept empty by us, or no other node could take tasks. So many losses at
    once are more likely an error of our own view, and the rest may not bear all the work.
    """
    may_begin = _may_begin(subjects, swarm)
    steps = (_step(subject, may_begin=may_begin) for subject in subjects)
    return [step for step in steps if step is not None]


def seconds_until_due(subjects: Sequence[Subject]) -> float:
    """Seconds until a step may be due if nothing changes; any change may make one due earlier."""
    waits = [CALM_SECONDS]
    for subject in subjects:
        record = subject.record
        if record and subject.steady_seconds is not None:
            needed = record.steady_seconds if record.away else CALM_SECONDS
            waits.append(needed - subject.steady_seconds)
        elif record and record.phase is Phase.DRAINING:
            waits.append(QUIET_SECONDS - subject.quiet_seconds)
    return max(min(waits), 0.0)


def _may_begin(subjects: Sequence[Subject], swarm: Sequence[SwarmNode]) -> bool:
    in_swarm = [(subject, subject.swarm) for subject in subjects if subject.swarm]
    lost = {node.id for subject, node in in_swarm if subject.lost}
    kept_empty = {
        node.id
        for subject, node in in_swarm
        if subject.record and subject.record.phase is not Phase.RETURNED
    }
    absent = {node.id for subject, node in in_swarm if subject.steady_seconds is None}
    able = [
        node
        for node in swarm
        if node.id not in kept_empty | absent
        and node.state == "ready"
        and node.availability is Availability.ACTIVE
    ]
    return 2 * len(lost | kept_empty) < len(swarm) and bool(able)


def _step(subject: Subject, *, may_begin: bool) -> Step | None:
    record, node = subject.record, subject.swarm
    if record is None:
        return _begin(subject, 1) if may_begin else None
    if node is None:
        return Forget(record)
    if record.away and _may_return(subject, record, node):
        return Remember(replace(record, phase=Phase.RETURNING))
    match record.phase:
        case Phase.DRAINING if subject.steady_seconds is None:
            if any(key.startswith(VOLUME_LABEL_PREFIX) for key in node.labels):
                return Strip(record, node)
            return Drain(record, node) if subject.quiet_seconds >= QUIET_SECONDS else None
        case Phase.RETURNING:
            return Restore(record, node)
        case Phase.RETURNED:
            if subject.steady_for(CALM_SECONDS):
                return Forget(record)
            return _begin(subject, record.times + 1) if may_begin else None
        case _:
            return None


def _may_return(subject: Subject, record: Evacuated, node: SwarmNode) -> bool:
    """Whether it is up for good; or up, and a person has undone what we did."""
    undone = record.phase is Phase.DRAINED and node.availability is not Availability.DRAIN
    return subject.steady_for(0.0 if undone else record.steady_seconds)


def _begin(subject: Subject, times: int) -> Step | None:
    node = subject.swarm
    if node is None or not subject.lost:
        return None
    if node.state == "down" or node.availability is Availability.DRAIN:
        return None
    return Remember(
        Evacuated(
            node=subject.name,
            swarm=node.id,
            former=node.availability,
            phase=Phase.DRAINING,
            times=times,
        )
    )
