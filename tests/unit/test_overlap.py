"""When a record is sent before the local sync has ended."""

from __future__ import annotations

from pannier.core.overlap import MOST_WITHOUT, Overlap


def test_it_goes_on_for_as_long_as_it_is_enough() -> None:
    overlap = Overlap()
    for _ in range(100):
        assert overlap.due()
        overlap.tried(enough=True)


def test_tries_in_vain_become_seldom_but_do_not_end() -> None:
    overlap, pauses, pause = Overlap(), [], 0
    for _ in range(1000):
        if overlap.due():
            overlap.tried(enough=False)
            pauses.append(pause)
            pause = 0
        else:
            pause += 1
    assert pauses[:4] == [0, 1, 2, 4]
    assert max(pauses) == pauses[-1] == MOST_WITHOUT


def test_one_that_is_enough_makes_it_the_rule_again() -> None:
    overlap = Overlap()
    for _ in range(300):
        if overlap.due():
            overlap.tried(enough=False)
    while not overlap.due():
        pass
    overlap.tried(enough=True)
    assert overlap.due()


def test_a_group_that_could_not_try_leaves_it_due() -> None:
    overlap = Overlap()
    assert overlap.due()
    assert overlap.due()
