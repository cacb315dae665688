"""Schedules of snapshots: which one is due at a time, and which of those that were made for it are kept.

All slots are of UTC: hours, days, weeks from Monday on (ISO 8601) and months. So no slot comes twice or is left out where summer
time begins or ends.

What is kept does not depend on the time that it is: of each kind of slot, the newest snapshot in each of the latest slots that have
one. "Newest" is by the order in the volume's record. So a clock that is wrong removes nothing by itself, and hours in which
nobody could make a snapshot make none of the others go.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pannier.core.errors import InvalidInput
from pannier.core.record import Part, Record
from pannier.core.snapshots import MOST_NAME_LETTERS, MOST_SNAPSHOTS, SNAPSHOT_PATTERN, Snapshot

MOST_SCHEDULED = 1000
"""What a schedule may keep of a volume. Those that are about to go, and those of people, have the rest of what a volume can have."""
assert MOST_SCHEDULED < MOST_SNAPSHOTS
_HOUR, _DAY, _WEEK = 3600, 86_400, 7 * 86_400
_FIRST_MONDAY = 4 * _DAY
"""Unix time of 5 January 1970."""
_NAME = re.compile(SNAPSHOT_PATTERN, re.ASCII)


class Period(StrEnum):
    """The kinds of slots, the shortest first."""

    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


_FORMS = {
    Period.HOURLY: "%Y-%m-%dT%H",
    Period.DAILY: "%Y-%m-%d",
    Period.WEEKLY: "%G-W%V",
    Period.MONTHLY: "%Y-%m",
}


def _start(period: Period, at: float) -> float:
    match period:
        case Period.HOURLY:
            return at - at % _HOUR
        case Period.DAILY:
            return at - at % _DAY
        case Period.WEEKLY:
            return at - (at - _FIRST_MONDAY) % _WEEK
        case Period.MONTHLY:
            return at - at % _DAY - (time.gmtime(at).tm_mday - 1) * _DAY


@dataclass(frozen=True, slots=True)
class Slot:
    """An hour, a day, a week or a month.

    Attributes:
        start: Unix time at which it begins.
    """

    period: Period
    start: float

    @classmethod
    def of(cls, period: Period, at: float) -> Slot:
        """The slot in which a Unix time is."""
        return cls(period, _start(period, at))

    @property
    def before(self) -> Slot:
        """The slot before it."""
        return Slot.of(self.period, self.start - 1)

    @property
    def name(self) -> str:
        """What the snapshot of the slot is called: no volume has two of one name, so none has two of a slot."""
        return f"{self.period}-{time.strftime(_FORMS[self.period], time.gmtime(self.start))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Part):
    """Of how many slots of each kind a snapshot is kept. At least one of them is not 0."""

    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @classmethod
    def of(cls, counts: Mapping[Period, int]) -> Schedule:
        """The schedule that keeps so many of each kind."""
        return cls(
            hourly=counts.get(Period.HOURLY, 0),
            daily=counts.get(Period.DAILY, 0),
            weekly=counts.get(Period.WEEKLY, 0),
            monthly=counts.get(Period.MONTHLY, 0),
        )

    def count(self, period: Period) -> int:
        """Of how many slots of a kind."""
        return int(getattr(self, period))

    @property
    def periods(self) -> tuple[Period, ...]:
        """The kinds of which it keeps any, the shortest first."""
        return tuple(period for period in Period if self.count(period))

    def keeps_at_least(self, other: Schedule) -> bool:
        """Whether it keeps of each kind as many as another one."""
        return all(self.count(period) >= other.count(period) for period in Period)

    def __str__(self) -> str:
        return ",".join(f"{period}:{self.count(period)}" for period in self.periods)


def parse_schedule(text: str) -> Schedule:
    """Read ``hourly:24,daily:7``.

    Raises:
        InvalidInput: it cannot be read, or no volume can have so many snapshots.
    """
    counts: dict[Period, int] = {}
    for part in text.split(","):
        period, _, number = part.strip().partition(":")
        if period not in tuple(Period) or period in counts or not _is_count(number):
            raise InvalidInput(
                f"{text[:80]!r} cannot be a schedule, because of {part.strip()[:40]!r}",
                remedy="write hourly:24,daily:7,weekly:5,monthly:12 or some of these, each once, with numbers from 1 on",
            )
        counts[Period(period)] = int(number)
    if sum(counts.values()) > MOST_SCHEDULED:
        raise InvalidInput(
            f"the schedule {text[:80]!r} keeps {sum(counts.values())} snapshots",
            remedy=f"keep at most {MOST_SCHEDULED} in all",
        )
    return Schedule.of(counts)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) > 0


def due(schedule: Schedule, snapshots: Iterable[Snapshot], *, now: float) -> Slot | None:
    """The slot for which a snapshot is to be made; None where there is one. Of those that were missed, none is made up for.

    Args:
        now: Unix time.
    """
    slot = Slot.of(schedule.periods[0], now)
    made = any(each.name == slot.name and each.slot_start is not None for each in snapshots)
    return None if made else slot


def not_kept(schedule: Schedule, snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    """Those that were made for a schedule and that this one does not keep.

    Args:
        snapshots: all of a volume, in the order in which they were made.
    """
    ours = [each for each in reversed(snapshots) if each.slot_start is not None]
    times = [each.slot_start or 0.0 for each in ours]
    kept = {
        ours[place].name
        for period in schedule.periods
        for place in newest_in_slots(period, schedule.count(period), times)
    }
    return tuple(
        each for each in snapshots if each.slot_start is not None and each.name not in kept
    )


def newest_in_slots(period: Period, count: int, times: Sequence[float]) -> list[int]:
    """The places of those of some Unix times, the newest first, that are the newest of the latest ``count`` slots that have one."""
    slots: set[float] = set()
    places = []
    for place, at in enumerate(times):
        start = _start(period, at)
        if start not in slots and len(slots) < count:
            slots.add(start)
            places.append(place)
    return places


def last_made(snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """The newest that was made for a schedule."""
    return next((each for each in reversed(snapshots) if each.slot_start is not None), None)


def missed_before(slot: Slot, snapshots: Sequence[Snapshot]) -> str:
    """Between which slots none was made, in words, when that of ``slot`` is made; empty where none is missing.

    A volume that has no snapshot of a schedule yet has missed none.
    """
    last = last_made(snapshots)
    if last is None or last.slot_start is None or last.slot_start >= slot.before.start:
        return ""
    return f"none between {last.name} and {slot.name}"


# -- policies: schedules of all volumes that have a label --------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePolicy(Record):
    """A schedule of all volumes that have some labels.

    Attributes:
        labels: a volume has to have all of them; at least one.
    """

    name: str
    schedule: Schedule
    labels: dict[str, str]

    def applies_to(self, labels: Mapping[str, str]) -> bool:
        """Whether it is for a volume that has these labels."""
        return self.labels.items() <= labels.items()


@dataclass(frozen=True, slots=True)
class InForce:
    """The schedule of a volume.

    Attributes:
        policies: the names of those that it comes from; empty where it is the volume's own.
    """

    schedule: Schedule
    policies: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = f" (by {', '.join(self.policies)})" if self.policies else ""
        return f"{self.schedule}{by}"


def in_force(
    own: Schedule | None, labels: Mapping[str, str], policies: Iterable[SchedulePolicy]
) -> InForce | None:
    """What counts for a volume as an image: its own schedule, else the most of each kind that its policies say; None without any."""
    if own is not None:
        return InForce(own)
    ours = sorted(
        (each for each in policies if each.applies_to(labels)), key=lambda each: each.name
    )
    if not ours:
        return None
    most = {period: max(each.schedule.count(period) for each in ours) for period in Period}
    return InForce(Schedule.of(most), tuple(each.name for each in ours))


def check_policy_name(name: str) -> str:
    """Return ``name`` if it can name a policy.

    Raises:
        InvalidInput: it cannot.
    """
    if _NAME.fullmatch(name) and not name.endswith("\n"):
        return name
    raise InvalidInput(
        f"{name[:40]!r} cannot name a policy",
        remedy=f"use 1 to {MOST_NAME_LETTERS} letters, digits, '_', '.' or '-', the first a letter or digit",
    )
