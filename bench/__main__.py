"""``python -m bench [NAME...] [--quick] [--long] [--out FILE]``: measure, print, write the page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench import (
    backups,
    clones,
    databases,
    deploy,
    failover,
    files,
    interval,
    jenkins,
    jobs,
    many,
    many_snapshots,
    move,
    overwrites,
    postgres,
    report,
    returning,
    runtime,
    scale,
    snapshot_database,
    snapshots,
    start,
    sync,
    transfer,
    unchanged,
)
from bench.figures import Result
from bench.world import BenchError, Wish, World, cluster
from pannier.core.errors import PannierError

T = TypeVar("T")

ON_CLUSTER: dict[str, Callable[[World], Result]] = {
    "files": files.measure,
    "sync": sync.measure,
    "interval": interval.measure,
    "start": start.measure,
    "runtime": runtime.measure,
    "transfer": transfer.measure,
    "unchanged": unchanged.measure,
    "move": move.measure,
    "snapshots": snapshots.measure,
    "clones": clones.measure,
    "backups": backups.measure,
    "restore": backups.measure_restore,
    "postgres": postgres.measure,
    "databases": databases.measure,
    "snapshot-database": snapshot_database.measure,
    "many": many.measure,  # the last one: it takes the cluster's memory away
}
ALONE: dict[str, Callable[[Wish], Result]] = {
    "failover": failover.measure,
    "deploy": deploy.measure,
    "jenkins": jenkins.measure,
    "jenkins-loss": jenkins.measure_loss,
    "jobs": jobs.measure,
    "returning": returning.measure,
    "many-snapshots": many_snapshots.measure,
    "scale": scale.measure,
}
LONG: dict[str, Callable[[Wish], Result]] = {
    "failover-defaults": failover.measure_defaults,
    "overwrites": overwrites.measure,
}
"""Half an hour each: only when asked for by name, or by ``--long``."""
BENCHMARKS = [*ON_CLUSTER, *ALONE, *LONG]


def main() -> int:
    """Run what was asked for; 1 where a benchmark could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--long", action="store_true", help=f"also {', '.join(LONG)}: half an hour")
    parser.add_argument("--out", type=Path, help="Markdown file; without it only the terminal")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    usual = [name for name in BENCHMARKS if asked.long or name not in LONG]
    names = [name for name in BENCHMARKS if name in (asked.names or usual)]
    out = asked.out or (None if asked.names or asked.quick else Path("docs/benchmarks.md"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    wish = Wish(quick=asked.quick, say=say)
    try:
        _run(names, wish, report.Page(out))
    except (BenchError, PannierError) as error:
        say(f"FAILED: {error}")
        return 1
    if out is not None:
        say(f"written to {out}")
    return 0


def _run(names: list[str], wish: Wish, page: report.Page) -> None:
    if on_cluster := [name for name in names if name in ON_CLUSTER]:
        with cluster(wish) as world:
            engine = {"Docker": world.engine(world.nodes[0]).get("/version")["Version"]}
            for name in on_cluster:
                _measure(name, ON_CLUSTER[name], world, wish, page, engine)
    for name, measure in (ALONE | LONG).items():
        if name in names:
            _measure(name, measure, wish, wish, page, {})


def _measure(
    name: str,
    measure: Callable[[T], Result],
    on: T,
    wish: Wish,
    page: report.Page,
    engine: dict[str, str],
) -> None:
    wish.say(f"== {name}")
    facts = {**report.machine_facts(), **engine}
    result = measure(on)
    for figure in result.figures:
        wish.say(f"   {report.line(figure)}")
    for note in result.notes:
        wish.say(f"   note: {note}")
    page.put(result, facts=facts)


if __name__ == "__main__":
    sys.exit(main())
