"""Which backups are complete, and what goes."""

from __future__ import annotations

import subprocess

import pytest

from pannier.core.backup_plans import Retention
from pannier.core.backups import StoredBackup
from pannier.core.complete_backups import bytes_of, complete, is_about, settle, unix_of

MOST = 50 * 3600.0
NOW = "2026-03-01T12:00:00+00:00"
LAST = Retention(last=1)


def stored(id: str, at: str = NOW, *, volume: str = "data.1", **tags: str) -> StoredBackup:
    return StoredBackup(id=id, host="pannier-c0ffee", made_at=at, tags={"id": volume, **tags})


def outcome(
    *found: StoredBackup, retention: Retention = LAST, now: float = 0.0
) -> tuple[list[str], list[str], list[str]]:
    kept = settle(found, retention, now=now or unix_of(stored("")), most=MOST)
    return (
        [each.id for each in kept.stay],
        [each.id for each in kept.go],
        [each.id for each in kept.rest],
    )


def test_only_what_has_its_mark_is_a_backup() -> None:
    found = [
        stored("whole", "2026-03-01T10:00:00+00:00", run="1"),
        stored("cut-off", "2026-03-01T11:00:00+00:00", run="2"),
        stored("mark", end="1", bytes="77"),
        stored("earlier", "2026-02-01T12:00:00+00:00"),
        stored("mark-alone", end="3"),
    ]
    good = complete(found)
    assert [each.id for each in good] == ["earlier", "whole"]
    assert [bytes_of(each) for each in good] == [None, 77]


def test_what_is_cut_off_takes_no_place_of_a_whole_one() -> None:
    """It is the newest of its day: restic's own rule would keep it, and remove the whole one."""
    whole = stored("whole", "2026-03-01T10:00:00+00:00", run="1")
    mark = stored("mark", "2026-03-01T10:01:00+00:00", end="1")
    cut_off = stored("cut-off", "2026-03-01T11:00:00+00:00", run="2")
    for retention in (LAST, Retention(daily=1)):
        assert outcome(whole, mark, cut_off, retention=retention) == (["whole"], [], [])


def test_a_backup_goes_with_its_mark() -> None:
    old = stored("old", "2026-03-01T10:00:00+00:00", run="1")
    new = stored("new", run="2")
    marks = [stored("mark-old", end="1"), stored("mark-new", end="2")]
    assert outcome(old, new, *marks) == (["new"], ["old"], ["mark-old"])


def test_a_mark_is_about_its_volume() -> None:
    mark = StoredBackup(id="mark", host="", made_at=NOW, tags={"end": "1", "of": "data.1"})
    for each in (mark, stored("backup")):
        assert is_about(each, "data.1")
        assert not is_about(each, "data.2")


@pytest.mark.parametrize("half", [{"run": "1"}, {"end": "1"}])
def test_a_half_stays_for_as_long_as_the_other_may_come(half: dict[str, str]) -> None:
    alone = stored("half", **half)
    begun = unix_of(alone)
    assert outcome(alone, now=begun + MOST) == ([], [], [])
    assert outcome(alone, now=begun + MOST + 1) == ([], [], ["half"])
    assert outcome(alone, now=begun - MOST) == ([], [], []), "the clock was put back"


def test_volumes_are_kept_each_for_itself() -> None:
    one, other = stored("one"), stored("other", volume="data.2")
    assert outcome(one, other) == (["one", "other"], [], [])


@pytest.mark.parametrize(
    "retention",
    [
        Retention(last=2),
        Retention(hourly=3),
        Retention(daily=2),
        Retention(weekly=2),
        Retention(monthly=2),
        Retention(last=1, daily=2, monthly=3),
    ],
)
def test_the_newest_of_each_of_the_last_slots_stay(retention: Retention) -> None:
    """As by a rule that is written another way: for each slot, what no later one of the same slot has pushed out."""
    found = [
        stored(f"{month:02}{day:02}{hour:02}", f"2026-{month:02}-{day:02}T{hour:02}:30:00+00:00")
        for month in (1, 2, 3)
        for day in (1, 2, 9)
        for hour in (0, 5, 23)
    ]
    form = {"hourly": "%Y-%m-%dT%H", "daily": "%F", "weekly": "%G-%V", "monthly": "%Y-%m"}
    shown = {name: _shown(found, text) for name, text in form.items()}
    wanted = {each.id for each in found[len(found) - retention.last :]}
    for name, slots in shown.items():
        newest = dict(zip(slots, found, strict=True))
        count = getattr(retention, name)
        wanted |= {each.id for each in list(newest.values())[len(newest) - count :]}
    assert set(outcome(*found, retention=retention)[0]) == wanted


def _shown(found: list[StoredBackup], form: str) -> list[str]:
    """The slots as date(1) knows them."""
    times = "\n".join(each.made_at for each in found)
    done = subprocess.run(
        ["date", "-u", "-f", "-", f"+{form}"],
        input=times,
        text=True,
        check=True,
        capture_output=True,
    )
    return done.stdout.splitlines()
