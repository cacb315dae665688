"""Databases and git on a volume with `durability=fsync`: against the same on a volume with one copy."""

from __future__ import annotations

from dataclasses import dataclass

from demo import databases_image

from bench import etcd_benchmark
from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import CONTAINER, World
from bench.writers import Parts

_OURS, _LOCAL = "bench-databases", "bench-databases-one"
_SIZE = "4G"
_BENCHMARK = "/usr/local/bin/etcd-benchmark"
_TARGET = Target(at_least=0.3)


@dataclass(frozen=True, slots=True)
class _Workload:
    """What is done (``bench/probes/databases.py``).

    Attributes:
        count: how often in a round, by all clients together.
    """

    what: str
    name: str
    count: int
    clients: int = 1

    def run(self, world: World, node: str, volume: str) -> float:
        """A round of it; how often it was done in a second."""
        mounts = ("-v", f"{volume}:/data", "-v", f"{_BENCHMARK}:/usr/bin/etcd-benchmark:ro")
        within = (*CONTAINER, *mounts, databases_image.TAG)
        count = world.pick(self.count, max(self.count // 10, 1))
        (found,) = world.probe(
            node, "databases", "/data", self.name, count, self.clients, within=within
        )
        return float(found["rate"])


_WORKLOADS = (
    _Workload("SQLite, a rollback journal: transactions", "sqlite-rollback", 500),
    _Workload("SQLite, WAL: transactions", "sqlite-wal", 1000),
    _Workload("MariaDB, 1 client: inserts", "mariadb", 1000),
    _Workload("MariaDB, 8 clients: inserts", "mariadb", 4000, 8),
    _Workload("Redis, `appendfsync always`, 1 client: SETs", "redis", 1000),
    _Workload("Redis, `appendfsync always`, 8 clients: SETs", "redis", 4000, 8),
    _Workload("etcd's own benchmark, 1 client: puts", "etcd", 1000),
    _Workload("etcd's own benchmark, 8 clients: puts", "etcd", 4000, 8),
    _Workload("git: pushes of 100 commits", "git", 10),
)


def measure(world: World) -> Result:
    """See the module."""
    rounds = world.pick(3, 1)
    databases_image.load(world.lab)
    holder, _ = world.volume_in_sync(_OURS, durability="fsync", size=_SIZE)
    world.volume(holder, _LOCAL, size=_SIZE)
    with etcd_benchmark.binary(world.say).open("rb") as program:
        put = f"cat >{_BENCHMARK}; chmod +x {_BENCHMARK}"
        world.lab.run(holder, ["sh", "-c", put], stdin=program)
    collected, parts = Rounds(), Parts()
    with world.held(holder, _OURS, _LOCAL):
        for work in _WORKLOADS:
            world.say(f"   {work.what}")
            _compare(world, holder, work, rounds, collected, parts)
    world.sh(holder, f"docker volume rm {_OURS} {_LOCAL} >/dev/null; rm {_BENCHMARK}")
    return Result(
        title="Databases on a replicated volume",
        reference=(
            "the same on a volume with copies=1: an ext4 image of the same pool, of which there is no "
            "copy, in a container whose sync calls are not held."
        ),
        how=(
            f"How often something is done in a second, server and clients in one container; copies=2, "
            f"durability=fsync; {rounds} rounds after one to warm up. Each transaction, insert, SET and put is "
            f"synced before it is acknowledged: SQLite with `synchronous=full`, MariaDB with its defaults and "
            f"`mariadb-slap`, Redis with `redis-benchmark`. Each push goes into a new repository, with git's "
            f"defaults. Below is what the last 100 groups of sync calls of each round waited for, as "
            f"`pannier volume show` tells it."
        ),
        figures=tuple(
            Figure(
                what=f"{work.what} per second",
                ours=collected.of(work.what, "ours"),
                theirs=collected.of(work.what, "local"),
                unit="/s",
                target=_TARGET,
            )
            for work in _WORKLOADS
        ),
        notes=parts.notes(),
    )


def _compare(
    world: World, node: str, work: _Workload, rounds: int, collected: Rounds, parts: Parts
) -> None:
    places = {"ours": _OURS, "local": _LOCAL}
    for volume in places.values():
        work.run(world, node, volume)
    for leg in turns(rounds, *places):
        world.settle()
        collected.add(work.what, leg, work.run(world, node, places[leg]))
        if leg == "ours":
            parts.look(world, node, _OURS, work.what)
