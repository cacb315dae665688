"""What a volume took of the pools over time, as the API answers it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pannier.core.usage import HOUR_SECONDS, UsageSample, growth


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSampleView:
    """What a node had of a volume at one time, in bytes of the disk.

    Attributes:
        at: Unix time.
        holds: whether the node held it; else it had a copy.
        files_bytes: of the volume, or of the newest generation of a copy.
        generations_bytes: what generations without a name keep besides. None where the driver does not tell it apart.
        snapshots_bytes: what only snapshots keep; None likewise.
    """

    node: str
    at: float
    holds: bool
    files_bytes: int
    generations_bytes: int | None = None
    snapshots_bytes: int | None = None

    @property
    def all_bytes(self) -> int:
        """All that the node has of it."""
        return self.files_bytes + (self.generations_bytes or 0) + (self.snapshots_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUsageView:
    """What a volume took over time.

    Attributes:
        size_bytes: what its files can fill; None where it has no size of its own.
        samples: of all nodes that answered, oldest first.
        growth_bytes_per_day: by how much its files grow; negative where they shrink, None where that cannot be said yet.
        full_in_days: when it is full if that goes on; None where it has no size, or does not grow.
        silent: nodes that did not answer.
    """

    volume: str
    size_bytes: int | None = None
    samples: list[UsageSampleView] = field(default_factory=list)
    growth_bytes_per_day: float | None = None
    full_in_days: float | None = None
    silent: list[str] = field(default_factory=list)

    @property
    def held(self) -> list[UsageSampleView]:
        """Those of whoever held it."""
        return [each for each in self.samples if each.holds]

    def since(self, at: float) -> VolumeUsageView:
        """The same from a Unix time on; so is what it says of growth."""
        later = [each for each in self.samples if each.at >= at]
        return usage_view(self.volume, later, size=self.size_bytes, silent=self.silent)

    def copies_at(self, sample: UsageSampleView) -> int:
        """What all copies together had at the time of a sample, in bytes: each by its last sample until then."""
        latest = {
            each.node: each.all_bytes
            for each in self.samples
            if not each.holds and each.at <= sample.at + HOUR_SECONDS and each.node != sample.node
        }
        return sum(latest.values())


def sample_views(node: str, samples: Iterable[UsageSample]) -> list[UsageSampleView]:
    """The samples of a node."""
    return [
        UsageSampleView(
            node=node,
            at=each.at,
            holds=each.holds,
            files_bytes=each.files,
            generations_bytes=each.generations,
            snapshots_bytes=each.snapshots,
        )
        for each in samples
    ]


def usage_view(
    volume: str, samples: Iterable[UsageSampleView], *, size: int | None, silent: Collection[str]
) -> VolumeUsageView:
    """All samples of a volume, in any order, with what they say."""
    by_time = sorted(samples, key=lambda each: (each.at, each.node))
    held = [
        UsageSample(at=each.at, holds=True, files=each.files_bytes)
        for each in by_time
        if each.holds
    ]
    found = growth(held, size=size)
    return VolumeUsageView(
        volume=volume,
        size_bytes=size,
        samples=by_time,
        growth_bytes_per_day=found.bytes_per_day if found else None,
        full_in_days=found.full_in_days if found else None,
        silent=sorted(silent),
    )
