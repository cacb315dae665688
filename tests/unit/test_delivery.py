"""How often a difference is tried, when everything is sent instead, and how the pauses grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.delivery import (
    Begin,
    Tries,
    after_arrival,
    after_failure,
    is_refusal,
    pause_after,
)
from pannier.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    DiskFailed,
    InvalidInput,
    NewerFormat,
    PannierError,
    PeerUnavailable,
    PoolFull,
    ProgramFailed,
    SetBack,
    Stale,
    StorageError,
    StoreUnavailable,
    VolumeNotFound,
)
from pannier.core.generation import Generation
from pannier.core.pace import CopiesPace

PACE = CopiesPace()
OLD, BASE = Generation(1, 1), Generation(1, 2)
FROM_BASE = Begin(BASE)
REFUSED = StorageError("cannot receive it: Operation not permitted")
SILENT = PeerUnavailable("the connection broke")


def failed(
    tries: Tries, *errors: PannierError, begin: Begin | None = FROM_BASE, times: int = 1
) -> Tries:
    for error in errors * times:
        tries = after_failure(tries, error, begin=begin, pace=PACE)
    return tries


def pause(tries: Tries) -> float:
    return pause_after(tries, REFUSED, PACE)


def test_a_few_refused_differences_to_one_base_and_it_is_none_any_more() -> None:
    tries = failed(Tries(), REFUSED, times=PACE.refused_tries - 1)
    assert tries.base(BASE) == BASE
    tries = failed(tries, REFUSED)
    assert tries.base(BASE) is None
    assert tries.base(OLD) == OLD
    assert tries.why == "3 differences in a row did not arrive: " + REFUSED.message


def test_the_reason_may_be_another_one_each_time() -> None:
    reasons = (Corrupt("unfit"), REFUSED, PannierError("a bug"))
    assert failed(Tries(), *reasons).base(BASE) is None


def test_failures_with_another_base_are_counted_for_that_one() -> None:
    tries = failed(Tries(), REFUSED, begin=Begin(OLD), times=PACE.refused_tries - 1)
    tries = failed(tries, REFUSED)
    assert (tries.base(OLD), tries.base(BASE)) == (OLD, BASE)


@pytest.mark.parametrize(
    "error",
    [
        Conflict("it is being received"),
        Denied("no certificate"),
        DiskFailed("read-only"),
        PoolFull("no room"),
        SetBack("set back"),
        Stale("taken over"),
        StoreUnavailable("no store"),
        VolumeNotFound("gone"),
    ],
)
def test_what_everything_would_meet_too_is_no_reason_to_send_everything(
    error: PannierError,
) -> None:
    assert not is_refusal(error)
    assert failed(Tries(), error, times=100) == Tries()


@pytest.mark.parametrize(
    "error", [Corrupt("x"), InvalidInput("x"), NewerFormat("x"), ProgramFailed("x")]
)
def test_all_else_is(error: PannierError) -> None:
    assert is_refusal(error)


def test_a_transfer_that_breaks_at_the_same_place_again_and_again_is_a_reason_in_the_end() -> None:
    tries = failed(Tries(), SILENT, times=PACE.broken_tries - 1)
    assert tries.base(BASE) == BASE
    assert failed(tries, SILENT).base(BASE) is None


def test_one_that_gets_further_each_time_is_none() -> None:
    tries = Tries()
    for arrived in range(10 * PACE.broken_tries):
        tries = failed(tries, SILENT, begin=Begin(BASE, arrived))
    assert tries.base(BASE) == BASE


def test_a_node_that_is_down_is_no_reason() -> None:
    assert failed(Tries(), SILENT, begin=None, times=1000) == Tries()


def test_a_difference_that_arrives_ends_it() -> None:
    tries = failed(Tries(), REFUSED, times=PACE.refused_tries)
    assert after_arrival(tries, begin=Begin(BASE)) == Tries()


def test_everything_that_arrives_ends_only_what_is_told() -> None:
    """If differences go on failing, all of the volume would be sent every few seconds."""
    tries = failed(Tries(), REFUSED, times=PACE.refused_tries)
    for arrived in (Begin(None), None):
        after = after_arrival(tries, begin=arrived)
        assert (after.why, after.base(BASE)) == ("", None)
        assert pause(failed(after, REFUSED)) > pause(tries)


def test_the_first_generation_of_a_copy_is_no_difference() -> None:
    tries = failed(Tries(), REFUSED, begin=Begin(None), times=10)
    assert (tries.unfit, tries.why, tries.whole) == (None, "", REFUSED.message)
    assert after_arrival(tries, begin=Begin(None)).whole == ""
    assert pause(tries) > PACE.retry_limit


def test_the_pauses_grow_to_their_limit_and_no_further() -> None:
    pauses = [pause(replace(Tries(), setbacks=n)) for n in range(1, 2000)]
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PACE.refused_limit
    assert pause_after(Tries(setbacks=9), SILENT, PACE) == 0, "a node that is away comes back"


_ERRORS = st.sampled_from([REFUSED, Corrupt("x"), SILENT, PoolFull("x"), None])


@given(outcomes=st.lists(_ERRORS, max_size=200))
def test_no_history_of_failures_sends_the_same_difference_for_ever(
    outcomes: list[PannierError | None],
) -> None:
    """A difference is refused so many times at most, whatever comes between; None is a lost answer of something that was there."""
    tries, refused = Tries(), 0
    for error in outcomes:
        begin = Begin(tries.base(BASE))
        if error is None:
            tries = after_arrival(tries, begin=None)
            refused = 0
            continue
        if begin.base == BASE and is_refusal(error):
            refused += 1
        tries = failed(tries, error, begin=begin)
        assert refused <= PACE.refused_tries
