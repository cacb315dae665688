"""The results as Markdown, and a short form for the terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import Figure, Result, Spread, Target

_HEAD = "| | Pannier | reference | ratio | target | result |\n|---|---|---|---|---|---|\n"


class Page:
    """The page with all results: each section is as of the last time that it was measured.

    Args:
        file: read if it is there, and written anew with each result; None for no page.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        text = file.read_text() if file is not None and file.exists() else ""
        self._sections = {part.partition("\n")[0]: part.strip() for part in text.split("\n## ")[1:]}

    def put(self, result: Result, *, facts: dict[str, str]) -> None:
        """Replace the section of a result, or add it; on disk at once."""
        if self._file is not None:
            self._sections[result.title] = _section(result, facts).strip()
            draft = self._file.with_suffix(".new")
            draft.write_text(self.text())
            draft.replace(self._file)

    def text(self) -> str:
        """The whole page."""
        parts = ["# Benchmarks", _introduction(self._sections.values())]
        return "\n\n".join((*parts, *(f"## {text}" for text in self._sections.values()))) + "\n"


def line(figure: Figure) -> str:
    """One figure for the terminal."""
    ratio = f"ratio {_ratio(figure.ratio)}" if figure.ratio else ""
    values = f"{_values(figure.ours, figure.unit)} / {_values(figure.theirs, figure.unit)}"
    return f"{figure.what}: {values}  {ratio}  {_outcome(figure)}".rstrip()


def machine_facts() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} cores, {_from('/proc/cpuinfo', 'model name')}",
        "memory": f"{int(_from('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _from(file: str, key: str) -> str:
    lines = Path(file).read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith(key)), "unknown")


def _introduction(sections: Iterable[str]) -> str:
    lines = (line for text in sections for line in text.splitlines())
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if "|" in line
    ]
    judged = [row for row in rows if row[-1].startswith(("met", "accepted", "**missed**"))]
    missed = [row[0] for row in judged if row[-1].startswith("**missed**")]
    verdict = f"{len(judged) - len(missed)} of {len(judged)} targets are met."
    if missed:
        verdict += f" Missed: {'; '.join(missed)}."
    return (
        "Written by `python -m bench` (`make bench`); not by hand. All machines of the lab share "
        "one real machine: its processors, its memory, its disk. So what counts is each figure's "
        "ratio to its reference. Both are measured in the same run, in rounds that alternate; the "
        "ratio is the median of the rounds' ratios, and in brackets are the quartiles. Absolute "
        "values (medians) are only alongside. *Accepted* means short of the target, but not by more "
        "than the target's second number allows. Where the limit lies within the spread, another "
        "run may well say otherwise.\n\n" + verdict
    )


def _section(result: Result, facts: dict[str, str]) -> str:
    rows = "".join(_row(figure) for figure in result.figures)
    notes = "".join(f"\n- {note}" for note in result.notes)
    measured = "; ".join(f"{name} {value}" for name, value in facts.items())
    return (
        f"{result.title}\n\nReference: {result.reference}\n\n{_HEAD}{rows}\n{result.how}\n"
        + (f"{notes}\n" if notes else "")
        + f"\nMeasured: {measured}.\n"
    )


def _row(figure: Figure) -> str:
    ratio = _ratio(figure.ratio) if figure.ratio else "-"
    ours, theirs = (_values(values, figure.unit) for values in (figure.ours, figure.theirs))
    target = _target(figure.target, figure.unit)
    return f"| {figure.what} | {ours} | {theirs} | {ratio} | {target} | {_outcome(figure)} |\n"


def _ratio(spread: Spread | None) -> str:
    assert spread is not None
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _values(values: tuple[float, ...], unit: str) -> str:
    return _value(Spread.of(values).median, unit) if values else "-"


def _value(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def _target(target: Target | None, unit: str) -> str:
    if target is None:
        return "-"
    sign = "≤" if target.at_most is not None else "≥"
    limit = target.at_most if target.at_most is not None else target.at_least
    assert limit is not None
    text = f"{sign} {limit:g}" if target.of == "ratio" else f"{sign} {_value(limit, unit)}"
    return f"{text} ({target.accepted:g} accepted)" if target.accepted is not None else text


def _outcome(figure: Figure) -> str:
    if figure.target is None:
        return "-"
    doubt = ", but the limit lies within the spread" if figure.target.inside(figure.judged) else ""
    return f"**missed**{doubt}" if figure.verdict == "missed" else f"{figure.verdict}{doubt}"
