"""What the barrier says about a sync call, and what it asks of whoever makes volumes durable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SyncCall:
    """A sync call that waits in the kernel.

    Attributes:
        container: the container's id, as the engine has it.
        pid: of the calling *thread*, as this machine numbers it; ``/proc/PID`` serves threads too.
            0 where it is not known: a call from before the daemon's restart.
        name: of the system call; ``unknown`` from before a restart.
        fd: the descriptor that it is about; None for sync and msync.
        arrival: when the caller first asked, in seconds of CLOCK_BOOTTIME. Earlier than when this
            call came in where a signal interrupted it and the kernel restarted it.
    """

    container: str
    pid: int
    name: str
    fd: int | None
    arrival: float


class Strategy(Protocol):
    """How a volume is made durable. Volumes are given by name.

    For one volume there is one call of either method at a time.
    """

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> None:
        """Return when all that was written to the volume before this call is on every copy that
        counts, and this node may still say so.

        Args:
            calls: those that wait for it; some may have ended meanwhile.

        Raises:
            PannierError: it cannot be said now. The calls keep waiting, and it is asked again.
        """
        ...

    async def unchanged(self, volume: str) -> bool:
        """Whether nothing was written since the last ``make_durable`` that returned, and this node
        may still say so.

        Only a caller that is interrupted again and again depends on it: where that takes longer
        than half the time between two of its signals, it does not get on.

        Raises:
            PannierError: it cannot be said now.
        """
        ...
