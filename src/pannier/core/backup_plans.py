"""When backups are made by themselves, how long they stay, and what is told where they were not made. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

from pannier.core.backups import check_target_name
from pannier.core.errors import InvalidInput
from pannier.core.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which backups of each volume stay: the newest ones, and the last of so many hours, days, weeks and
    months."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    def check(self) -> Retention:
        """This, if it keeps anything.

        Raises:
            InvalidInput: it keeps nothing.
        """
        if self.last + self.hourly + self.daily + self.weekly + self.monthly:
            return self
        raise InvalidInput(
            "nothing is said of which backups stay, and a prune would remove all of them",
            remedy="say it: --keep-last 3, --keep-daily 30, --keep-weekly 8, --keep-monthly 12",
        )


class Every(StrEnum):
    """How often a volume is backed up by itself."""

    HOUR = "hourly"
    DAY = "daily"
    WEEK = "weekly"

    @property
    def seconds(self) -> float:
        """The time between two backups."""
        return {Every.HOUR: 3600.0, Every.DAY: 86_400.0, Every.WEEK: 7 * 86_400.0}[self]


MOST_KEPT = 1000
"""Backups of a volume that stay by its option: of each hour for six weeks, of each day for nearly three years."""


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What the option ``backup`` says: where to, how often, and how many backups stay."""

    target: str
    every: Every
    keep: int

    def __str__(self) -> str:
        return f"{self.target}:{self.every}:{self.keep}"

    @property
    def retention(self) -> Retention:
        """Which backups stay."""
        match self.every:
            case Every.HOUR:
                return Retention(hourly=self.keep)
            case Every.DAY:
                return Retention(daily=self.keep)
            case Every.WEEK:
                return Retention(weekly=self.keep)

    def slot(self, unix: float) -> str:
        """The hour, day or week (UTC) of a Unix time: one backup is made in each."""
        form = {Every.HOUR: "%Y-%m-%dT%H", Every.DAY: "%Y-%m-%d", Every.WEEK: "%G-W%V"}[self.every]
        return time.strftime(form, time.gmtime(unix))


def parse_plan(text: str) -> BackupPlan:
    """Read TARGET:hourly|daily|weekly:KEEP.

    Raises:
        InvalidInput: it has another form.
    """
    name, _, rest = text.partition(":")
    every, _, keep = rest.partition(":")
    digits = keep.isascii() and keep.isdigit() and len(keep) <= 4
    if every not in tuple(Every) or not digits or not 1 <= int(keep) <= MOST_KEPT:
        raise InvalidInput(
            f"backup={text[:80]} cannot be read",
            remedy=f"write TARGET:EVERY:KEEP, such as offsite:daily:30; EVERY is {', '.join(Every)}, KEEP 1 to {MOST_KEPT}",
        )
    return BackupPlan(check_target_name(name), Every(every), int(keep))


BEGUN = "it was begun, and nothing is known of its end"
"""The failure of a backup that has just begun: if power fails, it is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupState(Record):
    """What the store remembers of a volume's backups by its option. The volume's id is in the key.

    Attributes:
        plan: the option for which that is so.
        slot: for which hour, day or week the last one was begun.
        tried_at: Unix time of that.
        failure: why it is not there; empty where it is.
        backup, made_at: the id of the last one that is there, and its Unix time; empty and None before the first.
        node: which node has read that one; empty where an earlier version has noted it.
        not_removed: why older ones that need not stay were not removed after that; empty where they were.
    """

    plan: str
    slot: str
    tried_at: float
    failure: str = ""
    backup: str = ""
    made_at: float | None = None
    node: str = ""
    not_removed: str = ""


def is_due(plan: BackupPlan, state: BackupState | None, *, now: float, retry: float) -> bool:
    """Whether a backup is to be begun.

    Args:
        now: Unix time. A clock that jumps costs a backup too many, and none is missed for long.
        retry: seconds after which one that failed is tried again.
    """
    if state is None or state.plan != str(plan) or state.slot != plan.slot(now):
        return True
    return bool(state.failure) and abs(now - state.tried_at) >= retry


_OVERDUE = 2.0
"""So many times the time between two backups may pass without one before somebody is told: one may take long."""


def what_is_wrong(plan: BackupPlan, state: BackupState | None, *, now: float) -> str:
    """What somebody is told of a volume's backups; empty where all is well.

    Args:
        now: Unix time.
    """
    if state is None:
        return f"no backup was made to {plan.target} yet"
    if state.failure and state.failure != BEGUN:
        return f"the last backup to {plan.target} failed: {state.failure}"
    if state.made_at is None:
        overdue = now - state.tried_at > plan.every.seconds
        return f"no backup was made to {plan.target} yet" if overdue else ""
    if now - state.made_at > _OVERDUE * plan.every.seconds:
        days = (now - state.made_at) / 86_400
        return f"the last backup to {plan.target} is {days:.1f} days old"
    if state.not_removed:
        return f"older backups at {plan.target} that need not stay were not removed: {state.not_removed}"
    return ""
