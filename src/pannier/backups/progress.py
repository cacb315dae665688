"""How long work with backups goes on, told while it does."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from pannier.contract.backup_progress import BackupProgress
from pannier.contract.words import BackupPhase
from pannier.core.errors import PannierError

log = structlog.get_logger(__name__)

Report = Callable[[BackupProgress], None]
"""Is told of each step. The one that ends the work is not among them: that is what the work returns."""

_PERCENT = re.compile(r"\[[0-9:]+\]\s+([0-9]{1,3})\.[0-9]+%.*packs")
_LOOK_SECONDS = 0.5
"""Between two lines of a stream: often enough for a person who looks on."""


def unreported(_: BackupProgress) -> None:
    """For work on which nobody looks."""


@dataclass(frozen=True, slots=True)
class Status:
    """What restic says of how far it is."""

    done_bytes: int
    percent: int


def status_of(line: str) -> Status | None:
    """What a line of `restic backup --json` says of how far it is; None where it says something else."""
    if '"message_type":"status"' not in line:
        return None
    try:
        told = json.loads(line)
        done, share = int(told.get("bytes_done", 0)), float(told.get("percent_done", 0.0))
    except (ValueError, TypeError, AttributeError):
        return None
    return Status(done, _percent(share * 100))


def percent_of(line: str) -> int | None:
    """What a line of `restic check` says of how much is read; None where it says something else."""
    found = _PERCENT.match(line)
    return None if found is None else _percent(float(found[1]))


def share_of(done: int, whole: int | None) -> int | None:
    """How many hundredths are done; None where the whole is not known."""
    return _percent(100 * done / whole) if whole else None


def _percent(value: float) -> int:
    """At most 99: a hundred is told by the end only."""
    return max(0, min(99, int(value)))


class Followed:
    """Work that people look on. It goes on when they look away, and ends with this process."""

    def __init__(self, *, node: str) -> None:
        self._node = node
        self._under_way: set[asyncio.Task[BackupProgress]] = set()

    async def follow(
        self, first: BackupPhase, work: Callable[[Report], Awaitable[BackupProgress]]
    ) -> AsyncGenerator[BackupProgress, None]:
        """Begin work, and tell how it goes on. Raises what the work raises.

        Args:
            first: the phase with which it begins.
        """
        latest = BackupProgress(phase=first, node=self._node)

        def report(progress: BackupProgress) -> None:
            nonlocal latest
            latest = progress

        async def run() -> BackupProgress:
            return await work(report)

        task = asyncio.create_task(run())
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait((task,), timeout=_LOOK_SECONDS)  # what fails at once is no stream
        while not task.done():
            yield latest
            await asyncio.wait((task,), timeout=_LOOK_SECONDS)
        yield task.result()

    def _ended(self, task: asyncio.Task[BackupProgress]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, PannierError):
                log.info("backups.work-failed", why=error.message)
            else:
                log.error("backups.work-failed", exc_info=error)
