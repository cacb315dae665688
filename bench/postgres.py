"""Postgres on a replicated volume: Pannier with durability=fsync against GlusterFS."""

from __future__ import annotations

import re
from collections.abc import Iterable

from demo import postgres_image

from bench.figures import Figure, Result, Rounds, turns
from bench.gluster import replicated
from bench.world import POOL, BenchError, World

_VOLUME = "bench-postgres"
_PLAIN = f"{POOL}/bench-postgres"
_CLIENTS = (1, 8)
_SCALE = 10
_TPS = re.compile(r"tps = ([0-9.]+) \(without")
_LATENCY = re.compile(r"latency average = ([0-9.]+) ms")


def measure(world: World) -> Result:
    """See the module."""
    rounds, seconds = world.pick(3, 1), world.pick(10, 5)
    postgres_image.load(world.lab)
    node = world.nodes[0]
    copies = len(world.nodes)
    world.volume_in_sync(_VOLUME, copies=copies, durability="fsync")
    collected = Rounds()
    with replicated(world) as mounted:
        places = {"ours": _VOLUME, "theirs": mounted, "plain": _PLAIN}
        for leg, place in places.items():
            serve(world, node, _container(leg), place)
        for leg in turns(rounds, *places):
            for clients in _CLIENTS:
                world.settle()
                _bench(world, node, leg, clients, seconds, collected)
        world.sh(node, f"docker rm -f {' '.join(map(_container, places))} >/dev/null")
    world.sh(node, f"docker volume rm {_VOLUME} >/dev/null; rm -r {_PLAIN}")
    return Result(
        title="Postgres on a replicated volume",
        reference=(
            "GlusterFS with replica 3 and its default settings, mounted by FUSE, its bricks in the "
            "same pools; and a directory of the pool, which is on one machine only."
        ),
        how=(
            f"pgbench's own transactions at scale {_SCALE}, in the server's container, {seconds} s "
            f"with each number of clients, {rounds} rounds; copies={copies}, durability=fsync. All "
            f"machines share one machine's processors and disk."
        ),
        figures=tuple(_figures(collected)),
    )


def _figures(collected: Rounds) -> Iterable[Figure]:
    for clients in _CLIENTS:
        who = f"{clients} client{'s' * (clients > 1)}"
        for leg, against in {"theirs": "GlusterFS", "plain": "a directory on one machine"}.items():
            for what, unit in {"transactions per second": "/s", "a transaction": "s"}.items():
                yield Figure(
                    what=f"{who}: {what}, against {against}",
                    ours=collected.of(f"{what}, {clients}", "ours"),
                    theirs=collected.of(f"{what}, {clients}", leg),
                    unit=unit,
                )


def _container(leg: str) -> str:
    return f"bench-postgres-{leg}"


def serve(world: World, node: str, name: str, place: str) -> None:
    """Start a server with pgbench's tables, in a container of this name.

    Args:
        place: of its data: a volume, or a directory.
    """
    user = postgres_image.USER_ID
    if place.startswith("/"):
        world.sh(node, f"mkdir -p {place}; chown {user}:{user} {place}")
    run = f"docker run -d --network none --name {name} -v {place}:/var/lib/postgresql"
    world.sh(node, f"{run} {postgres_image.TAG} >/dev/null")
    answers = f"docker exec {name} psql -c 'SELECT 1' >/dev/null 2>&1"
    world.wait(
        f"Postgres on {place}",
        lambda: world.lab.run(node, ["sh", "-c", answers], check=False).returncode == 0,
    )
    world.sh(node, f"docker exec {name} pgbench --initialize --quiet --scale {_SCALE} 2>/dev/null")


def _bench(
    world: World, node: str, leg: str, clients: int, seconds: int, collected: Rounds
) -> None:
    rate, latency = pgbench(world, node, _container(leg), clients=clients, seconds=seconds)
    collected.add(f"transactions per second, {clients}", leg, rate)
    collected.add(f"a transaction, {clients}", leg, latency)


def pgbench(
    world: World, node: str, container: str, *, clients: int, seconds: int
) -> tuple[float, float]:
    """Run pgbench's own transactions in a server's container: how many in a second, and the mean seconds of one."""
    bench = f"pgbench --no-vacuum --client {clients} --time {seconds}"
    said = world.sh(node, f"docker exec {container} {bench} 2>/dev/null")
    return _number(_TPS, said), _number(_LATENCY, said) / 1000


def _number(pattern: re.Pattern[str], said: str) -> float:
    found = pattern.search(said)
    if found is None:
        raise BenchError(f"pgbench says {said!r}")
    return float(found[1])
