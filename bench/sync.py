"""Sync calls on a volume with `durability=fsync`, against the same made by hand with btrfs's programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.files import SIZE, Load, compare
from bench.world import CONTAINER, POOL, PYTHON, World

_VOLUME, _OF_ONE = "bench-sync", "bench-sync-one"
_HERE, _THERE = f"{POOL}/bench-pipeline", f"{POOL}/bench-received"
_PORT = 7777
_WRITERS = (1, 4, 16)


@dataclass(slots=True)
class _Calls:
    """What the rounds gave: each one's median latency, 99th percentile, and calls per second."""

    rounds: Rounds = field(default_factory=Rounds)

    def add(self, leg: str, latencies: Sequence[float], seconds: float) -> None:
        self.rounds.add("median", leg, statistics.median(latencies))
        self.rounds.add("p99", leg, statistics.quantiles(latencies, n=100, method="inclusive")[98])
        self.rounds.add("rate", leg, len(latencies) / seconds)


def measure(world: World) -> Result:
    """See the module."""
    rounds, seconds = world.pick(5, 2), world.pick(5, 3)
    holder, other = world.volume_in_sync(_VOLUME, durability="fsync")
    world.volume_in_sync(_OF_ONE, durability="fsync")
    calls, stages = _measure_calls(world, holder, other, rounds, seconds)
    world.sh(holder, f"docker volume rm {_VOLUME} {_OF_ONE}")
    world.volume_in_sync(_VOLUME, durability="fsync", size=SIZE)
    load = world.pick(Load(12, 256, 8192, 5_000), Load(2, 64, 256, 500))
    others = compare(world, _VOLUME, load, sync=False)
    return Result(
        title="Sync calls on a volume with durability=fsync",
        reference=(
            "for a sync call, the same change made durable on both machines by hand: `btrfs "
            "subvolume snapshot -r`, `btrfs send -p` through a plain TCP connection into `btrfs "
            "receive`, and syncfs there, in the same two pools; for more writers, one writer; for all "
            "but sync calls, an ext4 image made by hand in the same pool, in the same container."
        ),
        how=(
            f"In a container each writer appends 4 KiB or overwrites 8 KiB of its own file and calls "
            f"fdatasync, for {seconds} s with each number of writers, {rounds} rounds; the one writer has a volume of its "
            f"own, with as little in it as the pipeline's. The last rows "
            f"are as in *reading and writing in a container*, with no sync call in what is measured; "
            f"meanwhile the other machine receives all that is written, on the same processors; "
            f"{load.rounds} rounds, a large file of {load.mebibytes} MiB, {load.operations:,} random "
            f"writes, {load.files:,} small files."
        ),
        figures=(*_figures(calls.rounds), *others),
        notes=(_stages_note(stages),),
    )


def _measure_calls(
    world: World, holder: str, other: str, rounds: int, seconds: int
) -> tuple[_Calls, list[dict[str, float]]]:
    calls, stages = _Calls(), []
    receiver = world.background(other, "receive", _THERE, _PORT)
    for leg in turns(rounds, "ours", "pipeline"):
        world.settle()
        if leg == "ours":
            for volume, writers in ((_OF_ONE, _WRITERS[:1]), (_VOLUME, _WRITERS[1:])):
                within = (*CONTAINER, "-v", f"{volume}:/data", PYTHON)
                for line in world.probe(holder, "fsync", "/data", seconds, *writers, within=within):
                    calls.add(f"{line['writers']}", line["latencies"], line["seconds"])
        else:
            found = world.probe(holder, "pipeline", _HERE, world.address(other), _PORT, seconds)
            stages += found
            calls.add("pipeline", [line["synced"] for line in found], seconds)
            calls.rounds.add("received", leg, statistics.median(x["received"] for x in found))
    world.sh(
        other,
        f"systemctl stop {receiver}; btrfs subvolume delete {_THERE}/* >/dev/null; rmdir {_THERE}",
    )
    return calls, stages


def _figures(rounds: Rounds) -> Iterable[Figure]:
    pipeline = rounds.of("median", "pipeline")
    yield Figure(
        what="one writer: a call, median",
        ours=rounds.of("median", "1"),
        theirs=pipeline,
        target=Target(at_most=1.3),
    )
    yield Figure(
        what="the same, against a pipeline that leaves the data in the other machine's memory",
        ours=rounds.of("median", "1"),
        theirs=rounds.of("received", "pipeline"),
    )
    for writers in _WRITERS[1:]:
        yield Figure(
            what=f"{writers} writers: a call, median",
            ours=rounds.of("median", f"{writers}"),
            theirs=pipeline,
        )
    for writers in _WRITERS:
        yield Figure(
            what=f"{writers} writer{'s' * (writers > 1)}: a call, 99th percentile",
            ours=rounds.of("p99", f"{writers}"),
            theirs=rounds.of("p99", "pipeline"),
        )
    for writers in _WRITERS[1:]:
        yield Figure(
            what=f"{writers} writers: calls per second, against one writer",
            ours=rounds.of("rate", f"{writers}"),
            theirs=rounds.of("rate", "1"),
            unit="/s",
            target=Target(at_least=5) if writers == _WRITERS[-1] else None,
        )


def _stages_note(stages: Sequence[dict[str, float]]) -> str:
    snapshot, received, synced = (
        statistics.median(line[what] for line in stages) * 1000
        for what in ("snapshot", "received", "synced")
    )
    return (
        f"the pipeline's {synced:.1f} ms: {snapshot:.1f} ms until the snapshot is there, "
        f"{received - snapshot:.1f} ms to send and receive, {synced - received:.1f} ms to sync; "
        f"starting three programs is part of it"
    )
