"""What a volume took of a disk over time: which samples are kept, and what they say of the days to come. Pure.

Times are those of the wall clock: for people. Nothing else decides by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pannier.core.record import Part

HOUR_SECONDS = 3600.0
DAY_SECONDS = 24 * HOUR_SECONDS
_KEPT = (
    (2 * DAY_SECONDS, HOUR_SECONDS),
    (14 * DAY_SECONDS, 6 * HOUR_SECONDS),
    (92 * DAY_SECONDS, DAY_SECONDS),
)
"""Up to which age one sample is kept of each span of which length: two days by the hour, two weeks by a quarter of a day, three months
by the day. That is 49 + 49 + 79 at most: about 10 KB for each volume and node."""
_LEAST_SPAN_SECONDS = 6 * HOUR_SECONDS
"""Over less time nothing is said of growth: a file that is written and removed would look like it."""
_MOST_DAYS = 3650.0
"""A volume that is full later than this does not grow, as people see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSample(Part):
    """What a node had of a volume at one time, in bytes of the disk.

    Attributes:
        at: Unix time.
        holds: whether the node held it; else it had a copy.
        files: of the volume, or of the newest generation of a copy.
        generations: what generations without a name keep besides; None where the driver does not tell it apart.
        snapshots: what only snapshots keep; None likewise.
    """

    at: float
    holds: bool
    files: int
    generations: int | None = None
    snapshots: int | None = None


@dataclass(frozen=True, slots=True)
class Growth:
    """What the samples say of the days to come.

    Attributes:
        bytes_per_day: by how much the files grew; negative where they shrank.
        full_in_days: when they have the volume's size if that goes on; None where it has none, or they do not grow.
    """

    bytes_per_day: float
    full_in_days: float | None


def is_due(samples: Sequence[UsageSample], now: float) -> bool:
    """Whether the hour of ``now`` has no sample yet. One whose time has not come was taken while the clock was wrong."""
    return not any(_slot(each.at, HOUR_SECONDS) == _slot(now, HOUR_SECONDS) for each in samples)


def thinned(samples: Iterable[UsageSample], now: float) -> tuple[UsageSample, ...]:
    """Those that are kept at a time, oldest first: of each span the first one. What is of a later time goes."""
    kept: dict[tuple[float, int], UsageSample] = {}
    for sample in sorted(samples, key=lambda each: each.at):
        span = next((length for most, length in _KEPT if now - sample.at < most), None)
        if span is not None and sample.at <= now:
            kept.setdefault((span, _slot(sample.at, span)), sample)
    return tuple(sorted(kept.values(), key=lambda each: each.at))


def _slot(at: float, span: float) -> int:
    return int(at // span)


def growth(samples: Sequence[UsageSample], *, size: int | None) -> Growth | None:
    """By how much a volume grows, by a line through its samples that has the least squares.

    Args:
        samples: of one node after the other, as it was held.
        size: what its files can fill; None for no size of its own.

    Returns:
        None where the samples say nothing yet.
    """
    if len(samples) < 3 or samples[-1].at - samples[0].at < _LEAST_SPAN_SECONDS:
        return None
    days = [(each.at - samples[0].at) / DAY_SECONDS for each in samples]
    middle = sum(days) / len(days)
    mean = sum(each.files for each in samples) / len(samples)
    spread = sum((day - middle) ** 2 for day in days)
    if not spread:
        return None
    slope = (
        sum((day - middle) * (each.files - mean) for day, each in zip(days, samples, strict=True))
        / spread
    )
    left = None if size is None else max(0, size - samples[-1].files)
    days_left = left / slope if left is not None and slope > 0 else None
    return Growth(slope, None if days_left is None or days_left > _MOST_DAYS else days_left)
