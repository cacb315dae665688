"""Sync calls on a volume with `durability=fsync`: against the same on a volume with one copy, and under load."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from bench.figures import Figure, Result, Rounds, Spread, Target, turns
from bench.many import create_volumes, remove_volumes
from bench.world import PYTHON, World, probe_command
from bench.writers import Parts, Place, Writers

_OURS, _OTHER, _AGED, _LOCAL = "bench-sync", "bench-sync-other", "bench-sync-aged", "bench-sync-one"
_SIZE = "2G"
_NEIGHBOUR_RATE = 100
"""MB/s."""
_LEAD_SECONDS = 3
"""A neighbour writes for so long before anything is measured: until its first pages are written out."""
_CAUGHT_UP_SECONDS = 3.0
"""A copy's data is no older when it follows: an interval, and some transfers."""

_ONE_OVERWRITES, _ONE_APPENDS = Writers("overwrite"), Writers("append")
_MANY = Writers("overwrite", 16)

_Of = Literal["median", "p99", "rate"]
_WORDS: Mapping[_Of, str] = {"median": "median", "p99": "99th percentile", "rate": "per second"}


@dataclass(frozen=True, slots=True)
class _Work:
    """What is compared with a volume with one copy.

    Attributes:
        targets: of what is told.
    """

    what: str
    writers: Writers
    targets: Mapping[_Of, Target | None]


_WORKS = (
    _Work(
        "one writer, 8 KiB overwrites, fdatasync",
        _ONE_OVERWRITES,
        {"median": Target(at_most=3.5), "p99": Target(at_most=4)},
    ),
    _Work(
        "one writer, 4 KiB appends, fdatasync",
        _ONE_APPENDS,
        {"median": Target(at_most=2.5), "p99": None},
    ),
    _Work(
        "one writer, a new file, fsync, rename, fsync of the directory",
        Writers("replace"),
        {"median": Target(at_most=2.5), "p99": None},
    ),
    _Work(
        "16 writers, 8 KiB overwrites of files of their own, fdatasync",
        _MANY,
        {"median": None, "p99": None, "rate": Target(at_least=0.35)},
    ),
)
_NOT_OURS = {
    "a 4 KiB append and fdatasync in the container's own /tmp": ("/tmp", _ONE_APPENDS),
    "an 8 KiB overwrite and fdatasync in a tmpfs, which has nothing to sync": (
        "/dev/shm",
        _ONE_OVERWRITES,
    ),
}


@dataclass(slots=True)
class _Bench:
    """A run of it: where, how long, and what was found.

    Attributes:
        seconds: of each round of each leg.
    """

    world: World
    node: str
    rounds: int
    seconds: int
    collected: Rounds = field(default_factory=Rounds)
    parts: Parts = field(default_factory=Parts)

    def warm_up(self, writers: Writers, *places: Place) -> None:
        """Make the files that will be written, and wait until the copies have them."""
        for place in places:
            writers.run(self.world, self.node, place, 1)
        self.catch_up()

    def measure(self, what: str, leg: str, writers: Writers, place: Place) -> None:
        """One round of a leg."""
        calls = writers.run(self.world, self.node, place, self.seconds)
        for of, value in {"median": calls.median, "p99": calls.p99, "rate": calls.rate}.items():
            self.collected.add(f"{what}: {of}", leg, value)

    def catch_up(self) -> None:
        """Wait until nothing of what was written is still on its way."""
        self.world.settle()
        for name in (_OURS, _OTHER, _AGED):
            self.world.wait(f"{name}: the copy has caught up", partial(self._follows, name))

    def _follows(self, name: str) -> bool:
        shown = self.world.json(self.node, "pannier", "volume", "show", name, "-o", "json")
        (copy,) = shown["copies"]
        lag = copy["lag_seconds"]
        known = copy["in_sync"] and copy["follows"] and lag is not None
        return bool(known and lag < _CAUGHT_UP_SECONDS)

    def figure(
        self, what: str, of: _Of, legs: Sequence[str], target: Target | None = None, title: str = ""
    ) -> Figure:
        """A row. The second leg is the reference."""
        ours, theirs = (self.collected.of(f"{what}: {of}", leg) for leg in legs)
        unit = "/s" if of == "rate" else "s"
        return Figure(
            what=title or f"{what}: {_WORDS[of]}",
            ours=ours,
            theirs=theirs,
            unit=unit,
            target=target,
        )


