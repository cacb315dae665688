"""What a Mount does next, decided from what is known at that moment.

Nothing here acts, and nothing looks at a clock. A Mount that has to wait is in one of four states::

    Ready ----> MountHere, TakeOver, AskForVolume      the record and this node allow a try
      ^            |
      |            | no success
      |            v
      +---- Occupied, Unreachable, Unready      how the try ended

From the lower states it looks again, or tries again, or gives up with an error that Docker is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from pannier.core.volume import Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class MountLimits:
    """How long a Mount waits.

    Attributes:
        budget: seconds after which it gives up although the holder answers.
        silence: seconds without any answer after which it gives up, so that Swarm may try elsewhere.
        retry: seconds between two tries.
    """

    budget: float
    silence: float
    retry: float


# -- what is known ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A try is due: the Mount has just come, a pause is over, or the record has changed.

    Attributes:
        record: the newest record that is known.
        node: the node on which the Mount waits.
        driver: this node has the volume's driver.
        disk: this node's disk takes writes. Checked only if :func:`needs_disk` says so.
        takeover_possible: the holder is gone, and a copy in sync may go on.
    """

    record: Volume
    node: str
    driver: bool
    disk: bool
    takeover_possible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupied:
    """The holder answered: the volume is in use, on its way, or has just moved."""

    waited: float
    """Seconds since the Mount came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """The other node, which was asked, did not answer."""

    waited: float
    silent: float
    """Seconds since the first of the latest tries in a row without an answer, this one included."""
    holder_gone: bool
    """It was the holder, and meanwhile a copy in sync may take over: that is tried at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unready:
    """Something that is needed does not answer: the store, or what the holder says it lacks."""

    waited: float
    silent: float
    """As in :class:`Unreachable`."""
    here: bool
    """This node holds the volume: nobody else has to be waited for."""


State = Ready | Occupied | Unreachable | Unready


# -- what to do -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MountHere:
    """This node holds the volume: mount it."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Have the best copy take the volume over."""


@dataclass(frozen=True, slots=True)
class AskForVolume:
    """Ask the holder to give the volume away."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again with the same record after this many seconds; 0 means at once."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Read the record again. If the holder is the same, wait for this many seconds at most."""

    seconds: float


class Why(Enum):
    """Why a Mount gives up."""

    NO_DRIVER = "this node cannot keep such a volume"
    DISK_FAILED = "this node's disk takes no writes"
    HOLDER_SILENT = "the holder does not answer"
    UNAVAILABLE = "something that is needed does not answer"
    TIME_OVER = "the holder did not give the volume away in time"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the Mount with an error."""

    why: Why


Attempt = MountHere | TakeOver | AskForVolume
Step = Attempt | Wait | LookAgain | GiveUp


def next_step(state: State, limits: MountLimits) -> Step:
    """What a Mount in this state does next. It gives up only when a limit is exceeded."""
    match state:
        case Ready():
            return _try(state)
        case Occupied(waited=waited):
            return _look_again(waited, limits)
        case Unreachable(waited=waited, silent=silent):
            if silent > limits.silence:
                return GiveUp(Why.HOLDER_SILENT)
            return Wait(0.0) if state.holder_gone else _look_again(waited, limits)
        case Unready(waited=waited, silent=silent):
            if silent > limits.silence:
                return GiveUp(Why.UNAVAILABLE)
            return Wait(limits.retry) if state.here else _look_again(waited, limits)
        case _:
            assert_never(state)


def needs_disk(record: Volume, *, node: str) -> bool:
    """Whether ``node`` must be able to write before it tries to have the volume.

    A node that could not keep it must not ask for it. A volume whose only copy is here may still be
    read.
    """
    return record.grant.node != node or record.spec.copies > 1


def _try(state: Ready) -> Step:
    if not state.driver:
        return GiveUp(Why.NO_DRIVER)
    if not state.disk and needs_disk(state.record, node=state.node):
        return GiveUp(Why.DISK_FAILED)
    if state.record.grant.node == state.node:
        return MountHere()
    return TakeOver() if state.takeover_possible else AskForVolume()


def _look_again(waited: float, limits: MountLimits) -> Step:
    return GiveUp(Why.TIME_OVER) if waited > limits.budget else LookAgain(limits.retry)
