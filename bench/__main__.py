"""``python -m bench [NAME...] [--quick] [--out FILE]``: measure, print, write the page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import files, many, move, report, start, transfer, unchanged
from bench.figures import Result
from bench.world import BenchError, World, cluster
from pannier.core.errors import PannierError

BENCHMARKS: dict[str, Callable[[World], Result]] = {
    "files": files.measure,
    "start": start.measure,
    "transfer": transfer.measure,
    "unchanged": unchanged.measure,
    "move": move.measure,
    "many": many.measure,  # the last one: it takes the cluster's memory away
}


def main() -> int:
    """Run what was asked for; 1 where a benchmark could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--out", type=Path, help="Markdown file; without it only the terminal")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    names = [name for name in BENCHMARKS if not asked.names or name in asked.names]
    out = asked.out or (None if asked.names or asked.quick else Path("docs/benchmarks.md"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    try:
        page = _run(names, quick=asked.quick, say=say)
    except (BenchError, PannierError) as error:
        say(f"FAILED: {error}")
        return 1
    if out is not None:
        out.write_text(page)
        say(f"written to {out}")
    return 0


def _run(names: list[str], *, quick: bool, say: Callable[[str], None]) -> str:
    results = []
    with cluster(quick=quick, say=say) as world:
        docker = world.engine(world.nodes[0]).get("/version")["Version"]
        facts = report.machine_facts(docker=docker)
        for name in names:
            say(f"== {name}")
            result = BENCHMARKS[name](world)
            results.append(result)
            for figure in result.figures:
                say(f"   {report.line(figure)}")
            for note in result.notes:
                say(f"   note: {note}")
    return report.markdown(results, facts=facts, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