def measure(world: World) -> Result:
    """See the module."""
    listed = world.pick(1_000, 50)
    holder, _ = world.volume_in_sync(_OURS, durability="fsync", size=_SIZE)
    for name in (_OTHER, _AGED):
        world.volume_in_sync(name, durability="fsync", size=_SIZE)
    world.volume(holder, _LOCAL, size=_SIZE)
    bench = _Bench(world, holder, world.pick(5, 2), world.pick(5, 3))
    with world.held(holder, _OURS, _OTHER, _AGED, _LOCAL):
        figures = [*_against_local(bench)]
        beside, neighbour = _beside_a_neighbour(bench)
        aged, overwrites = _after_overwrites(bench)
        figures += [*beside, *aged, *_while_listed(bench, listed), *_not_ours(bench)]
    world.sh(holder, f"docker volume rm {_OURS} {_OTHER} {_AGED} {_LOCAL} >/dev/null")
    return Result(
        title="Sync calls on a volume with durability=fsync",
        reference=(
            "the same on a volume with copies=1: an ext4 image of the same pool, of which there is no "
            "copy, in a container whose sync calls are not held. For what goes on beside other work: "
            "the same while there is none; after many overwrites: the same volume before; for what "
            "is not on a volume: a container without any, with `--runtime runc`."
        ),
        how=(
            f"In a container each writer is a Python program; a value is the time in which it writes "
            f"something once and makes it durable. copies=2; {bench.seconds} s of each, "
            f"{bench.rounds} rounds. Overwrites are at random places of a file of 16 MiB. The neighbour "
            f"writes {_NEIGHBOUR_RATE} MB/s into a file of 512 MiB, from a container of its own, and makes no "
            f"sync call. 16 writers made the {overwrites:,} overwrites. While `pannier volume ls` runs again "
            f"and again, there are {listed:,} more volumes. The limit of the container's /tmp is the upper "
            f"quartile of the reference's rounds. Below is what the last 100 groups of sync calls of each round "
            f"waited for, as `pannier volume show` tells it."
        ),
        figures=tuple(figures),
        notes=(*bench.parts.notes(), neighbour),
    )


def _against_local(bench: _Bench) -> Iterator[Figure]:
    places = {"ours": Place.in_volume(_OURS), "local": Place.in_volume(_LOCAL)}
    for work in _WORKS:
        bench.world.say(f"   {work.what}")
        bench.warm_up(work.writers, *places.values())
        for leg in turns(bench.rounds, *places):
            bench.world.settle()
            bench.measure(work.what, leg, work.writers, places[leg])
            if leg == "ours":
                bench.parts.look(bench.world, bench.node, _OURS, work.what)
        for of, target in work.targets.items():
            yield bench.figure(work.what, of, ("ours", "local"), target)


# -- beside other work -------------------------------------------------------------------------------


def _beside_a_neighbour(bench: _Bench) -> tuple[list[Figure], str]:
    """Figures, and a note on what the neighbour came to."""
    volumes = {"in the same volume": _OURS, "in another volume": _OTHER}
    rates: list[float] = []
    bench.world.say("   beside a neighbour")
    bench.warm_up(_ONE_APPENDS, *map(Place.in_volume, volumes.values()))
    for leg in turns(bench.rounds, "beside", "quiet"):
        if leg == "beside":
            with _neighbour(bench, rates):
                _append_to_each(bench, volumes, leg)
            bench.catch_up()
        else:
            _append_to_each(bench, volumes, leg)
    same, other = (f"beside a neighbour {where}" for where in volumes)
    legs = "beside", "quiet"
    what = "4 KiB append, fdatasync"
    figures = [
        bench.figure(same, "median", legs, title=f"{same}: {what}, median"),
        bench.figure(
            same, "p99", legs, Target(at_most=0.05, of="value"), f"{same}: {what}, 99th percentile"
        ),
        bench.figure(other, "median", legs, title=f"{other}: {what}, median"),
        bench.figure(other, "p99", legs, Target(at_most=1.5), f"{other}: {what}, 99th percentile"),
    ]
    return figures, f"the neighbour came to {Spread.of(rates).median:.0f} MB/s"


def _append_to_each(bench: _Bench, volumes: Mapping[str, str], leg: str) -> None:
    for where, volume in volumes.items():
        what = f"beside a neighbour {where}"
        bench.measure(what, leg, _ONE_APPENDS, Place.in_volume(volume))
        if leg == "beside":
            bench.parts.look(bench.world, bench.node, volume, what)


