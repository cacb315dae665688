"""The last groups of sync calls as figures, and what is said seldom."""

from __future__ import annotations

import pytest

from pannier.core.seldom import Seldom
from pannier.core.sync_times import MOST_GROUPS, LastGroups, Spread, SyncTimes
from pannier.host.clock import Clock, Stopwatch


def times(cut: float, *, generation: str = "") -> SyncTimes:
    return SyncTimes(local=0.5, turn=0.25, cut=cut, copies=1.0, generation=generation)


def test_without_groups_there_are_no_figures() -> None:
    groups = LastGroups()
    assert (len(groups), groups.by_generation(), groups.last_reason()) == (0, 0, "")
    assert groups.spread(lambda each: each.total) is None


def test_the_median_and_the_worst_of_each_part() -> None:
    groups = LastGroups()
    for cut in (3.0, 1.0, 9.0):
        groups.note(times(cut))
    assert groups.spread(lambda each: each.cut) == Spread(3.0, 9.0)
    assert groups.spread(lambda each: each.total) == Spread(4.75, 10.75)


def test_only_the_last_groups_count() -> None:
    groups = LastGroups()
    groups.note(times(99.0, generation="long ago"))
    for _ in range(MOST_GROUPS):
        groups.note(times(1.0))
    assert len(groups) == MOST_GROUPS
    assert groups.spread(lambda each: each.cut) == Spread(1.0, 1.0)
    assert (groups.by_generation(), groups.last_reason()) == (0, "")


def test_the_last_reason_is_that_of_the_last_generation() -> None:
    groups = LastGroups()
    for reason in ("first", "second", ""):
        groups.note(times(1.0, generation=reason))
    assert (groups.by_generation(), groups.last_reason()) == (2, "second")


def test_what_happens_often_is_said_at_once_and_then_seldom() -> None:
    seldom = Seldom()
    said = [(at, seldom.due("gap", now=at, every=60.0)) for at in range(0, 130, 10)]
    assert [(at, more) for at, more in said if more is not None] == [(0, 0), (60, 5), (120, 5)]


def test_each_kind_is_said_by_itself() -> None:
    seldom = Seldom()
    assert seldom.due("one", now=0.0, every=60.0) == 0
    assert seldom.due("other", now=1.0, every=60.0) == 0


def test_a_stopwatch_tells_the_time_since_the_last_lap() -> None:
    moments = iter((10.0, 12.0, 12.5))
    watch = Stopwatch(Clock(now=lambda: next(moments), unix=lambda: pytest.fail("no wall clock")))
    assert [watch.lap(), watch.lap()] == [2.0, 0.5]
