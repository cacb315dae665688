"""Writers in a container that make durable what they write, and what Pannier says that their sync calls waited for."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.world import CONTAINER, PYTHON, BenchError, World

_PARTS = ("local", "turn", "cut", "copies")


@dataclass(frozen=True, slots=True)
class Place:
    """Where writers write.

    Attributes:
        path: a directory in their container.
        options: of `docker run`.
    """

    path: str
    options: tuple[str, ...] = ()

    @classmethod
    def in_volume(cls, name: str) -> Place:
        """In a volume that has this name."""
        return cls("/data", ("-v", f"{name}:/data"))


@dataclass(frozen=True, slots=True)
class Writers:
    """Some processes in one container.

    Attributes:
        work: what each does again and again (``bench/probes/fsync.py``).
        count: how many they are.
    """

    work: Literal["overwrite", "append", "replace"]
    count: int = 1

    def run(self, world: World, node: str, place: Place, seconds: float) -> Calls:
        """Let them write."""
        container = (*CONTAINER, *place.options, PYTHON)
        arguments = (place.path, self.work, seconds, self.count)
        (found,) = world.probe(node, "fsync", *arguments, within=container)
        return Calls(**found)


@dataclass(frozen=True, slots=True)
class Calls:
    """What writers came to.

    Attributes:
        calls: how often they did their work.
        seconds: in what time.
        median: seconds of once, with its sync calls.
        p99: the same, the 99th percentile.
    """

    calls: int
    seconds: float
    median: float
    p99: float

    @property
    def rate(self) -> float:
        """In a second."""
        return self.calls / self.seconds


@dataclass(slots=True)
class Parts:
    """What sync calls have waited for, as `pannier volume show` tells it, by what was done."""

    _shown: dict[str, list[Any]] = field(default_factory=dict)

    def look(self, world: World, node: str, volume: str, what: str) -> None:
        """Note the last groups of a volume.

        Raises:
            BenchError: there are none. Then sync calls were not held, and what was measured is something else.
        """
        sync = world.json(node, "pannier", "volume", "show", volume, "-o", "json")["sync"]
        if not sync or not sync["groups"]:
            raise BenchError(f"{what}: no sync call on {volume} was held")
        self._shown.setdefault(what, []).append(sync)

    def notes(self) -> tuple[str, ...]:
        """A line for each thing that was done."""
        return tuple(_note(what, shown) for what, shown in self._shown.items())


def _note(what: str, shown: list[Any]) -> str:
    times = ", ".join(f"{part} {_times(part, shown)}" for part in _PARTS)
    groups, by_generation = (
        sum(sync[count] for sync in shown) for count in ("groups", "by_generation")
    )
    why = "; ".join(sorted({sync["last_reason"] for sync in shown} - {""}))
    reason = f" ({why})" if why else ""
    return (
        f"{what}: a group of sync calls took {_times('total', shown)} ms: {times}; {by_generation} of the {groups} "
        f"that were looked at waited for a generation{reason}"
    )


def _times(part: str, shown: list[Any]) -> str:
    """Milliseconds: the median of the rounds' medians, and the worst of all."""
    median = statistics.median(sync[part]["median"] for sync in shown)
    worst = max(sync[part]["worst"] for sync in shown)
    return f"{median * 1000:.2f} (worst {worst * 1000:.0f})"
