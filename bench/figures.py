"""Figures: rounds of a measurement and of its reference, and what they say about a target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["met", "accepted", "missed", "-"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and between which quartiles half of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit.

    Attributes:
        at_most: the largest value that is good; exactly one of this and ``at_least`` is given.
        at_least: the smallest value that is good.
        accepted: a value on the wrong side of the limit that still passes.
        of: whether the ratio is judged or the value itself.
    """

    at_most: float | None = None
    at_least: float | None = None
    accepted: float | None = None
    of: Literal["ratio", "value"] = "ratio"

    def verdict(self, value: float) -> Verdict:
        """How ``value`` stands."""
        if self._good(value, self._limit):
            return "met"
        if self.accepted is not None and self._good(value, self.accepted):
            return "accepted"
        return "missed"

    def inside(self, spread: Spread) -> bool:
        """Whether what decides lies within the spread, so that another run might say otherwise."""
        limit = self._limit if self.accepted is None else self.accepted
        return spread.low < limit < spread.high

    @property
    def _limit(self) -> float:
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        return limit

    def _good(self, value: float, limit: float) -> bool:
        return value <= limit if self.at_most is not None else value >= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the report.

    Attributes:
        what: what was done.
        ours: a value of each round.
        theirs: the reference's, of the same rounds; empty where there is none.
        unit: of the values: ``s`` for seconds, ``MB``, ``%``.
        target: None for what is only told alongside.
        invert: the ratio is theirs to ours: the speed, where the values are times.
    """

    what: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    unit: str = "s"
    target: Target | None = None
    invert: bool = False

    @property
    def ratio(self) -> Spread | None:
        """Of the rounds' ratios; None without a reference."""
        if not self.theirs:
            return None
        pairs = zip(self.ours, self.theirs, strict=True)
        return Spread.of([b / a if self.invert else a / b for a, b in pairs])

    @property
    def judged(self) -> Spread:
        """What the target is about."""
        if self.target is None or self.target.of == "value" or self.ratio is None:
            return Spread.of(self.ours)
        return self.ratio

    @property
    def verdict(self) -> Verdict:
        """How it stands to its target."""
        return self.target.verdict(self.judged.median) if self.target else "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one benchmark found.

    Attributes:
        reference: what the reference is.
        how: how it was measured, in some sentences.
        notes: what was seen on the way and belongs beside the figures.
    """

    title: str
    reference: str
    how: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def turns(rounds: int, *legs: str) -> Iterator[str]:
    """The order of legs: A B, B A, A B ... so that neither is always the first."""
    for number in range(rounds):
        yield from legs if number % 2 == 0 else reversed(legs)


@dataclass(slots=True)
class Rounds:
    """Collects values by operation and leg."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, operation: str, leg: str, value: float) -> None:
        """One value more."""
        self.values.setdefault((operation, leg), []).append(value)

    def of(self, operation: str, leg: str) -> tuple[float, ...]:
        """All values of a leg in their order."""
        return tuple(self.values[operation, leg])

    def each(self, operation: str, leg: str, change: Callable[[float], float]) -> tuple[float, ...]:
        """All values of a leg, changed."""
        return tuple(change(value) for value in self.of(operation, leg))
