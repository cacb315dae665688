"""Transfers that share a rate keep to it together."""

from __future__ import annotations

import pytest

from pannier.transport import rate
from pannier.transport.rate import Rate


class Clock:
    """Stands in for the module ``time``: nobody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_all_together_keep_to_the_rate_and_a_pause_saves_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    shared = Rate(1000)
    for _ in range(10):
        shared.wait(500)
    assert clock.now == pytest.approx(105.0, abs=0.2)
    clock.now = 200.0
    for _ in range(10):
        shared.wait(500)
    assert clock.now == pytest.approx(205.0, abs=0.2)
