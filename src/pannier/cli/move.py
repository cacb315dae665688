"""Showing how a move goes on."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from pannier.cli import output
from pannier.contract.views import MoveProgress
from pannier.contract.words import MovePhase
from pannier.core.errors import PannierError, from_code


async def follow_move(stream: AsyncIterator[MoveProgress], *, json: bool) -> None:
    """Show ``stream`` as it comes, and its end.

    Raises:
        PannierError: the move failed; its class is that of the failure.
    """
    with Line(live=not json and sys.stderr.isatty()) as line:
        async for progress in stream:
            if json:
                output.print_json_line(progress)
            else:
                line.show(describe(progress), key=(progress.phase, tuple(progress.in_use_by)))
            if progress.phase is MovePhase.FAILED:
                raise _failure(progress)
            if progress.phase is MovePhase.DONE and not json:
                line.clear()
                output.print_line(describe(progress))


def describe(progress: MoveProgress) -> str:
    """One step, as a sentence."""
    sent = f"round {progress.round}, {output.show_size(progress.sent_bytes)} sent"
    route = f"{progress.source} → {progress.target}"
    match progress.phase:
        case MovePhase.COPYING:
            return f"copying {progress.volume}: {route}, {sent}"
        case MovePhase.WAITING:
            users = output.show_names(progress.in_use_by)
            return f"waiting for {users} on {progress.source} to stop; {sent}"
        case MovePhase.SWITCHING:
            return f"switching {progress.volume}: {route}, {sent}"
        case MovePhase.DONE:
            facts = [f"moved: {route}"]
            if progress.pause_seconds is not None:
                facts.append(f"pause {progress.pause_seconds:.2f} s")
            if progress.generation is not None:
                facts.append(f"generation {progress.generation}")
            return ", ".join(facts)
        case other:
            return f"{other}: {progress.volume}, {sent}"


def _failure(progress: MoveProgress) -> PannierError:
    return from_code(
        progress.code or PannierError.code,
        progress.error or f"volume {progress.volume} was not moved",
        remedy=progress.remedy or "",
    )


class Line:
    """One line on stderr that changes in place; without a terminal, one line per new phase."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._status: Any = None
        self._key: object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def show(self, text: str, *, key: object) -> None:
        """Show ``text``; without a terminal only if ``key`` has changed and it is not the end."""
        if self._live:
            self._show_live(output.printable(text))
        elif key != self._key and key[0] not in (MovePhase.DONE, MovePhase.FAILED):  # type: ignore[index]
            output.print_hint(text)
        self._key = key

    def clear(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show_live(self, text: str) -> None:
        from rich.console import Console
        from rich.text import Text

        if self._status is None:
            self._status = Console(stderr=True).status(Text(text))
            self._status.start()
        else:
            self._status.update(Text(text))
