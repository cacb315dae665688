"""How answers look: JSON for programs, tables for people, and neither wraps by surprise in a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from pannier.contract.views import ErrorView
from pannier.core.size import format_size

NOTHING = "-"
_GAP = "  "
"""Between two columns of a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings.

    Attributes:
        right: headings of the columns with numbers, which are aligned to the right.
        empty: said instead (on stderr) when there are no rows.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    empty: str = "nothing to show"


def printable(text: str) -> str:
    """``text`` without what would move a terminal's cursor or change its colours.

    Names of containers and labels come from elsewhere, and may hold anything.
    """
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def show_size(size: int | None) -> str:
    """A size for a table's cell."""
    if size is None:
        return NOTHING
    text = format_size(size)
    return text + "B" if text[-1].isdigit() else text


def show_names(names: Sequence[str] | None) -> str:
    """Names for a cell: ``?`` where it is not known, ``-`` where there are none."""
    if names is None:
        return "?"
    return ", ".join(names) or NOTHING


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(value: Any) -> None:
    """One value of a stream, on a line of its own, at once."""
    import msgspec

    click.echo(msgspec.json.encode(value).decode())
    sys.stdout.flush()


def print_line(text: str) -> None:
    """One line for people."""
    click.echo(printable(text))


def print_hint(text: str) -> None:
    """One line for people, beside the output."""
    click.echo(printable(text), err=True)


def print_details(details: Sequence[tuple[str, str]]) -> None:
    """Labels and texts in two columns."""
    width = max(len(label) for label, _ in details)
    for label, text in details:
        click.echo(f"{label:<{width}}  {printable(text)}".rstrip())


def print_table(table: Table) -> None:
    """A table: as wide as it needs when piped, folded to the window on a terminal."""
    if not table.rows:
        print_hint(table.empty)
        return
    lines = [list(table.headings), *([printable(cell) for cell in row] for row in table.rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    terminal = sys.stdout.isatty()
    needed = sum(widths) + len(_GAP) * (len(widths) - 1)
    if terminal and needed > shutil.get_terminal_size().columns:
        _print_folded(table)
        return
    right = [heading in table.right for heading in table.headings]
    heading, *rows = (_GAP.join(map(_padded, line, widths, right)).rstrip() for line in lines)
    click.echo("\n".join((click.style(heading, bold=True) if terminal else heading, *rows)))


def _width(text: str) -> int:
    """How many columns a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int, right: bool) -> str:
    room = " " * (width - _width(text))
    return room + text if right else text + room


def _print_folded(table: Table) -> None:
    """It takes longer than a simple table, by much where there are many rows."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in table.headings:
        justify = "right" if heading in table.right else "left"
        grid.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]  # rich's own literal type
    for row in table.rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(
        file=sys.stdout, force_terminal=True, markup=False, highlight=False, emoji=False
    )
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().splitlines():
        click.echo(line.rstrip(), color=True)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Tell people on a terminal what takes so long, on stderr, within the block."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)):
        yield


def print_error(view: ErrorView, *, json: bool) -> None:
    """An error, on stderr: what happened, and below it what to do next."""
    if json:
        import msgspec

        click.echo(msgspec.json.encode(view).decode(), err=True)
        return
    label = click.style("Error:", fg="red", bold=True)
    click.echo(f"{label} {printable(view.message)}", err=True)
    if view.remedy:
        click.echo(f"→ {printable(view.remedy)}", err=True)
