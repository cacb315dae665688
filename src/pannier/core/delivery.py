"""How the tries to bring a copy up to date went, and what the next one sends. Pure.

A difference that a copy cannot take in would fail for ever: its base is damaged there, or is not what the holder takes it for.
Nobody can list all reasons. So some failures in a row are reason enough, and the copy gets everything instead. What it has
stays until that is whole there. A copy that cannot take in everything either is tried more and more seldom.

Where the holder cannot read what it sends, that may be in everything, too; or only what it knows of the base is damaged. So
differences and everything then take turns, as seldom. What was written anew since arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pannier.core.errors import (
    Conflict,
    Denied,
    DiskFailed,
    NotFound,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    PoolFull,
    PoolMissing,
    SetBack,
    Unavailable,
    Unreadable,
)
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace

SENT_ANEW = "sent anew"
"""The line in a volume's history: differences did not arrive on the node, so that it is sent everything."""

_OF_THE_MOMENT = (
    Conflict,
    Denied,
    DiskFailed,
    NotFound,
    OutcomeUnknown,
    PoolFull,
    PoolMissing,
    SetBack,
    Unavailable,
)
"""Errors that say nothing of what was sent: sending something else would meet them, too."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A transfer has begun.

    Attributes:
        base: what it is the difference to; None where everything is sent.
        arrived: so many bytes of it were there already.
    """

    base: Generation | None
    arrived: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """The tries since a difference arrived the last time.

    Attributes:
        last: the last one that counted against its base.
        refused: so many in a row were differences to the same base, and were refused.
        broken: so many in a row were the same, and ended without an answer.
        unfit: a generation that is no base for this copy.
        why: for people: why everything is sent although there is a base; empty once it has arrived.
        whole: for people: why everything was refused the last time; empty where it was not.
        unreadable: for people: what this node's own disk did not give back since; empty where it gave back all.
        setbacks: how many were refused. The pauses grow with it. Everything that arrives does not end that, since the next
            difference may fail again.
    """

    last: Begin | None = None
    refused: int = 0
    broken: int = 0
    unfit: Generation | None = None
    why: str = ""
    whole: str = ""
    unreadable: str = ""
    setbacks: int = 0

    def base(self, common: Generation | None) -> Generation | None:
        """What the next transfer is a difference to, where ``common`` is the best base that both have; None: it sends everything."""
        return None if common == self.unfit else common


def is_refusal(error: PannierError) -> bool:
    """Whether a transfer failed by what was sent, or by what it was put on, as far as one can tell."""
    return not isinstance(error, _OF_THE_MOMENT)


def after_failure(
    tries: Tries, error: PannierError, *, begin: Begin | None, pace: CopiesPace
) -> Tries:
    """The tries after one more has failed.

    Args:
        begin: how it began; None where it never did.
    """
    if is_refusal(error):
        tries = replace(tries, setbacks=tries.setbacks + 1)
        if isinstance(error, Unreadable):
            tries = replace(tries, unreadable=error.message)
        if begin is None:
            return tries
        if begin.base is None and isinstance(error, Unreadable):
            return replace(tries, unfit=None, why="")
        if begin.base is None:
            return replace(tries, whole=error.message)
        of_same_base = tries.last is not None and tries.last.base == begin.base
        refused = tries.refused + 1 if of_same_base else 1
        tries = replace(tries, last=begin, refused=refused, broken=0)
        return _given_up(tries, error) if refused >= pace.refused_tries else tries
    if isinstance(error, PeerUnavailable) and begin is not None and begin.base is not None:
        broken = tries.broken + 1 if tries.last == begin else 1
        of_same_base = tries.last is not None and tries.last.base == begin.base
        refused = tries.refused if of_same_base else 0
        tries = replace(tries, last=begin, refused=refused, broken=broken)
        return _given_up(tries, error) if broken >= pace.broken_tries else tries
    return tries


def _given_up(tries: Tries, error: PannierError) -> Tries:
    assert tries.last is not None
    count = max(tries.refused, tries.broken)
    why = f"{count} differences in a row did not arrive: {error.message}"
    return replace(tries, last=None, refused=0, broken=0, unfit=tries.last.base, why=why)


def after_arrival(tries: Tries, *, begin: Begin | None) -> Tries:
    """The tries after one has succeeded.

    Args:
        begin: how it began; None where everything was there.
    """
    if begin is not None and begin.base is not None:
        return Tries()
    return Tries(unfit=tries.unfit, setbacks=tries.setbacks)


def pause_after(tries: Tries, error: PannierError, pace: CopiesPace) -> float:
    """The shortest pause after the last try, which has failed, in seconds."""
    if not is_refusal(error):
        return 0.0
    doublings = min(max(tries.setbacks - 1, 0), 32)  # beyond that it only gets hard to compute
    return float(min(pace.retry * 2**doublings, pace.refused_limit))
