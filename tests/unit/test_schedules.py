"""Schedules of snapshots as pure decisions: what is due, and what is kept; over a year, hour by hour."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from pannier.core.errors import InvalidInput
from pannier.core.generation import Generation
from pannier.core.schedules import (
    MOST_SCHEDULED,
    InForce,
    Period,
    Schedule,
    SchedulePolicy,
    Slot,
    due,
    in_force,
    missed_before,
    not_kept,
    parse_schedule,
)
from pannier.core.snapshots import Snapshot, check_snapshot_name

HOUR = 3600.0
YEAR = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
USUAL = parse_schedule("hourly:24,daily:7,weekly:5,monthly:12")
KEYS = {
    Period.HOURLY: "%Y-%m-%d %H",
    Period.DAILY: "%Y-%m-%d",
    Period.WEEKLY: "%G %V",
    Period.MONTHLY: "%Y-%m",
}


def made(slot: Slot) -> Snapshot:
    return Snapshot(
        name=slot.name, generation=Generation(1, 1), made_at=slot.start + 5, slot_start=slot.start
    )


def by_hand(name: str) -> Snapshot:
    return Snapshot(name=name, generation=Generation(1, 1), made_at=YEAR)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def names(snapshots: Sequence[Snapshot]) -> list[str]:
    return [each.name for each in snapshots]


# -- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["hourly:24", "daily:7,weekly:5", "hourly:1,monthly:999", str(USUAL)]
)
def test_what_is_read_is_written_as_it_was(text: str) -> None:
    assert str(parse_schedule(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "hourly", "hourly:", "hourly:-1", "hourly:0", "hourly:1.5", "hourly:x", "yearly:1", "24",
     "hourly:1,", "hourly:1,hourly:2", "hourly:99999", "hourly: 1", "hourly:٣", "unknown:1"],
)  # fmt: skip
def test_a_schedule_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a schedule, because of") as refused:
        parse_schedule(text)
    assert "write hourly:24,daily:7" in refused.value.remedy


def test_no_schedule_keeps_more_than_a_volume_can_have() -> None:
    assert parse_schedule(f"hourly:{MOST_SCHEDULED - 1},daily:1")
    with pytest.raises(InvalidInput, match=f"keeps {MOST_SCHEDULED + 1} snapshots"):
        parse_schedule(f"hourly:{MOST_SCHEDULED},daily:1")


# -- slots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2026-11-30T21:59:59", ["hourly-2026-11-30T21", "daily-2026-11-30", "weekly-2026-W49", "monthly-2026-11"]),
        ("2027-01-01T00:00:00", ["hourly-2027-01-01T00", "daily-2027-01-01", "weekly-2026-W53", "monthly-2027-01"]),
        ("1970-01-01T00:00:00", ["hourly-1970-01-01T00", "daily-1970-01-01", "weekly-1970-W01", "monthly-1970-01"]),
    ],
)  # fmt: skip
def test_slots_have_names_that_a_snapshot_can_have(when: str, expected: list[str]) -> None:
    slots = [Slot.of(period, at(when)) for period in Period]
    assert [check_snapshot_name(slot.name) for slot in slots] == expected
    for slot in slots:
        assert slot.start <= at(when)
        assert Slot.of(slot.period, slot.start) == slot
        assert slot.before.start < slot.start


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    """The machine's own zone has summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield ZoneInfo("Europe/Berlin")
    monkeypatch.undo()
    time.tzset()


def test_each_hour_of_a_year_is_one_slot_whatever_the_machines_zone_does(berlin: ZoneInfo) -> None:
    hours = [YEAR + number * HOUR for number in range(365 * 24)]
    assert len({Slot.of(Period.HOURLY, hour + 1800).name for hour in hours}) == len(hours)
    local = [datetime.fromtimestamp(hour, berlin).strftime("%Y-%m-%d %H") for hour in hours]
    assert len(set(local)) == len(hours) - 1, "one hour comes twice on people's clocks"
    for period in Period:
        for hour in hours:
            key = datetime.fromtimestamp(hour, UTC).strftime(KEYS[period])
            start = datetime.fromtimestamp(Slot.of(period, hour).start, UTC)
            assert start.strftime(KEYS[period]) == key


# -- what is due --------------------------------------------------------------------------------------


def test_one_is_due_until_its_slot_has_one() -> None:
    now = at("2026-11-30T21:30")
    slot = due(USUAL, [], now=now)
    assert slot is not None
    assert slot.name == "hourly-2026-11-30T21"
    assert due(USUAL, [made(slot)], now=now) is None
    assert due(USUAL, [made(slot)], now=now + HOUR) == Slot.of(Period.HOURLY, now + HOUR)
    assert due(USUAL, [made(slot.before)], now=now) == slot
    assert due(USUAL, [by_hand(slot.name)], now=now) == slot, "a person's does not count"


def test_the_shortest_kind_is_made() -> None:
    slot = due(parse_schedule("monthly:2,weekly:1"), [], now=at("2026-11-30T21:30"))
    assert slot is not None
    assert slot.name == "weekly-2026-W49"


