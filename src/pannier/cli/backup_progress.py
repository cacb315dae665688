"""Showing how long work with backups goes on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, TypeVar

from pannier.cli import output
from pannier.cli.move import Line
from pannier.cli.session import Session
from pannier.contract.words import BackupPhase
from pannier.core.errors import OutcomeUnknown

if TYPE_CHECKING:
    from pannier.contract.backup_progress import BackupProgress
    from pannier.contract.operations import Operations

Result = TypeVar("Result")
_WORDS = {
    BackupPhase.SNAPSHOT: "a snapshot is made",
    BackupPhase.REMOVING: "older backups are removed",
    BackupPhase.CHECKING: "the check runs",
}
"""Of phases whose own word says too little."""


def follow_work(
    session: Session,
    what: str,
    begin: Callable[[Operations], AsyncGenerator[BackupProgress, None]],
) -> BackupProgress:
    """Begin work, show on stderr how it goes on, and return its last line.

    Args:
        what: names it for people.

    Raises:
        PannierError: what the work raised. OutcomeUnknown: also if it stops being told of.
    """

    async def run() -> BackupProgress:
        async with session.client() as client:
            with Line(live=not session.json and sys.stderr.isatty()) as line:
                async for progress in begin(client):
                    if progress.ended:
                        return progress
                    if not session.json:
                        line.show(
                            describe_work(what, progress), key=(progress.phase, progress.volume)
                        )
        raise OutcomeUnknown(f"{what}: nothing is told of it any more")

    return asyncio.run(run())


def result_of(result: Result | None) -> Result:
    """What came of the work, as its last line says.

    Raises:
        OutcomeUnknown: it does not say.
    """
    if result is None:
        raise OutcomeUnknown("it has ended, and nothing is said of what came of it")
    return result


def describe_work(what: str, progress: BackupProgress) -> str:
    """One step, as a sentence."""
    what = f"{what}, {progress.volume}" if progress.volume else what
    facts = [f"{what}: {_WORDS.get(progress.phase, progress.phase)} on {progress.node}"]
    if progress.percent is not None:
        facts.append(f"{progress.percent} %")
    if progress.done_bytes:
        facts.append(output.show_size(progress.done_bytes))
    return ", ".join(facts)
