"""A thousand volumes, some of them mounted: listing them when nobody else answers, and what the daemon
takes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench.figures import Figure, Result, Target
from bench.world import BenchError, World, laboratory
from pannier.lab import Lab

_DAEMON, _ENGINE = "pannierd.service", "docker.service"


def measure(world: World) -> Result:
    """See the module."""
    rounds, seconds = world.pick(15, 3), world.pick(60, 10)
    volumes, mounted = world.pick((1000, 100), (100, 10))
    first = world.nodes[0]
    names = list(_names(world, first, volumes))[:mounted]
    plain = f"{world.lab.name}-plain"
    with laboratory(plain, say=world.say, nodes=1, cluster_kind="none") as other:
        create_volumes(world, volumes)
        _create_local(other, volumes)
        with world.held(first, *names):
            world.settle()
            with_all, reference = _list(world, other, rounds, volumes)
            world.say(f"   idle for {seconds} s")
            idle = _idle(world, seconds)
            with _alone(world):
                alone, reference_then = _list(world, other, rounds, volumes)
    listing = Target(at_most=0.3, of="value")
    figures = [
        Figure(what="docker volume ls", ours=with_all, theirs=reference, target=listing),
        Figure(
            what="docker volume ls, etcd and all peers down",
            ours=alone,
            theirs=reference_then,
            target=listing,
        ),
    ]
    for node in world.nodes:
        ours, theirs = idle[node][_DAEMON], idle[node][_ENGINE]
        where = f"{node}, {mounted} volumes mounted" if node == first else node
        figures += [
            Figure(
                what=f"resident memory on {where}",
                ours=(ours[0],),
                theirs=(theirs[0],),
                unit="MB",
                target=Target(at_most=130, of="value"),
            ),
            Figure(
                what=f"processor while idle, of one core, on {where}",
                ours=(ours[1],),
                theirs=(max(theirs[1], 0.01),),
                unit="%",
                target=Target(at_most=1.5, of="value"),
            ),
        ]
    return Result(
        title=f"{volumes:,} volumes",
        reference=(
            f"for the list, another machine's engine with {volumes:,} volumes of Docker's driver "
            f"`local`; for memory and processor, dockerd on the same node."
        ),
        how=(
            f"`docker volume ls`, {rounds} rounds that alternate between the two engines; then "
            f"the same while etcd is stopped on all nodes and the other nodes' links are cut. "
            f"Memory is that of pannierd's process; the processor's share is over {seconds} s in "
            f"which nobody asks for anything. Every node knows all volumes and holds a third. A "
            f"container that sleeps uses {mounted} of those of {first} all the time."
        ),
        figures=tuple(figures),
    )


def create_volumes(world: World, volumes: int) -> None:
    """So many, with one copy each; every node holds as many of them."""

    def some(node: str) -> None:
        for name in _names(world, node, volumes):
            world.volume(node, name)

    with ThreadPoolExecutor(max_workers=len(world.nodes)) as pool:
        list(pool.map(some, world.nodes))


def remove_volumes(world: World, volumes: int) -> None:
    """What :func:`create_volumes` has made."""

    def some(node: str) -> None:
        names = " ".join(_names(world, node, volumes))
        world.sh(node, f"docker volume rm {names} >/dev/null", timeout=900)

    with ThreadPoolExecutor(max_workers=len(world.nodes)) as pool:
        list(pool.map(some, world.nodes))


def _names(world: World, node: str, volumes: int) -> Iterator[str]:
    """The volumes that a node holds."""
    for number in range(world.nodes.index(node), volumes, len(world.nodes)):
        yield f"bench-{number:04}"


def _create_local(other: Lab, volumes: int) -> None:
    engine = other.machines()[0].engine
    for number in range(volumes):
        engine.post("/volumes/create", {"Name": f"bench-{number:04}", "Driver": "local"})


def _idle(world: World, seconds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """By node and unit: megabytes, and per cent of a core."""

    def one(node: str) -> dict[str, tuple[float, float]]:
        lines = world.probe(node, "idle", seconds, _DAEMON, _ENGINE)
        return {line["unit"]: (line["megabytes"], line["percent"]) for line in lines}

    with ThreadPoolExecutor(max_workers=len(world.nodes)) as pool:
        return dict(zip(world.nodes, pool.map(one, world.nodes), strict=True))


def _list(
    world: World, other: Lab, rounds: int, volumes: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each round: with Pannier, and with local volumes."""
    far = World(other, world.quick, world.say)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        for place, node, values in ((world, world.nodes[0], ours), (far, far.nodes[0], theirs)):
            (line,) = place.probe(node, "many", 1)
            if line["volumes"] < volumes:
                raise BenchError(f"only {line['volumes']} of {volumes} volumes are listed")
            values.append(line["seconds"])
    return tuple(ours), tuple(theirs)


def _alone(world: World) -> ExitStack:
    """The first node without a store and without peers, until the block is left."""
    stack = ExitStack()
    for node in world.nodes:
        world.lab.run(node, ["systemctl", "stop", "etcd"])
        stack.callback(world.lab.run, node, ["systemctl", "start", "--no-block", "etcd"])
    for node in world.nodes[1:]:
        world.lab.cut(node)
        stack.callback(world.lab.mend, node)
    return stack
