"""Events against statistics."""

from __future__ import annotations

from pannier.cut.account import Account


def based(counted: int) -> Account:
    account = Account()
    for _ in range(3):
        account.open()
        found = account.found_base(10, counted)
    assert found
    assert account.missing(10, counted) == 0
    account.close()
    return account


def test_what_was_told_is_what_was_counted() -> None:
    account = based(1000)
    account.note(20, 8)
    account.open()
    account.note(30, 16)
    assert account.missing(40, 1024) == 0


def test_an_event_after_the_moment_does_not_make_up_for_a_lost_one() -> None:
    """A lost event beside other writers: the sum alone would fit."""
    account = based(1000)
    account.open()
    account.note(50, 8)  # after the clock was read; the one that was counted was lost
    assert account.missing(40, 1008) == 8


def test_a_lost_event_is_missed_for_good() -> None:
    account = based(1000)
    account.open()
    assert account.missing(40, 1008) == 8
    account.close()
    account.note(50, 8)
    account.open()
    assert account.missing(60, 1016) == 8


def test_sectors_that_were_not_counted_are_a_difference_too() -> None:
    account = based(1000)
    account.note(20, 8)
    account.open()
    assert account.missing(40, 1000) == -8


def test_what_a_closed_account_hears_is_older_than_the_next_moment() -> None:
    account = based(0)
    account.open()
    account.note(5_000, 8)
    account.close()
    account.open()
    assert account.missing(100, 8) == 0


def test_a_base_must_be_found_three_times_in_a_row() -> None:
    account = Account()
    account.open()
    assert [account.found_base(at, 100) for at in (10, 20, 30)] == [False, False, True]


def test_what_completes_at_that_moment_makes_it_begin_again() -> None:
    account = Account()
    account.open()
    account.found_base(10, 100)
    account.found_base(20, 100)
    account.note(35, 8)
    assert not account.found_base(30, 108)  # counted, but stamped after the clock was read
    account.open()
    assert [account.found_base(at, 108) for at in (40, 50, 60)] == [False, False, True]
    assert account.missing(70, 108) == 0


def test_a_base_that_is_wrong_never_matches_later() -> None:
    """A request was told and not counted all the time: it was preempted."""
    account = Account()
    account.note(5, 8)
    account.open()
    assert [account.found_base(at, 100) for at in (10, 20, 30)] == [False, False, True]
    assert account.missing(40, 108) == 8
    account.note(45, 16)
    account.open()
    assert account.missing(50, 124) == 8
