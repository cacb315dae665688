"""What a Mount does next: every state, with each limit from below, at it and from above."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from pannier.core.mounting import (
    AskForVolume,
    GiveUp,
    LookAgain,
    MountHere,
    MountLimits,
    Occupied,
    Ready,
    State,
    Step,
    TakeOver,
    Unreachable,
    Unready,
    Wait,
    Why,
    needs_disk,
    next_step,
)
from pannier.core.volume import Grant, Volume, VolumeSpec

LIMITS = MountLimits(budget=95.0, silence=20.0, retry=0.5)
RECORD = Volume(name="vol", id="vol.1", spec=VolumeSpec(), grant=Grant("a", 1), created_at=0.0)
EARLY, AT_LIMIT, LATE = 0.0, 20.0, 20.001
IN_TIME, AT_BUDGET, OVER = 1.0, 95.0, 95.001

NO_DRIVER, DISK_FAILED = GiveUp(Why.NO_DRIVER), GiveUp(Why.DISK_FAILED)
SILENT, UNAVAILABLE, TIME_OVER = (
    GiveUp(Why.HOLDER_SILENT),
    GiveUp(Why.UNAVAILABLE),
    GiveUp(Why.TIME_OVER),
)
RETRY, AT_ONCE, LOOK = Wait(0.5), Wait(0.0), LookAgain(0.5)


# -- a try is due -----------------------------------------------------------------------------------

HERE, ELSEWHERE = "a", "b"
READY: dict[tuple[str, int, bool, bool, bool], Step] = {
    # on, copies, driver, disk, takeover possible
    (HERE, 1, True, True, False): MountHere(),
    (HERE, 1, True, True, True): MountHere(),
    (HERE, 1, True, False, False): MountHere(),  # what has only this copy may still be read
    (HERE, 1, True, False, True): MountHere(),
    (HERE, 1, False, True, False): NO_DRIVER,
    (HERE, 1, False, True, True): NO_DRIVER,
    (HERE, 1, False, False, False): NO_DRIVER,
    (HERE, 1, False, False, True): NO_DRIVER,
    (HERE, 2, True, True, False): MountHere(),
    (HERE, 2, True, True, True): MountHere(),
    (HERE, 2, True, False, False): DISK_FAILED,
    (HERE, 2, True, False, True): DISK_FAILED,
    (HERE, 2, False, True, False): NO_DRIVER,
    (HERE, 2, False, True, True): NO_DRIVER,
    (HERE, 2, False, False, False): NO_DRIVER,
    (HERE, 2, False, False, True): NO_DRIVER,
    (ELSEWHERE, 1, True, True, False): AskForVolume(),
    (ELSEWHERE, 1, True, True, True): TakeOver(),
    (ELSEWHERE, 1, True, False, False): DISK_FAILED,
    (ELSEWHERE, 1, True, False, True): DISK_FAILED,
    (ELSEWHERE, 1, False, True, False): NO_DRIVER,
    (ELSEWHERE, 1, False, True, True): NO_DRIVER,
    (ELSEWHERE, 1, False, False, False): NO_DRIVER,
    (ELSEWHERE, 1, False, False, True): NO_DRIVER,
    (ELSEWHERE, 2, True, True, False): AskForVolume(),
    (ELSEWHERE, 2, True, True, True): TakeOver(),
    (ELSEWHERE, 2, True, False, False): DISK_FAILED,
    (ELSEWHERE, 2, True, False, True): DISK_FAILED,
    (ELSEWHERE, 2, False, True, False): NO_DRIVER,
    (ELSEWHERE, 2, False, True, True): NO_DRIVER,
    (ELSEWHERE, 2, False, False, False): NO_DRIVER,
    (ELSEWHERE, 2, False, False, True): NO_DRIVER,
}


def record(copies: int) -> Volume:
    return replace(RECORD, spec=VolumeSpec(copies=copies))


@pytest.mark.parametrize("cell", READY)
def test_a_try_that_is_due(cell: tuple[str, int, bool, bool, bool]) -> None:
    node, copies, driver, disk, possible = cell
    state = Ready(
        record=record(copies), node=node, driver=driver, disk=disk, takeover_possible=possible
    )
    assert next_step(state, LIMITS) == READY[cell]


def test_the_table_of_tries_is_whole() -> None:
    yes_or_no = (True, False)
    cells = product((HERE, ELSEWHERE), (1, 2), yes_or_no, yes_or_no, yes_or_no)
    assert set(READY) == set(cells)


@pytest.mark.parametrize(
    ("node", "copies", "needed"),
    [(HERE, 1, False), (HERE, 2, True), (ELSEWHERE, 1, True), (ELSEWHERE, 2, True)],
)
def test_only_the_sole_copy_is_served_from_a_disk_that_takes_no_writes(
    node: str, copies: int, needed: bool
) -> None:
    assert needs_disk(record(copies), node=node) is needed


# -- after a try ------------------------------------------------------------------------------------

OCCUPIED = {IN_TIME: LOOK, AT_BUDGET: LOOK, OVER: TIME_OVER}
UNREACHABLE: dict[tuple[float, float, bool], Step] = {
    # silent, waited, takeover possible
    (EARLY, IN_TIME, False): LOOK,
    (EARLY, AT_BUDGET, False): LOOK,
    (EARLY, OVER, False): TIME_OVER,
    (EARLY, IN_TIME, True): AT_ONCE,
    (EARLY, AT_BUDGET, True): AT_ONCE,
    (EARLY, OVER, True): AT_ONCE,  # it will have the volume in a moment
    (AT_LIMIT, IN_TIME, False): LOOK,
    (AT_LIMIT, AT_BUDGET, False): LOOK,
    (AT_LIMIT, OVER, False): TIME_OVER,
    (AT_LIMIT, IN_TIME, True): AT_ONCE,
    (AT_LIMIT, AT_BUDGET, True): AT_ONCE,
    (AT_LIMIT, OVER, True): AT_ONCE,
    (LATE, IN_TIME, False): SILENT,
    (LATE, AT_BUDGET, False): SILENT,
    (LATE, OVER, False): SILENT,
    (LATE, IN_TIME, True): SILENT,
    (LATE, AT_BUDGET, True): SILENT,
    (LATE, OVER, True): SILENT,
}
UNREADY: dict[tuple[float, float, bool], Step] = {
    # silent, waited, held here
    (EARLY, IN_TIME, False): LOOK,
    (EARLY, AT_BUDGET, False): LOOK,
    (EARLY, OVER, False): TIME_OVER,
    (EARLY, IN_TIME, True): RETRY,
    (EARLY, AT_BUDGET, True): RETRY,
    (EARLY, OVER, True): RETRY,  # nobody else has it: there is nobody to name
    (AT_LIMIT, IN_TIME, False): LOOK,
    (AT_LIMIT, AT_BUDGET, False): LOOK,
    (AT_LIMIT, OVER, False): TIME_OVER,
    (AT_LIMIT, IN_TIME, True): RETRY,
    (AT_LIMIT, AT_BUDGET, True): RETRY,
    (AT_LIMIT, OVER, True): RETRY,
    (LATE, IN_TIME, False): UNAVAILABLE,
    (LATE, AT_BUDGET, False): UNAVAILABLE,
    (LATE, OVER, False): UNAVAILABLE,
    (LATE, IN_TIME, True): UNAVAILABLE,
    (LATE, AT_BUDGET, True): UNAVAILABLE,
    (LATE, OVER, True): UNAVAILABLE,
}


@pytest.mark.parametrize("waited", OCCUPIED)
def test_a_holder_that_answers_is_asked_again_within_the_budget(waited: float) -> None:
    assert next_step(Occupied(waited=waited), LIMITS) == OCCUPIED[waited]


@pytest.mark.parametrize("cell", UNREACHABLE)
def test_a_holder_that_does_not_answer(cell: tuple[float, float, bool]) -> None:
    silent, waited, gone = cell
    state = Unreachable(waited=waited, silent=silent, holder_gone=gone)
    assert next_step(state, LIMITS) == UNREACHABLE[cell]


@pytest.mark.parametrize("cell", UNREADY)
def test_something_needed_that_does_not_answer(cell: tuple[float, float, bool]) -> None:
    silent, waited, here = cell
    state = Unready(waited=waited, silent=silent, here=here)
    assert next_step(state, LIMITS) == UNREADY[cell]


def test_the_tables_of_waiting_are_whole() -> None:
    cells = set(product((EARLY, AT_LIMIT, LATE), (IN_TIME, AT_BUDGET, OVER), (True, False)))
    assert set(UNREACHABLE) == set(UNREADY) == cells


@pytest.mark.parametrize(
    "state",
    [
        Occupied(waited=3.0),
        Unreachable(waited=3.0, silent=1.0, holder_gone=False),
        Unready(waited=3.0, silent=1.0, here=False),
    ],
)
def test_the_limits_are_the_callers(state: State) -> None:
    assert next_step(state, MountLimits(budget=3.0, silence=1.0, retry=7.0)) == LookAgain(7.0)
    assert next_step(state, MountLimits(budget=2.0, silence=1.0, retry=7.0)) == TIME_OVER
