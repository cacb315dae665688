"""A database whose volume gets a snapshot each ten seconds, of which 24 are kept: against one without."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from demo import looks, postgres_image

from bench import postgres
from bench.figures import Figure, Result, Rounds, Target, turns
from bench.world import BenchError, World

_VOLUMES = {"ours": "bench-pg-snapshots", "theirs": "bench-pg-none"}
_KEPT = 24
_EVERY_SECONDS = 10.0
_CLIENTS = 8


def measure(world: World) -> Result:
    """See the module."""
    rounds, seconds = world.pick((3, 30), (2, 12))
    postgres_image.load(world.lab)
    collected = Rounds()
    for volume in _VOLUMES.values():
        holder, _ = world.volume_in_sync(volume, durability="fsync")
        postgres.serve(world, holder, volume, volume)
    snapshots = _Snapshots(world, holder, _VOLUMES["ours"])
    for _ in range(_KEPT):
        postgres.pgbench(world, holder, _VOLUMES["ours"], clients=1, seconds=1)
        snapshots.make()
    for leg in turns(rounds, *_VOLUMES):
        world.settle()
        with snapshots.made_meanwhile() if leg == "ours" else nullcontext():
            rate, _ = postgres.pgbench(
                world, holder, _VOLUMES[leg], clients=_CLIENTS, seconds=seconds
            )
        collected.add("transactions", leg, rate)
    names = " ".join(_VOLUMES.values())
    world.sh(holder, f"docker rm -f {names} >/dev/null; docker volume rm {names} >/dev/null")
    return Result(
        title="A database with snapshots",
        reference="a second Postgres of the same kind on the same node, whose volume has no snapshots.",
        how=(
            f"pgbench's own transactions with {_CLIENTS} clients, {seconds} s each, {rounds} rounds; copies=2, durability=fsync. "
            f"Of the first one's volume a snapshot is made {_EVERY_SECONDS:.0f} s after the one before, the first one at the "
            f"beginning, and the oldest is removed then; {_KEPT} are there all the time. The other one is idle meanwhile."
        ),
        figures=(
            Figure(
                what=f"transactions per second with a snapshot each {_EVERY_SECONDS:.0f} s",
                ours=collected.of("transactions", "ours"),
                theirs=collected.of("transactions", "theirs"),
                unit="/s",
                target=Target(at_least=0.95),
            ),
        ),
    )


class _Snapshots:
    """The snapshots of a volume, of which the oldest goes when one more is made than are kept."""

    def __init__(self, world: World, node: str, volume: str) -> None:
        self._world, self._node = world, node
        self._path = f"/v1/volumes/{volume}/snapshots"
        self._names: list[str] = []
        self._numbers = itertools.count(1)

    def make(self) -> None:
        """Make one, as a schedule does: by the daemon alone, without a program that is started for it."""
        name = f"each-{next(self._numbers)}"
        daemon = looks.daemon(self._world.lab, self._node)
        made = daemon.post(self._path, {"snapshot": name, "labels": {}})
        if len(made["on"]) != 2:
            raise BenchError(f"not both copies have the snapshot: {made}")
        self._names.append(name)
        if len(self._names) > _KEPT:
            daemon.delete(f"{self._path}/{self._names.pop(0)}")

    @contextmanager
    def made_meanwhile(self) -> Iterator[None]:
        """Make one again and again during the block."""
        ended = threading.Event()
        failed: list[Exception] = []

        def again_and_again() -> None:
            try:
                while not ended.is_set():
                    self.make()
                    ended.wait(_EVERY_SECONDS)
            except Exception as error:  # told where it is waited for
                failed.append(error)

        thread = threading.Thread(target=again_and_again)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if failed:
            raise failed[0]
