"""What the barrier says about a sync call, and what it asks of whoever makes volumes durable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as a descriptor names it, known from /proc alone.

    Attributes:
        mount: id of the mount through which it was opened.
        inode: its number.
    """

    mount: int
    inode: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """What an msync is about: addresses of the caller, from ``start`` to before ``end``."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SyncCall:
    """A sync call that waits in the kernel.

    Attributes:
        container: the container's id, as the engine has it.
        pid: of the calling *thread*, as this machine numbers it; ``/proc/PID`` serves threads too.
            0 where it is not known: a call from before the daemon's restart.
        name: of the system call; ``unknown`` from before a restart.
        fd: the descriptor that it is about; None for sync and msync.
        arrival: when the call first came in, in seconds of CLOCK_BOOTTIME. For a call that a signal
            interrupted and the kernel restarted, this is the time before the interruption.
        file: what ``fd`` was when the call came in; None where it is not known to lie on the file system of
            a held volume.
        mapped: for msync.
        is_there: whether its thread still waits. What was read of the thread before is then true of it.
    """

    container: str
    pid: int
    name: str
    fd: int | None
    arrival: float
    file: OpenFile | None = None
    mapped: Mapped | None = None
    is_there: Callable[[], bool] = field(default=lambda: True, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sync call is told.

    Attributes:
        error: 0 for success, or the errno with which it fails; None lets the kernel perform the call, whose
            result it then gets.
    """

    error: int | None

    def and_also(self, other: Answer) -> Answer:
        """The answer to a call that waited for both: a failure if one failed."""
        if self.error or other.error:
            return self if self.error else other
        return BY_KERNEL if None in (self.error, other.error) else DONE


BY_KERNEL, DONE = Answer(None), Answer(0)


class Strategy(Protocol):
    """How a volume is made durable. Volumes are given by name.

    For one volume there is one call of either method at a time.
    """

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> Sequence[Answer]:
        """Return when all that was written to the volume before this call is on every copy that
        counts, and this node is still entitled to confirm that.

        After an error the sync calls keep waiting, and the barrier calls this method again.

        Args:
            calls: those that wait for it; some may have ended meanwhile.

        Returns:
            One answer for each of ``calls``. Only failures are said before the volume is durable.

        Raises:
            NotHolder: this node does not hold the volume, or is just giving it away.
            Unavailable: it cannot be confirmed now, such as for want of the store or of other copies.
            VolumeNotFound: the volume is gone.
            Stale, OutcomeUnknown: the record of the copies that count may not have been changed.
            StorageError: this node's storage fails.
        """
        ...

    async def unchanged(self, volume: str) -> bool:
        """Whether nothing was written since the last ``make_durable`` that returned, while this node
        is still entitled to confirm that.

        Only callers that are interrupted again and again depend on it. Such a caller makes no progress
        if this method takes longer than half the time between two of its signals.

        Raises:
            NotHolder: this node does not hold the volume, or is just giving it away.
            Unavailable: this node cannot prove now that it still holds the volume.
            StorageError: this node's storage fails.
        """
        ...
