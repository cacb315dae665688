"""A node with many copies comes back: what their catching up costs a Postgres beside them."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from demo import looks, postgres_image

from bench import postgres
from bench.figures import Figure, Result, Rounds, Target
from bench.world import BenchError, Wish, World, cluster

_POSTGRES = "bench-returning-postgres"
_CLIENTS = 8
_WARM_UP_SECONDS = 3
_LONGEST_SECONDS = 900
"""Of pgbench: it is ended when all copies are back, or have not come by then."""
_BACK_SECONDS = 600
_LOOK_SECONDS = 0.25
_PROGRESS = re.compile(r"^progress: ([0-9.]+) s, ([0-9.]+) tps", re.MULTILINE)
_WRITE = (
    "for folder in /v/*; do"
    " (head -c 65536 /dev/urandom >$folder/note && sync $folder/note) & "
    "done; wait"
)
"""All at once: each sync call waits until the copy that is away does not count any more."""


def measure(wish: Wish) -> Result:
    """See the module."""
    count, rounds, seconds = wish.pick((200, 5, 15), (10, 2, 5))
    names = [f"bench-returning-{number:03}" for number in range(count)]
    collected = Rounds()
    with cluster(wish) as world:
        postgres_image.load(world.lab)
        holder, away, other = world.nodes
        copies = _Copies(world, holder, away, names)
        copies.create()
        world.volume(holder, _POSTGRES, copies="2", nodes=f"{holder},{other}")
        postgres.serve(world, holder, _POSTGRES, _POSTGRES)
        with world.held(holder, *names) as container:
            world.wait("all copies are in sync", lambda: not copies.behind(), seconds=_BACK_SECONDS)
            world.wait("Postgres' copy is in sync", lambda: _is_in_sync(world, holder, other))
            for _ in range(rounds):
                _round(world, copies, container, seconds, collected)
    took = collected.of("caught up", "ours")
    return Result(
        title="A node with many copies comes back",
        reference="the same Postgres just before, while the node is away.",
        how=(
            f"{count} volumes with copies=2 lie on one node and have their copies on another one, whose "
            f"pannierd is stopped; then 64 KiB of each are written with a sync call. A Postgres on the "
            f"first node has its volume's copy on a third one, copies=2 and durability=fsync; "
            f"pgbench's own transactions with {_CLIENTS} clients, second by second. pannierd is "
            f"started again. The value is over the time from the last look at which no copy was in "
            f"sync to the first at which all were, the reference over {seconds} s before; {rounds} "
            f"rounds. The {count} volumes stay mounted. All machines share one machine's processors and disk."
        ),
        figures=(
            Figure(
                what=f"transactions per second while {count} copies catch up",
                ours=collected.of("transactions", "ours"),
                theirs=collected.of("transactions", "theirs"),
                unit="/s",
                target=Target(at_least=0.8),
            ),
        ),
        notes=(
            f"catching up took {statistics.median(took):.1f} s ({min(took):.1f} to {max(took):.1f} s)",
        ),
    )


def _is_in_sync(world: World, holder: str, other: str) -> bool:
    shown = looks.ask(world.lab, holder, "volume", "show", _POSTGRES)
    return bool(shown["in_sync"] == [other])


class _Copies:
    """Volumes with two copies, one of them on the node that goes away."""

    def __init__(self, world: World, holder: str, away: str, names: list[str]) -> None:
        self.holder, self.away, self.names = holder, away, names
        self._world = world

    def create(self) -> None:
        def one(name: str) -> None:
            world.volume(self.holder, name, copies="2", nodes=f"{self.holder},{self.away}")

        world = self._world
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(one, self.names))

    def behind(self) -> int:
        """How many copies are not in sync."""
        listed = looks.ask(self._world.lab, self.holder, "volume", "ls")
        in_sync = {view["name"] for view in listed if self.away in view["in_sync"]}
        return len(set(self.names) - in_sync)

    def catching_up(self) -> tuple[float, float]:
        """Wait until all are in sync; from when to when they came, by the wall clock."""
        began = time.time()
        deadline = time.monotonic() + _BACK_SECONDS
        while time.monotonic() < deadline:
            now = time.time()
            behind = self.behind()
            if not behind:
                return began, time.time()
            if behind == len(self.names):
                began = now
            time.sleep(_LOOK_SECONDS)
        raise BenchError(f"{behind} copies are not in sync after {_BACK_SECONDS} s")


def _round(world: World, copies: _Copies, container: str, seconds: int, collected: Rounds) -> None:
    services = "pannierd.socket pannierd.service"
    world.sh(copies.away, f"systemctl stop {services}")
    world.lab.run(copies.holder, ["docker", "exec", container, "sh", "-c", _WRITE], timeout=300)
    world.wait("all copies are away", lambda: copies.behind() == len(copies.names))
    world.settle()
    with _pgbench(world, copies.holder) as rate:
        time.sleep(_WARM_UP_SECONDS + seconds)
        started = time.time()
        world.sh(copies.away, f"systemctl start --no-block {services}")
        began, ended = copies.catching_up()
        time.sleep(1.5)  # until pgbench has told of the last second
    before, during = rate(started - seconds, started), rate(began, ended)
    collected.add("transactions", "theirs", before)
    collected.add("transactions", "ours", during)
    collected.add("caught up", "ours", ended - began)
    world.say(f"   {ended - began:.1f} s: {during:.0f} transactions/s, before {before:.0f}")


@contextmanager
def _pgbench(world: World, node: str) -> Iterator[Callable[[float, float], float]]:
    """Transactions without end during the block.

    Yields a function that tells, after the block, how many there were in a second between two moments.
    """
    said = ""
    bench = (
        f"pgbench --no-vacuum --client {_CLIENTS} --time {_LONGEST_SECONDS}"
        f" --progress 1 --progress-timestamp"
    )
    command = ["sh", "-c", f"docker exec {_POSTGRES} {bench} 2>&1"]
    end = ["docker", "exec", _POSTGRES, "busybox", "killall", "pgbench"]

    def rate(begin: float, until: float) -> float:
        found = [(float(at), float(tps)) for at, tps in _PROGRESS.findall(said)]
        # Each line is of the second before it.
        shares = [(min(at, until) - max(at - 1, begin), tps) for at, tps in found]
        within = [(share, tps) for share, tps in shares if share > 0]
        if not within:
            raise BenchError(f"pgbench told nothing of that time: {said[-300:]!r}")
        return sum(share * tps for share, tps in within) / sum(share for share, _ in within)

    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(
            world.lab.run, node, command, check=False, timeout=_LONGEST_SECONDS + 60
        )
        try:
            yield rate
        finally:
            world.lab.run(node, end, check=False, timeout=30)
    said = running.result().stdout
