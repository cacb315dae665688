"""Tables for people: as wide as they need, and folded only on a terminal that is narrower."""

from __future__ import annotations

import sys
import time

import click
import pytest

from pannier.cli.output import Table, print_table

TABLE = Table(
    ("NAME", "EPOCH", "LABELS"),
    [("a", "3", "-"), ("日本", "12", "x\x1b[31m"), ("long-name", "1", "")],
    right=frozenset({"EPOCH"}),
)
LINES = [
    "NAME       EPOCH  LABELS",
    "a              3  -",
    "日本          12  x\\x1b[31m",
    "long-name      1",
]


def test_columns_are_as_wide_as_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(TABLE)
    assert capsys.readouterr().out.splitlines() == LINES


def test_without_rows_something_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table(("NAME",), [], empty="no snapshots"))
    assert capsys.readouterr() == ("", "no snapshots\n")


@pytest.mark.parametrize(("columns", "folded"), [(80, False), (18, True)])
def test_a_terminal_that_is_too_narrow_gets_it_folded(
    columns: int,
    folded: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(TABLE)
    shown = [click.unstyle(line) for line in capsys.readouterr().out.splitlines()]
    assert (shown != LINES) is folded
    assert all(len(line) <= columns for line in shown)


def test_a_thousand_rows_take_no_time_to_speak_of(capsys: pytest.CaptureFixture[str]) -> None:
    """A third of what `snapshot ls` may take for a thousand snapshots; by the processor, whoever else uses it."""
    rows = [
        (f"hourly-2026-11-{n:04}", f"3.{n}", "2026-01-02T03:04:05Z", "-", "-") for n in range(1000)
    ]
    before = time.process_time()
    print_table(Table(("NAME", "GENERATION", "MADE", "KEPT UNTIL", "LABELS"), rows))
    assert time.process_time() - before < 0.1
    assert len(capsys.readouterr().out.splitlines()) == 1001
