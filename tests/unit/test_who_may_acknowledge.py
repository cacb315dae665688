"""Who may acknowledge: every cell of the decision, and the boundaries of patience, lag and lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from math import inf

import pytest

from pannier.core.acknowledging import (
    Acknowledge,
    Claim,
    Confirmations,
    Decision,
    Leave,
    Reason,
    Refuse,
    Replica,
    SyncLimits,
    WaitFor,
    decide,
    in_sync_after,
    left_behind,
    may_join,
    refusal,
    rivals,
)
from pannier.core.lease import Standing
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec

LIMITS = SyncLimits(patience=5.0, lag_intervals=10, lag_seconds=10.0)
OLD, WANTED, NEWER = 3, 4, 5
"""Positions of the holder."""
RECORD = Volume(
    name="vol",
    id="vol.1",
    spec=VolumeSpec(copies=3, durability=Durability.FSYNC),
    grant=Grant("a", 1),
    replicas=("b", "c"),
    in_sync=("b", "c"),
    created_at=0.0,
)
MOVED = replace(RECORD, grant=Grant("b", 2), in_sync=("a",))
ANOTHER = replace(RECORD, id="vol.2", in_sync=("d",))
HELD = Standing(now=100.0, read=True, lease_until=103.0, promises={})
BOTH = frozenset({"b", "c"})
HAS = Replica(up=True, confirmed=WANTED)
ON_ITS_WAY = Replica(up=True, confirmed=OLD, sending=WANTED)


def claim(
    *,
    volume: Volume = RECORD,
    known: Volume | None = RECORD,
    required: frozenset[str] = BOTH,
    standing: Standing = HELD,
) -> Claim:
    return Claim(volume=volume, known=known, required=required, standing=standing)


def call(
    replicas: Mapping[str, Replica], *, waited: float = 1.0, paused: bool = False
) -> Confirmations:
    return Confirmations(position=WANTED, replicas=replicas, waited=waited, paused=paused)


# -- one replica that counts ----------------------------------------------------------------------------

GOOD, WAIT, GONE = Acknowledge(), "wait", Leave(frozenset({"b"}))
Cell = tuple[bool, int | None, int | None, bool, bool, Decision | str]
STATES: dict[str, Cell] = {
    # its lease, the position that it has, what is sent to it, the last try failed, one since then
    "has it": (True, WANTED, None, False, False, GOOD),
    "has a later one": (True, NEWER, None, False, False, GOOD),
    "has it, and is gone since": (False, WANTED, None, False, False, GOOD),
    "has it, and failed since": (True, WANTED, NEWER, True, True, GOOD),
    "gets it": (True, OLD, WANTED, False, False, WAIT),
    "gets it as its first": (True, None, WANTED, False, False, WAIT),
    "gets the one before": (True, OLD, OLD, False, False, WAIT),
    "gets nothing yet": (True, OLD, None, False, False, WAIT),
    "failed before, and gets it": (True, OLD, WANTED, True, False, WAIT),
    "failed before, and gets another": (True, OLD, OLD, True, False, GONE),
    "failed before, and gets nothing": (True, OLD, None, True, False, GONE),
    "failed since": (True, OLD, WANTED, True, True, GONE),
    "failed since, and its error is over": (True, OLD, WANTED, False, True, GONE),
    "its lease is gone": (False, OLD, WANTED, False, False, GONE),
    "its lease is gone, and nothing was sent": (False, None, None, False, False, GONE),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("waited", [0.0, 5.0, 5.001])
def test_a_replica_that_counts_confirms_or_is_waited_for_or_leaves(
    name: str, waited: float
) -> None:
    up, confirmed, sending, error, failed, expected = STATES[name]
    replica = Replica(up=up, confirmed=confirmed, sending=sending, error=error, failed=failed)
    wanted: Decision
    if isinstance(expected, str):
        in_time = waited <= LIMITS.patience
        wanted = WaitFor(frozenset({"b"}), LIMITS.patience - waited) if in_time else GONE
    else:
        wanted = expected
    for other in (HAS, replace(HAS, confirmed=NEWER)):
        found = decide(claim(), call({"b": replica, "c": other}, waited=waited), LIMITS)
        assert found == wanted


def test_of_several_only_those_leave_that_are_silent_and_the_others_are_waited_for() -> None:
    gone = replace(ON_ITS_WAY, up=False)
    assert decide(claim(), call({"b": gone, "c": ON_ITS_WAY}), LIMITS) == Leave(frozenset({"b"}))
    assert decide(claim(), call({"b": gone, "c": gone}), LIMITS) == Leave(BOTH)
    both = call({"b": ON_ITS_WAY, "c": ON_ITS_WAY})
    assert decide(claim(), both, LIMITS) == WaitFor(BOTH, 4.0)


def test_one_that_counts_and_gets_nothing_leaves() -> None:
    assert decide(claim(), call({"c": HAS}), LIMITS) == Leave(frozenset({"b"}))


def test_one_that_does_not_count_is_not_waited_for() -> None:
    alone = replace(RECORD, in_sync=("c",))
    silent = replace(ON_ITS_WAY, up=False)
    found = decide(
        claim(known=alone, required=frozenset({"c"})), call({"b": silent, "c": HAS}), LIMITS
    )
    assert found == Acknowledge()


def test_while_a_change_has_no_answer_either_state_of_the_record_counts() -> None:
    """Its leaving may not have happened; its joining may."""
    left = replace(RECORD, in_sync=("c",))
    silent = call({"b": ON_ITS_WAY, "c": HAS})
    assert decide(claim(known=left, required=BOTH), silent, LIMITS) == WaitFor(
        frozenset({"b"}), 4.0
    )
    found = decide(claim(known=RECORD, required=frozenset({"c"})), silent, LIMITS)
    assert found == WaitFor(frozenset({"b"}), 4.0)


# -- the right to acknowledge --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "required", "expected"),
    [
        (RECORD, BOTH, BOTH),
        (RECORD, frozenset(), BOTH),
        (replace(RECORD, in_sync=()), BOTH, BOTH),
        (replace(RECORD, in_sync=()), frozenset(), frozenset()),
        (None, frozenset({"b"}), frozenset({"b"})),
        (MOVED, frozenset({"b"}), frozenset({"b"})),
        (ANOTHER, frozenset({"b"}), frozenset({"b"})),
    ],
)
def test_rivals_are_all_that_any_possible_state_of_the_record_names(
    known: Volume | None, required: frozenset[str], expected: frozenset[str]
) -> None:
    assert rivals(RECORD, known, required) == expected


RECORDS = {"same": RECORD, "gone": None, "moved": MOVED, "another": ANOTHER}
STANDINGS = {
    "lease": HELD,
    "promises": replace(HELD, lease_until=-inf, promises={"b": 101.0, "c": 102.0}),
    "one promise": replace(HELD, lease_until=-inf, promises={"b": 101.0}),
    "a promise that ends now": replace(HELD, lease_until=-inf, promises={"b": 100.0, "c": 102.0}),
    "a lease that ends now": replace(HELD, lease_until=100.0),
    "nothing": replace(HELD, lease_until=-inf),
    "a record that was not read": replace(HELD, read=False, promises={"b": 101.0, "c": 102.0}),
}
PROVEN = ("lease", "promises")


@pytest.mark.parametrize(
    ("record", "standing", "min_copies"), [*product(RECORDS, STANDINGS, (1, 3, 4))]
)
def test_the_right_to_acknowledge(record: str, standing: str, min_copies: int) -> None:
    """First that it is held, then the proof of it, then the number of copies."""
    volume = replace(RECORD, spec=replace(RECORD.spec, min_copies=min_copies))
    known = RECORDS[record]
    found = refusal(claim(volume=volume, known=known, standing=STANDINGS[standing]))
    if record != "same":
        assert found == Refuse(Reason.NOT_HELD, BOTH)
    elif standing not in PROVEN:
        assert found == Refuse(Reason.UNPROVEN, BOTH)
    elif min_copies > 3:
        assert found == Refuse(Reason.TOO_FEW, BOTH)
    else:
        assert found is None


@pytest.mark.parametrize("standing", STANDINGS)
def test_without_rivals_only_the_reading_of_the_record_matters(standing: str) -> None:
    alone = replace(RECORD, in_sync=())
    found = refusal(
        claim(volume=alone, known=alone, required=frozenset(), standing=STANDINGS[standing])
    )
    unread = standing == "a record that was not read"
    assert found == (Refuse(Reason.UNPROVEN, frozenset()) if unread else None)


@pytest.mark.parametrize(
    ("own", "standing", "expected"),
    [
        (RECORD, HELD, Acknowledge()),
        (MOVED, HELD, Refuse(Reason.NOT_HELD, BOTH)),
        (RECORD, STANDINGS["nothing"], Refuse(Reason.UNPROVEN, BOTH)),
        (RECORD, STANDINGS["promises"], Acknowledge()),
    ],
)
def test_what_all_have_confirmed_still_needs_that_right(
    own: Volume, standing: Standing, expected: Decision
) -> None:
    found = decide(claim(known=own, standing=standing), call({"b": HAS, "c": HAS}), LIMITS)
    assert found == expected


def test_a_lost_lease_is_no_reason_not_to_let_a_silent_one_leave() -> None:
    """The store alone can tell whether that is still possible."""
    silent = call({"b": replace(ON_ITS_WAY, up=False), "c": HAS})
    found = decide(claim(standing=STANDINGS["nothing"]), silent, LIMITS)
    assert found == Leave(frozenset({"b"}))


@pytest.mark.parametrize("replica", [HAS, ON_ITS_WAY, replace(ON_ITS_WAY, up=False)])
def test_a_volume_that_is_being_given_away_is_refused_whatever_was_confirmed(
    replica: Replica,
) -> None:
    found = decide(claim(), call({"b": replica, "c": HAS}, paused=True), LIMITS)
    assert found == Refuse(Reason.PAUSED, BOTH)


# -- who counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_sync", "add", "drop", "expected"),
    [
        (("b", "c"), "", "", ("b", "c")),
        (("b", "c"), "", "b", ("c",)),
        (("b", "c"), "", "bc", ()),
        (("c",), "b", "", ("b", "c")),  # in the order of the replicas
        (("c",), "c", "", ("c",)),
        (("b",), "c", "b", ("c",)),
        ((), "b", "b", ()),
        ((), "d", "", ()),  # no replica (any more)
        (("b", "d"), "", "", ("b",)),
    ],
)
def test_in_sync_with_and_without_some(
    in_sync: tuple[str, ...], add: str, drop: str, expected: tuple[str, ...]
) -> None:
    record = replace(RECORD, in_sync=in_sync)
    assert in_sync_after(record, add=frozenset(add), drop=frozenset(drop)) == expected


@pytest.mark.parametrize(
    ("interval", "lag", "late"),
    [
        (0.1, 10.0, False),
        (0.1, 10.001, True),
        (1.0, 10.0, False),
        (1.0, 10.001, True),
        (60.0, 600.0, False),
        (60.0, 600.001, True),
    ],
)
def test_a_copy_is_left_behind_beyond_ten_intervals_and_ten_seconds(
    interval: float, lag: float, late: bool
) -> None:
    found = left_behind(("b", "c"), {"b": lag, "c": 0.0}, interval=interval, limits=LIMITS)
    assert found == (frozenset({"b"}) if late else frozenset())


@pytest.mark.parametrize(
    ("replica", "allowed"),
    [
        (Replica(up=True, confirmed=OLD), True),
        (Replica(up=True, confirmed=OLD, sending=WANTED, failed=True), True),
        (Replica(up=False, confirmed=OLD), False),
        (Replica(up=True, confirmed=None), False),
        (Replica(up=True, confirmed=OLD, error=True), False),
    ],
)
def test_a_replica_may_join_once_it_has_something_and_works(
    replica: Replica, allowed: bool
) -> None:
    out = replace(RECORD, in_sync=("c",))
    assert may_join("b", replica, known=out) is allowed
    assert may_join("b", replica, known=None) is allowed
    assert not may_join("b", replica, known=RECORD)
