"""A volume with a thousand snapshots, against one with ten: listing them, going elsewhere, and a takeover."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from demo import looks

from bench.figures import Figure, Result, Rounds, Target, turns
from bench.timed import run_timed
from bench.world import BUSYBOX, MOUNTS, BenchError, Wish, World, laboratory
from pannier.lab import LabError

_VOLUMES = {"ours": "bench-many-snapshots", "theirs": "bench-few-snapshots"}
_FEW = 10
_COPIES_SECONDS = 600
"""Until a new copy has all snapshots."""
_NO_SLOWER = Target(at_most=1.1)


def measure(wish: Wish) -> Result:
    """See the module."""
    many, rounds, losses = wish.pick((1000, 10, 3), (100, 4, 1))
    collected = Rounds()
    with laboratory("bench-many", say=wish.say, nodes=3, disks="cuttable") as lab:
        lab.build_busybox(BUSYBOX)
        world = World(lab, wish.quick, wish.say)
        here, there, _ = world.nodes
        for leg, count in {"ours": many, "theirs": _FEW}.items():
            _make(world, here, there, _VOLUMES[leg], count)
            world.say("   both copies have them")
        _list(world, there, rounds, collected)
        legs = list(turns(rounds, *_VOLUMES))
        for number in range(rounds):
            order = legs[2 * number : 2 * number + 2]
            _mount(world, (there, here)[number % 2], order, collected)
        for _ in range(losses):
            _lose(world, here, there, collected)
            here, there = there, here
    return Result(
        title=f"{many:,} snapshots of a volume",
        reference=f"the same with a volume that has {_FEW} snapshots, on the same nodes.",
        how=(
            f"Three machines, copies=2; between two snapshots 4 KiB were written; each copy has all. `pannier volume snapshot ls`, "
            f"{rounds} rounds. `docker run` on the other node, which takes the volume from its holder and mounts it, "
            f"{rounds} rounds, there and back. Then the holder of both loses power, and `docker run` begins on the "
            f"other node for both at once; the time is from the power cut to the container's end, {losses} rounds."
        ),
        figures=(
            Figure(
                what=f"`snapshot ls` of {many:,}",
                ours=collected.of("ls", "ours"),
                theirs=collected.of("ls", "theirs"),
                target=Target(at_most=0.3, of="value"),
            ),
            Figure(
                what="`docker run` on the other node",
                ours=collected.of("mount", "ours"),
                theirs=collected.of("mount", "theirs"),
                target=_NO_SLOWER,
            ),
            Figure(
                what="a takeover, from the power cut to the end of a container elsewhere",
                ours=collected.of("takeover", "ours"),
                theirs=collected.of("takeover", "theirs"),
                target=_NO_SLOWER,
            ),
        ),
    )


def _make(world: World, holder: str, other: str, volume: str, count: int) -> None:
    """A volume with snapshots; its copy is made after that, which is quicker."""
    world.volume(holder, volume, nodes=f"{holder},{other}")
    with world.held(holder, volume):
        world.probe(holder, "many_snapshots", f"{MOUNTS}/{volume}", volume, count)
    world.say(f"   {count} snapshots are made")
    world.sh(holder, f"pannier volume set {volume} -o copies=2 -o durability=fsync >/dev/null")
    path = f"/v1/volumes/{volume}/snapshots/number-{count - 1:04}"

    def arrived() -> bool:
        daemon = looks.daemon(world.lab, holder)
        return len(daemon.get(path)["on"]) == 2 and _in_sync(world, holder, volume)

    world.wait(f"all {count} snapshots are on {other}", arrived, seconds=_COPIES_SECONDS)


def _in_sync(world: World, node: str, volume: str) -> bool:
    try:
        return len(looks.ask(world.lab, node, "volume", "show", volume)["in_sync"]) == 1
    except LabError:
        return False


def _list(world: World, node: str, rounds: int, collected: Rounds) -> None:
    legs = list(turns(rounds + 1, *_VOLUMES))
    commands = [["pannier", "volume", "snapshot", "ls", _VOLUMES[leg]] for leg in legs]
    for leg, timed in list(zip(legs, run_timed(world, node, *commands), strict=True))[2:]:
        collected.add("ls", leg, timed.seconds)


def _mount(world: World, node: str, legs: list[str], collected: Rounds) -> None:
    """Have both volumes come to a node, one after the other."""
    for volume in _VOLUMES.values():
        world.wait("the copy is in sync", partial(_in_sync, world, node, volume))
    for leg in legs:
        run = ["docker", "run", "--rm", "--network", "none", "-v", f"{_VOLUMES[leg]}:/data"]
        (timed,) = run_timed(world, node, [*run, BUSYBOX, "true"])
        collected.add("mount", leg, timed.seconds)


def _lose(world: World, holder: str, other: str, collected: Rounds) -> None:
    """Cut the holder's power, and take both volumes over at the same time; then let it come back."""

    def use(volume: str) -> float:
        run = f"docker run --rm --network none -v {volume}:/data {BUSYBOX} test -s /data/0"
        world.sh(other, run)
        return time.monotonic() - began

    for volume in _VOLUMES.values():
        if looks.ask(world.lab, other, "volume", "show", volume)["holder"] != holder:
            raise BenchError(f"{volume} is not on {holder}")
        world.wait("the copy is in sync", partial(_in_sync, world, other, volume))
    began = time.monotonic()
    world.lab.crash(holder)
    with ThreadPoolExecutor(len(_VOLUMES)) as pool:
        found = dict(zip(_VOLUMES, pool.map(use, _VOLUMES.values()), strict=True))
    for leg, seconds in found.items():
        collected.add("takeover", leg, seconds)
        world.say(f"   takeover, {leg}: {seconds:.2f} s")
    world.lab.boot(holder)
