"""When restore drills are made by themselves, and what is told where none went well for too long. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.backup_plans import BEGUN, BackupState, parse_plan
from pannier.core.backups import BackupDrill, check_target_name
from pannier.core.errors import InvalidInput
from pannier.core.schedules import Period, Slot
from pannier.core.volume import Volume

_DAY = 86_400.0
_SECONDS = {Period.DAILY: _DAY, Period.WEEKLY: 7 * _DAY, Period.MONTHLY: 31 * _DAY}
"""What may be asked for, with the time between two drills. A drill reads all of a backup: none is made each hour."""
_OVERDUE = 2.0
"""So many times the time between two drills may pass without a good one before somebody is told: one may take long."""


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """What the option ``drill`` says: from which target, and how often."""

    target: str
    every: Period

    def __str__(self) -> str:
        return f"{self.target}:{self.every}"

    def slot(self, unix: float) -> str:
        """The day, week or month (UTC) of a Unix time: one good drill is made in each."""
        return Slot.of(self.every, unix).name


def parse_drill_plan(text: str) -> DrillPlan:
    """Read TARGET:daily|weekly|monthly.

    Raises:
        InvalidInput: it has another form.
    """
    name, _, every = text.partition(":")
    if every not in [str(each) for each in _SECONDS]:
        raise InvalidInput(
            f"drill={text[:80]} cannot be read",
            remedy=f"write TARGET:EVERY, such as offsite:weekly; EVERY is {', '.join(_SECONDS)}",
        )
    return DrillPlan(check_target_name(name), Period(every))


def first_backup_is_due(volume: Volume, plan: DrillPlan, state: BackupState | None) -> bool:
    """Whether a volume's option still has to make the first backup that could be tried.

    Args:
        state: what is remembered of the backups by that option.
    """
    if not volume.spec.backup or parse_plan(volume.spec.backup).target != plan.target:
        return False
    return state is None or not state.backup


def drill_is_due(plan: DrillPlan, last: BackupDrill | None, *, now: float, retry: float) -> bool:
    """Whether a drill is to be begun. One that a person made in the present slot counts, if it was good.

    Args:
        now: Unix time. A clock that jumps costs a drill too many, and none is missed for long.
        retry: seconds after which one that failed, or of whose end nothing is known, is tried again.
    """
    if last is None:
        return True
    slot = plan.slot(now)
    if last.good_at is not None and plan.slot(last.good_at) == slot:
        return False
    return last.slot != slot or abs(now - last.at) >= retry


def what_drills_lack(plan: DrillPlan, last: BackupDrill | None, *, now: float) -> str:
    """What somebody is told of a volume's drills besides that the last one failed; empty where all is well.

    Args:
        now: Unix time.
    """
    never = f"no restore drill from {plan.target} was made yet"
    if last is None:
        return never
    if last.good_at is None:
        begun_long_ago = last.failure == BEGUN and now - last.at > _SECONDS[plan.every]
        return never if begun_long_ago else ""
    if now - last.good_at > _OVERDUE * _SECONDS[plan.every]:
        days = (now - last.good_at) / _DAY
        return f"the last good restore drill from {plan.target} was {days:.1f} days ago"
    return ""
