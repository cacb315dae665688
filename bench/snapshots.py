"""Snapshots under writers: how long these wait, and when all copies have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.timed import Timed, run_timed
from bench.world import IMAGES, POOL, PYTHON, BenchError, World, probe_command

_VOLUME = "bench-snapshots"
_BY_HAND = f"{POOL}/bench-by-hand"
_WRITER = "bench-waits"
_WORK = {
    "write": "a writer without sync calls: its longest write",
    "sync": "a writer that syncs: its longest write with fdatasync",
}
_PAUSE_SECONDS = 0.5
"""Before each snapshot: what the one before has left to do is done by then."""
_LEAST_SECONDS = 0.00005
"""Shorter waits are not told apart."""
_TARGET = Target(at_most=1.3)


def measure(world: World) -> Result:
    """See the module."""
    rounds = world.pick(15, 3)
    collected = Rounds()
    holder, _ = world.volume_in_sync(_VOLUME, durability="fsync")
    live = f"{IMAGES}/{world.volume_id(holder, _VOLUME)}/live-1"
    world.sh(holder, f"mkdir {_BY_HAND}")
    for work in _WORK:
        _measure_under(world, holder, work, live, rounds, collected)
    world.sh(
        holder,
        f"btrfs subvolume delete {_BY_HAND}/* >/dev/null; rmdir {_BY_HAND}; docker volume rm {_VOLUME} >/dev/null",
    )
    return Result(
        title="Snapshots under writers",
        reference=(
            "`btrfs subvolume snapshot -r` of the same volume's image in the same pool, under the same writer; "
            "the start of that program is part of it."
        ),
        how=(
            f"In a container a Python program writes 8 KiB at random places of a file of 16 MiB, again and again, with half a "
            f"millisecond between them; copies=2, durability=fsync; {rounds} rounds after one to warm up. `pannier volume "
            f"snapshot create` runs on the holder, and ends when both copies have the snapshot. The longest write is "
            f"that of all that were under way during the command. Against *the command*, the reference is how long "
            f"btrfs' own program takes; against *the writer*, what the same writer waited for meanwhile."
        ),
        figures=tuple(_figures(collected)),
    )


def _measure_under(
    world: World, node: str, work: str, live: str, rounds: int, collected: Rounds
) -> None:
    legs = list(turns(rounds + 1, "ours", "theirs"))
    with _writing(world, node, work) as waits:
        commands = [
            ["pannier", "volume", "snapshot", "create", _VOLUME, f"{work}-{number}", "-o", "json"]
            if leg == "ours"
            else ["btrfs", "subvolume", "snapshot", "-r", live, f"{_BY_HAND}/{work}-{number}"]
            for number, leg in enumerate(legs)
        ]
        found = run_timed(world, node, *commands, pause=_PAUSE_SECONDS)
    for leg, timed in list(zip(legs, found, strict=True))[2:]:
        if leg == "ours" and len(json.loads(timed.said)["on"]) != 2:
            raise BenchError(f"not both copies have the snapshot: {timed.said}")
        collected.add(f"{work}: wait", leg, _longest(waits, timed))
        collected.add(f"{work}: command", leg, timed.seconds)


def _longest(waits: list[tuple[float, float]], timed: Timed) -> float:
    """The longest wait of those that were under way during a command."""
    ended = timed.began + timed.seconds
    during = [
        seconds for began, seconds in waits if began < ended and began + seconds > timed.began
    ]
    return max(during, default=_LEAST_SECONDS)


@contextmanager
def _writing(world: World, node: str, work: str) -> Iterator[list[tuple[float, float]]]:
    """Let a writer write during the block. Yields a list that has its waits after it: when each began, and its seconds."""
    command = probe_command("waits", "/data", work, _LEAST_SECONDS)
    run = ["docker", "run", "-d", "--network", "none", "--name", _WRITER]
    world.lab.run(node, [*run, "-v", f"{_VOLUME}:/data", PYTHON, *command])

    def said() -> list[str]:
        return world.sh(node, f"docker logs {_WRITER}").splitlines()

    waits: list[tuple[float, float]] = []
    try:
        world.wait("the writer writes", said)
        yield waits
        world.sh(node, f"docker stop {_WRITER} >/dev/null")
        waits += [(began, seconds) for began, seconds in json.loads(said()[-1])]
    finally:
        world.sh(node, f"docker rm -f {_WRITER} >/dev/null")


def _figures(collected: Rounds) -> Iterator[Figure]:
    for work, what in _WORK.items():
        wait, command = f"{work}: wait", f"{work}: command"
        yield Figure(
            what=f"{what}, against the command",
            ours=collected.of(wait, "ours"),
            theirs=collected.of(command, "theirs"),
            target=_TARGET,
        )
        yield Figure(
            what=f"{what}, against the writer",
            ours=collected.of(wait, "ours"),
            theirs=collected.of(wait, "theirs"),
        )
        yield Figure(
            what=f"`snapshot create` under {what.partition(':')[0]}, until all copies have it",
            ours=collected.of(command, "ours"),
            theirs=collected.of(command, "theirs"),
            target=Target(at_most=0.5, of="value"),
        )
