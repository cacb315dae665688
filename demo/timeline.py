"""What the demo prints, and the labs that it plays on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

from pannier.lab import Lab

T = TypeVar("T")


class Timeline:
    """Prints what happens, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._began = time.monotonic()

    def say(self, text: str, *, style: str = "") -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"[dim]{seconds:6.1f} s[/dim]  {text}", style=style, soft_wrap=True)

    def chapter(self, text: str) -> None:
        self._console.print()
        self.say(f"[bold]{text}[/bold]")

    def quote(self, text: str) -> None:
        """A line that a program printed."""
        self.say(f"  [dim]{escape(text)}[/dim]")

    def done(self, text: str) -> None:
        self.say(f"[green]✓[/green] {text}")

    def did(self, text: str, work: Callable[[], T]) -> T:
        result = work()
        self.done(text)
        return result


@contextmanager
def laboratory(name: str, timeline: Timeline, **wish: object) -> Iterator[Lab]:
    """A lab that is gone afterwards, whatever happens."""
    lab = Lab(name, report=timeline.quote)
    lab.down()
    try:
        lab.up(**wish)  # type: ignore[arg-type]
        yield lab
    finally:
        lab.down()
