"""A daemon with nothing but the barrier, for the system tests: a unit on a lab's machine runs it.

Its strategy sleeps, and does what files in /run/barrier-test say:

``seconds``     so long each group takes, 0 by default
``refuse``      each group fails while this is there
``unchanged``   the volumes count as unchanged while this is there
``groups``      written here: a line "VOLUME CALLS" for each group that is done
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import structlog

from pannier.barrier.barrier import Barrier
from pannier.barrier.calls import BY_KERNEL, Answer, SyncCall
from pannier.config import PATHS
from pannier.core.errors import Unavailable
from pannier.host.activation import inherited_fds, listening_socket
from pannier.host.clock import machine_clock
from pannier.host.systemd import notify

WORDS = Path("/run/barrier-test")


class Told:
    """A strategy that does as it is told."""

    async def make_durable(self, volume: str, calls: Sequence[SyncCall]) -> Sequence[Answer]:
        if (WORDS / "refuse").exists():
            raise Unavailable("told to refuse")
        await asyncio.sleep(_number("seconds"))
        with (WORDS / "groups").open("a") as file:
            names = ",".join(sorted({call.name for call in calls}))
            file.write(f"{volume} {len(calls)} {names}\n")
        return [BY_KERNEL] * len(calls)

    async def unchanged(self, volume: str) -> bool:
        return (WORDS / "unchanged").exists()


def _number(word: str) -> float:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return float((WORDS / word).read_text())
    return 0.0


async def main() -> None:
    WORDS.mkdir(exist_ok=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    fds = inherited_fds(os.environ, pid=os.getpid())
    barrier = Barrier(
        Told(), mount_root=PATHS.mounts, directory=PATHS.run / "barrier", clock=machine_clock()
    )
    barrier.restore((item.name, item.fd) for item in fds)
    server = next(listening_socket(item.fd) for item in fds if item.name == "barrier")
    work = asyncio.create_task(barrier.run(server))
    notify("READY=1")
    while not stop.is_set():
        state = {
            volume: {
                "containers": sorted(barrier.containers(volume)),
                "calls": barrier.waiting(volume).calls,
                "oldest": barrier.waiting(volume).oldest_seconds,
            }
            for volume in barrier.held()
        }
        (WORDS / "state.tmp").write_text(json.dumps(state))
        (WORDS / "state.tmp").rename(WORDS / "state")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.05)
    work.cancel()
    await asyncio.wait([work])


structlog.configure(processors=[structlog.processors.LogfmtRenderer()])
asyncio.run(main())