@contextmanager
def _neighbour(bench: _Bench, rates: list[float]) -> Iterator[None]:
    """Somebody writes into the volume and makes no sync call; its rate is added at the end."""
    world, node = bench.world, bench.node
    run = ["docker", "run", "-d", "--network", "none", "-v", f"{_OURS}:/data", PYTHON]
    command = [*run, *probe_command("neighbour", "/data", _NEIGHBOUR_RATE)]
    container = str(world.lab.run(node, command).stdout).strip()
    try:
        time.sleep(_LEAD_SECONDS)
        yield
        world.sh(node, f"docker stop {container} >/dev/null")
        rates.append(world.json(node, "docker", "logs", container)["rate"])
    finally:
        world.sh(node, f"docker rm -f {container} >/dev/null")


def _while_listed(bench: _Bench, volumes: int) -> list[Figure]:
    what = (
        f"8 KiB overwrites, while `pannier volume ls` of {volumes:,} volumes runs again and again"
    )
    bench.world.say(f"   {what}")
    create_volumes(bench.world, volumes)
    ours = Place.in_volume(_OURS)
    bench.warm_up(_ONE_OVERWRITES, ours)
    for leg in turns(bench.rounds, "listed", "quiet"):
        if leg == "listed":
            unit = bench.world.background(bench.node, "listing")
            bench.measure(what, leg, _ONE_OVERWRITES, ours)
            bench.parts.look(bench.world, bench.node, _OURS, what)
            bench.world.sh(bench.node, f"systemctl is-active --quiet {unit}; systemctl stop {unit}")
        else:
            bench.measure(what, leg, _ONE_OVERWRITES, ours)
    remove_volumes(bench.world, volumes)
    legs = "listed", "quiet"
    return [
        bench.figure(what, "median", legs, Target(at_most=1.5)),
        bench.figure(what, "p99", legs),
    ]


# -- after many overwrites ---------------------------------------------------------------------------


def _after_overwrites(bench: _Bench) -> tuple[list[Figure], int]:
    """Figures, and how many overwrites there were."""
    most, seconds = bench.world.pick((1_000_000, 300), (20_000, 60))
    what = {
        "aged": "8 KiB overwrites, when there were many others",
        "local": "the same on the volume with one copy, which had no others",
    }
    places = {"aged": Place.in_volume(_AGED), "local": Place.in_volume(_LOCAL)}
    bench.warm_up(_ONE_OVERWRITES, *places.values())
    overwrites = 0
    for when in ("before", "after"):
        if when == "after":
            overwrites = _overwrite(bench, places["aged"], most, seconds)
            bench.catch_up()
        for leg in turns(bench.rounds, *places):
            bench.world.settle()
            bench.measure(what[leg], when, _ONE_OVERWRITES, places[leg])
            if leg == "aged":
                bench.parts.look(bench.world, bench.node, _AGED, f"{what[leg]}, {when}")
    legs = "after", "before"
    return [
        bench.figure(what["aged"], "median", legs, Target(at_most=1.1)),
        bench.figure(what["aged"], "p99", legs),
        bench.figure(what["local"], "median", legs),
    ], overwrites


def _overwrite(bench: _Bench, place: Place, most: int, seconds: int) -> int:
    """Overwrite so often, or for so long; how often it was."""
    bench.world.say(f"   up to {most:,} overwrites")
    done, until = 0, time.monotonic() + seconds
    while done < most and time.monotonic() < until:
        done += _MANY.run(bench.world, bench.node, place, 10).calls
    return done


# -- not on a volume ---------------------------------------------------------------------------------


def _not_ours(bench: _Bench) -> Iterable[Figure]:
    """What a container with a held volume pays for sync calls elsewhere."""
    for what, (path, writers) in _NOT_OURS.items():
        bench.world.say(f"   {what}")
        places = {
            "ours": Place(path, Place.in_volume(_OURS).options),
            "runc": Place(path, ("--runtime", "runc")),
        }
        for leg in turns(bench.rounds, *places):
            bench.world.settle()
            bench.measure(what, leg, writers, places[leg])
        limit = Spread.of(bench.collected.of(f"{what}: median", "runc")).high
        target = Target(at_most=limit, of="value") if path == "/tmp" else None
        yield bench.figure(what, "median", ("ours", "runc"), target)
