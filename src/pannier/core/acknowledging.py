"""Who may acknowledge a sync call, and which copies count: decisions from what is known.

The argument is in docs/adr/0001-who-may-acknowledge.md: the holder acknowledges what every node that
could take the volume over has confirmed, and a node that does not confirm must leave the record first.
Nothing here acts, and nothing looks at a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from pannier.core.lease import Standing
from pannier.core.volume import Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncLimits:
    """How long copies may take.

    Attributes:
        patience: seconds that a sync call waits for a replica whose lease is alive.
        lag_intervals, lag_seconds: a copy whose newest state is older than this many of the volume's
            intervals, and than this many seconds, does not count any more.
    """

    patience: float
    lag_intervals: float
    lag_seconds: float


# -- what is known ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a node knows of its right to act as a volume's holder.

    Attributes:
        volume: the record with which it serves and replicates the volume.
        known: the newest record that it has read; None where it knows of none any more.
        required: every node that the record may name as in sync. While a change of the record has no
            answer, these are the nodes of both states.
        standing: what its lease and the others' promises prove now.
    """

    volume: Volume
    known: Volume | None
    required: frozenset[str]
    standing: Standing

    @property
    def rivals(self) -> frozenset[str]:
        """See :func:`rivals`."""
        return rivals(self.volume, self.known, self.required)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """How far one replica is, as the holder knows it.

    Attributes:
        up: its lease is alive.
        confirmed: the newest position that it has on its disk, with all before it, by its own word. Positions
            count the generations and records of the holder.
        sending: what is on its way to it, or was given up without an answer.
        error: the last try did not succeed.
        failed: a try failed since the sync call began to wait.
    """

    up: bool
    confirmed: int | None = None
    sending: int | None = None
    error: bool = False
    failed: bool = False

    def has(self, position: int) -> bool:
        """Whether it confirmed this position or a later one."""
        return self.confirmed is not None and self.confirmed >= position


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmations:
    """How far a sync call is.

    Attributes:
        position: of what was made after the call began; it has all that the call covers.
        replicas: by name. Nothing is sent to one that is missing.
        waited: seconds since it was made.
        paused: nothing is sent any more: the volume is being given away.
    """

    position: int
    replicas: Mapping[str, Replica]
    waited: float
    paused: bool = False


# -- what is decided --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The sync call may return."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """These have not confirmed yet, and have this many seconds left."""

    nodes: frozenset[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Leave:
    """These do not confirm: they must leave the record before anything is acknowledged."""

    nodes: frozenset[str]


class Reason(Enum):
    """Why a sync call is not acknowledged now."""

    PAUSED = "the volume is being given away"
    NOT_HELD = "another node holds the volume, or it is another volume"
    UNPROVEN = "neither the lease nor the promises of all rivals prove that this node holds it"
    TOO_FEW = "fewer copies are in sync than min_copies"


@dataclass(frozen=True, slots=True)
class Refuse:
    """The sync call must not return now.

    Attributes:
        rivals: the nodes that could take the volume over.
    """

    reason: Reason
    rivals: frozenset[str]


Decision = Acknowledge | WaitFor | Leave | Refuse


def decide(claim: Claim, call: Confirmations, limits: SyncLimits) -> Decision:
    """Whether a sync call may return. After exactly the patience, a replica is still waited for."""
    if call.paused:
        return Refuse(Reason.PAUSED, claim.rivals)
    pending = unconfirmed(claim.rivals, call)
    silent = frozenset(
        name for name in pending if _is_silent(call.replicas.get(name), call, limits)
    )
    if silent:
        return Leave(silent)
    if pending:
        return WaitFor(pending, limits.patience - call.waited)
    return refusal(claim) or Acknowledge()


def refusal(claim: Claim) -> Refuse | None:
    """Why a node must not acknowledge anything, whatever was confirmed; None if it may."""
    volume, could_take = claim.volume, claim.rivals
    if not _is_same(volume, claim.known):
        return Refuse(Reason.NOT_HELD, could_take)
    if not claim.standing.holds(could_take):
        return Refuse(Reason.UNPROVEN, could_take)
    if 1 + len(could_take) < volume.spec.min_copies:
        return Refuse(Reason.TOO_FEW, could_take)
    return None


def rivals(volume: Volume, known: Volume | None, required: frozenset[str]) -> frozenset[str]:
    """Every node that could take a volume over from its holder, as far as the holder can know.

    Arguments as in :class:`Claim`.
    """
    if known is None or not _is_same(volume, known):
        return required
    return required | frozenset(known.in_sync)


def unconfirmed(could_take: frozenset[str], call: Confirmations) -> frozenset[str]:
    """Those whose confirmation is missing."""
    return frozenset(
        name
        for name in could_take
        if name not in call.replicas or not call.replicas[name].has(call.position)
    )


def _is_silent(replica: Replica | None, call: Confirmations, limits: SyncLimits) -> bool:
    """Whether one that has not confirmed is no longer waited for."""
    if replica is None or not replica.up or replica.failed:
        return True
    failed_before = replica.error and replica.sending != call.position
    return failed_before or call.waited > limits.patience


def _is_same(volume: Volume, known: Volume | None) -> bool:
    return known is not None and (known.id, known.grant) == (volume.id, volume.grant)


# -- who counts -------------------------------------------------------------------------------------


def in_sync_after(
    record: Volume, *, add: frozenset[str] = frozenset(), drop: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """The record's ``in_sync`` with some nodes added and some dropped; only replicas are added."""
    return tuple(
        name
        for name in record.replicas
        if (name in record.in_sync or name in add) and name not in drop
    )


def left_behind(
    could_take: Iterable[str], lags: Mapping[str, float], *, interval: float, limits: SyncLimits
) -> frozenset[str]:
    """Those whose newest state is too old for them to count.

    Args:
        could_take: the nodes that count.
        lags: of each, the age of its newest state in seconds.
        interval: the volume's, in seconds.
    """
    limit = max(limits.lag_intervals * interval, limits.lag_seconds)
    return frozenset(name for name in could_take if lags[name] > limit)


def may_join(node: str, replica: Replica, *, known: Volume | None) -> bool:
    """Whether a replica that does not count may try to.

    A node whose joining had no answer may count already without being in the record: it may try again.
    """
    joined = known is not None and node in known.in_sync
    return not joined and replica.up and replica.confirmed is not None and not replica.error
