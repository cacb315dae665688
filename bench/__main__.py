"""``python -m bench [NAME...] [--quick] [--long] [--out FILE]``: measure, print, write the page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench import (
    failover,
    files,
    interval,
    many,
    move,
    postgres,
    report,
    runtime,
    scale,
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
    "postgres": postgres.measure,
    "many": many.measure,  # the last one: it takes the cluster's memory away
}
ALONE: dict[str, Callable[[Wish], Result]] = {
    "failover": failover.measure,
    "scale": scale.measure,
}
BENCHMARKS = [*ON_CLUSTER, *ALONE]


def main() -> int:
    """Run what was asked for; 1 where a benchmark could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument(
        "--long", action="store_true", help="failover with all settings: half an hour"
    )
    parser.add_argument("--out", type=Path, help="Markdown file; without it only the terminal")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    names = [name for name in BENCHMARKS if not asked.names or name in asked.names]
    out = asked.out or (None if asked.names or asked.quick else Path("docs/benchmarks.md"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    wish = Wish(quick=asked.quick, long=asked.long, say=say)
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
    for name in names:
        if name in ALONE:
            _measure(name, ALONE[name], wish, wish, page, {})


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
