"""Which samples of a volume's use are kept, hour by hour, and what they say of the days to come."""

from __future__ import annotations

import itertools
import random

import pytest

from pannier.core.usage import (
    DAY_SECONDS,
    HOUR_SECONDS,
    UsageSample,
    growth,
    is_due,
    thinned,
)

BEGAN = 1_767_225_600.0
GIB = 2**30


def sample(at: float, files: int = 0) -> UsageSample:
    return UsageSample(at=at, holds=True, files=files)


def test_hour_by_hour_for_200_days() -> None:
    """They are bounded, dense where they are young, and reach three months back without a gap of more than two days."""
    kept: tuple[UsageSample, ...] = ()
    most, chance = 0, random.Random(1)
    for hour in range(200 * 24):
        now = BEGAN + hour * HOUR_SECONDS + chance.uniform(0, 600)
        assert is_due(kept, now)
        kept = thinned([*kept, sample(now)], now)
        assert not is_due(kept, now)
        assert thinned(kept, now) == kept
        most = max(most, len(kept))
    assert most <= 180
    ages = [(now - each.at) / DAY_SECONDS for each in kept]
    assert 90 < ages[0] < 92.1
    gaps = [before - after for before, after in itertools.pairwise(ages)]
    assert max(gaps) < 2
    young = [age for age in ages if age < 2]
    assert len(young) >= 47


def test_what_was_taken_while_the_clock_was_wrong_goes() -> None:
    ahead = sample(BEGAN + 400 * DAY_SECONDS)
    kept = thinned([sample(BEGAN), ahead], BEGAN + HOUR_SECONDS)
    assert kept == (sample(BEGAN),)
    assert is_due(kept, BEGAN + HOUR_SECONDS)


def test_hours_that_were_missed_are_no_matter() -> None:
    now = BEGAN + 30 * DAY_SECONDS
    assert thinned([sample(BEGAN), sample(now)], now) == (sample(BEGAN), sample(now))


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_few_samples_say_nothing(samples: int) -> None:
    assert growth([sample(BEGAN + n * DAY_SECONDS) for n in range(samples)], size=None) is None


def test_some_hours_say_nothing() -> None:
    assert growth([sample(BEGAN + n * HOUR_SECONDS, n) for n in range(5)], size=None) is None
    assert growth([sample(BEGAN)] * 4, size=None) is None


def test_when_it_is_full() -> None:
    grows = [sample(BEGAN + n * DAY_SECONDS, n * GIB) for n in range(11)]
    found = growth(grows, size=20 * GIB)
    assert found is not None
    assert found.bytes_per_day == pytest.approx(GIB)
    assert found.full_in_days == pytest.approx(10)
    for size, files in ((None, grows), (20 * GIB, grows[::-1])):
        same = [sample(at.at, each.files) for at, each in zip(grows, files, strict=True)]
        found = growth(same, size=size)
        assert found is not None
        assert found.full_in_days is None
    over = growth(grows, size=5 * GIB)
    assert over is not None
    assert over.full_in_days == 0


def test_one_that_hardly_grows_is_not_said_to_get_full() -> None:
    slow = [sample(BEGAN + n * DAY_SECONDS, n) for n in range(10)]
    found = growth(slow, size=GIB)
    assert found is not None
    assert found.full_in_days is None
