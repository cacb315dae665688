"""What `durability=interval` costs somebody who writes all the time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import CONTAINER, IMAGES, POOL, PYTHON, STAGING, World

_SINGLE = "bench-single"
_VOLUMES = {"ours": "bench-interval", "theirs": _SINGLE, "snapshots": _SINGLE, "sent": _SINGLE}
_BY_HAND = {"snapshots": "snapshots by hand", "sent": "snapshots sent by hand"}
_SNAPSHOTS, _RECEIVED = f"{POOL}/bench-snapshots", f"{POOL}/bench-received"
_PORT = 7777
_RATES = {"200 files a second": 200, "files as fast as can be": 0}


def measure(world: World) -> Result:
    """See the module."""
    rounds, seconds = world.pick(8, 2), world.pick(6, 4)
    holder, other = world.volume_in_sync(_VOLUMES["ours"], durability="interval", interval="1s")
    world.volume(holder, _SINGLE)
    collected = Rounds()
    for number, leg in enumerate(turns(rounds + 1, *_VOLUMES)):
        for what, rate in _RATES.items():
            world.settle()
            before, began = _busy_seconds(world), time.monotonic()
            with _by_hand(world, leg, holder, other) if leg in _BY_HAND else nullcontext():
                found = _write(world, holder, _VOLUMES[leg], seconds, rate)
            if number >= len(_VOLUMES):
                collected.add(what, leg, found["writing"] / found["files"])
                busy = (_busy_seconds(world) - before) / (time.monotonic() - began)
                collected.add(f"{what}: busy processors", leg, busy)
    world.sh(holder, f"docker volume rm {' '.join(dict.fromkeys(_VOLUMES.values()))}")
    return Result(
        title="Writing while copies are kept by intervals",
        reference="the same on a volume with one copy.",
        how=(
            f"In a container one program replaces small files of 3,000 bytes, 2,000 of them round and "
            f"round and without sync calls, for {seconds} s; durability=interval, interval=1s, "
            f"copies=2; {rounds} rounds after one to warm up. The first value is the mean time that "
            f"the program takes for one file. Both ends of the replication run on the writer's own "
            f"processors here; busy processors are those of all machines together, with the container's "
            f"start. By hand is `sync --file-system` of the mounted volume and a snapshot of its image "
            f"with btrfs' own program each second: what making generations costs with these file "
            f"systems, whoever makes them. Sent, each goes by `btrfs send -p` through a plain TCP "
            f"connection into `btrfs receive` and syncfs on the second node, where the file has "
            f"copy-on-write: what the engine costs, with no Pannier at all."
        ),
        figures=tuple(_figures(collected)),
    )


@contextmanager
def _by_hand(world: World, leg: str, node: str, other: str) -> Iterator[None]:
    """Somebody takes a snapshot of the volume with one copy each second, and may send it."""
    volume = world.volume_id(node, _SINGLE)
    tree, mounted = f"{IMAGES}/{volume}/live-1", f"{STAGING}/{volume}.1"
    receiver = ""
    peer: tuple[object, ...] = ()
    if leg == "sent":
        receiver = world.background(other, "receive", _RECEIVED, _PORT)
        peer = (world.address(other), _PORT)
    sender = world.background(node, "snapshots", tree, mounted, _SNAPSHOTS, *peer)
    try:
        yield
    finally:
        world.sh(node, f"systemctl stop {sender}; btrfs subvolume delete {_SNAPSHOTS}/* >/dev/null")
        if receiver:
            end = f"systemctl stop {receiver}; btrfs subvolume delete {_RECEIVED}/* >/dev/null"
            world.sh(other, end)


def _write(world: World, node: str, volume: str, seconds: int, rate: int) -> Any:
    within = (*CONTAINER, "-v", f"{volume}:/data", PYTHON)
    (found,) = world.probe(node, "stream", "/data", seconds, rate, within=within)
    return found


def _figures(collected: Rounds) -> Iterable[Figure]:
    for what in _RATES:
        yield Figure(
            what=what,
            ours=collected.of(what, "ours"),
            theirs=collected.of(what, "theirs"),
            target=Target(at_most=1.05),
        )
        for leg, by_hand in _BY_HAND.items():
            yield Figure(
                what=f"{what}: {by_hand}, against none",
                ours=collected.of(what, leg),
                theirs=collected.of(what, "theirs"),
            )
        yield Figure(
            what=f"{what}: Pannier, against snapshots sent by hand",
            ours=collected.of(what, "ours"),
            theirs=collected.of(what, "sent"),
        )
        busy = f"{what}: busy processors"
        yield Figure(
            what=busy,
            ours=collected.of(busy, "ours"),
            theirs=collected.of(busy, "theirs"),
            unit="cores",
        )


def _busy_seconds(world: World) -> float:
    """Seconds that all processors together have worked since the boot."""
    fields = world.sh(world.nodes[0], "head -1 /proc/stat; getconf CLK_TCK").split()
    user, nice, system, _idle, _wait, *other = (int(field) for field in fields[1:8])
    return (user + nice + system + sum(other)) / int(fields[-1])