def test_of_many_missed_one_is_made_and_the_gap_is_told() -> None:
    early, now = Slot.of(Period.HOURLY, at("2026-11-30T03:10")), at("2026-11-30T21:30")
    slot = due(USUAL, [made(early)], now=now)
    assert slot is not None
    assert missed_before(slot, [made(early)]) == (
        "none between hourly-2026-11-30T03 and hourly-2026-11-30T21"
    )
    assert missed_before(slot, [made(slot.before)]) == ""
    assert missed_before(slot, []) == ""
    assert missed_before(slot, [by_hand("x")]) == ""


# -- what is kept -------------------------------------------------------------------------------------


def expected(schedule: Schedule, history: Sequence[Snapshot]) -> set[str]:
    """Of each kind of slot, the newest in each of the latest ones; of all that were ever made."""
    found: set[str] = set()
    for period in schedule.periods:
        newest: dict[str, str] = {}
        for each in history:
            assert each.slot_start is not None
            key = datetime.fromtimestamp(each.slot_start, UTC).strftime(KEYS[period])
            newest.pop(key, None)
            newest[key] = each.name
        found |= set(list(newest.values())[-schedule.count(period) :])
    return found


@pytest.mark.parametrize(
    ("text", "missed"),
    [(str(USUAL), 0.0), (str(USUAL), 0.3), ("hourly:2,daily:30", 0.1), ("hourly:1,weekly:3", 0.02)],
)
def test_a_year_hour_by_hour(text: str, missed: float, berlin: ZoneInfo) -> None:
    """What is removed step by step leaves what would be kept of all that was ever made; also where hours and weeks are missed."""
    schedule, dice = parse_schedule(text), random.Random(text)
    history: list[Snapshot] = []
    there: list[Snapshot] = []
    for number in range(365 * 24):
        now = YEAR + number * HOUR + dice.uniform(0, HOUR - 1)
        away = 200 * 24 <= number < 215 * 24
        slot = due(schedule, there, now=now)
        if slot is None or (missed and (away or dice.random() < missed)):
            continue
        history.append(made(slot))
        there.append(made(slot))
        gone = not_kept(schedule, there)
        there = [each for each in there if each not in gone]
        assert there[-1].name == slot.name, "the newest stays"
        assert len(there) <= sum(map(schedule.count, Period))
        if number % 311 == 0 or number == 365 * 24 - 1:
            assert set(names(there)) == expected(schedule, history)
    assert len(set(names(history))) == len(history), "none was made twice"
    if not missed:
        assert len(history) == 365 * 24


def test_what_people_made_is_not_counted_and_not_removed() -> None:
    slots = [Slot.of(Period.HOURLY, YEAR + number * HOUR) for number in range(5)]
    mixed = [by_hand("a"), made(slots[0]), made(slots[1]), by_hand("b"), made(slots[2])]
    assert names(not_kept(parse_schedule("hourly:2"), mixed)) == [slots[0].name]


def test_a_clock_that_was_wrong_removes_one_at_most_and_does_not_stay_in_the_way() -> None:
    """Years ahead or back: what it made is one slot, and goes when so many others were made after it."""
    schedule = parse_schedule("hourly:3,daily:2")
    for wrong in (at("2099-01-01T00:00"), 0.0):
        there = [made(Slot.of(Period.HOURLY, YEAR + number * HOUR)) for number in range(3)]
        there.append(made(Slot.of(Period.HOURLY, wrong)))
        assert names(not_kept(schedule, there)) == [there[0].name]
        for number in range(3, 6):
            slot = due(schedule, there, now=YEAR + number * HOUR)
            assert slot is not None
            there.append(made(slot))
        assert there[3] not in not_kept(schedule, there), "it is the last of its day"
        there.append(made(Slot.of(Period.HOURLY, YEAR + 30 * HOUR)))
        assert there[3] in not_kept(schedule, there)


def test_a_schedule_that_keeps_fewer_keeps_the_newest() -> None:
    there = [made(Slot.of(Period.HOURLY, YEAR + number * HOUR)) for number in range(24)]
    assert names(not_kept(parse_schedule("hourly:2"), there)) == names(there[:-2])
    assert names(not_kept(parse_schedule("monthly:2"), there)) == names(there[:-1])


# -- policies -----------------------------------------------------------------------------------------


def policy(name: str, text: str, **labels: str) -> SchedulePolicy:
    return SchedulePolicy(name=name, schedule=parse_schedule(text), labels=labels)


def test_a_volumes_own_schedule_counts_alone_and_of_policies_the_most() -> None:
    policies = [
        policy("b", "hourly:1,weekly:4", team="web"),
        policy("a", "daily:7,weekly:2", team="web"),
        policy("c", "monthly:9", team="web", stage="prod"),
    ]
    own = parse_schedule("hourly:2")
    assert in_force(own, {"team": "web"}, policies) == InForce(own)
    found = in_force(None, {"team": "web", "x": "y"}, policies)
    assert str(found) == "hourly:1,daily:7,weekly:4 (by a, b)"
    assert in_force(None, {"team": "ci"}, policies) is None
    assert in_force(None, {}, policies) is None
    assert in_force(None, {"stage": "prod", "team": "web"}, policies[2:]) is not None
