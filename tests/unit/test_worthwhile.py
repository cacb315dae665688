"""When what may be in vain is tried."""

from __future__ import annotations

from pannier.core.worthwhile import MOST_WITHOUT, Worthwhile


def test_it_goes_on_for_as_long_as_it_is_useful() -> None:
    tries = Worthwhile()
    for _ in range(100):
        assert tries.due()
        tries.tried(useful=True)


def test_tries_in_vain_become_seldom_but_do_not_end() -> None:
    tries, pauses, pause = Worthwhile(), [], 0
    for _ in range(1000):
        if tries.due():
            tries.tried(useful=False)
            pauses.append(pause)
            pause = 0
        else:
            pause += 1
    assert pauses[:4] == [0, 1, 2, 4]
    assert max(pauses) == pauses[-1] == MOST_WITHOUT


def test_one_that_is_useful_makes_it_the_rule_again() -> None:
    tries = Worthwhile()
    for _ in range(300):
        if tries.due():
            tries.tried(useful=False)
    while not tries.due():
        pass
    tries.tried(useful=True)
    assert tries.due()


def test_a_group_that_could_not_try_leaves_it_due() -> None:
    tries = Worthwhile()
    assert tries.due()
    assert tries.due()
