"""The demo's Postgres: a client that notes what was answered, and a look at what is left of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from demo import postgres_image
from demo.story import Task, expect, output
from pannier.lab import Lab

CLIENTS = 8
SCALE = 2

# pgbench would wait for a quarter of an hour for a server without power.
_NOTICE = "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=2000"

_FILL = f"""
pgbench --initialize --quiet --scale {SCALE}
psql --quiet --command 'ALTER TABLE pgbench_history ADD run int, ADD client int, ADD n int'
"""

_BENCH = """
pgbench --no-vacuum --file /bench.sql --client {clients} --time {seconds} --log --log-prefix said \
  --define n=0 --define run={run} --define scale={scale} 'host={host} {notice}' >&2
cat said.*
"""

_MADE = """
SELECT json_object_agg(client, json_build_array(rows, numbers, last)) FROM (
  SELECT client, count(*) AS rows, count(DISTINCT n) AS numbers, max(n) AS last
  FROM pgbench_history WHERE run = {run} GROUP BY client) AS made
"""

_SUMS = """
SELECT json_build_array(
  (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
  (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history))
"""


def answers(lab: Lab, task: Task) -> bool:
    """Whether the server in the task's container answers."""
    return lab.run(task.node, _psql(task, "SELECT 1"), check=False).returncode == 0


def fill(lab: Lab, task: Task) -> None:
    """Make pgbench's tables."""
    output(lab, task.node, "docker", "exec", task.container, "sh", "-euc", _FILL)


def bench(lab: Lab, node: str, *, host: str, run: int, seconds: int) -> Counter[int]:
    """Let clients on ``node`` make transactions on the server at ``host``, until it dies at the latest.

    Returns:
        how many transactions each client was told are committed. It numbers them from 1, and begins
        the next one when it has the answer.
    """
    script = _BENCH.format(
        clients=CLIENTS, seconds=seconds, run=run, scale=SCALE, host=host, notice=_NOTICE
    )
    client = ["docker", "run", "--rm", "--network", "host", "--entrypoint", "sh"]
    said = output(lab, node, *client, postgres_image.TAG, "-c", script)
    return Counter(int(line.split()[0]) for line in said.splitlines())


def count(lab: Lab, task: Task) -> int:
    """How many transactions there are."""
    made: int = _ask(lab, task, "SELECT count(*) FROM pgbench_history")
    return made


def check(lab: Lab, task: Task, *, run: int, acknowledged: Mapping[int, int]) -> int:
    """All that was acknowledged is there once, sums agree, and no page or index is damaged.

    Returns:
        how many transactions are there whose answer never arrived: at most one for each client.
    """
    made = {int(k): v for k, v in _ask(lab, task, _MADE.format(run=run)).items()}
    for client, count in acknowledged.items():
        rows, numbers, last = made.get(client, (0, 0, 0))
        expect(
            rows == numbers == last and count <= last <= count + 1,
            f"client {client} was told of {count} transactions; there are {rows} rows with {numbers} "
            f"numbers up to {last}",
        )
    sums = _ask(lab, task, _SUMS)
    expect(len(set(sums)) == 1, f"accounts, tellers, branches and history do not agree: {sums}")
    settings = _ask(lab, task, "SELECT json_object_agg(name, setting) FROM pg_settings")
    wanted = {"data_checksums": "on", "fsync": "on", "synchronous_commit": "on"}
    wanted |= {"full_page_writes": "on", "wal_sync_method": "fdatasync"}
    expect(wanted.items() <= settings.items(), "these are not Postgres' defaults")
    check_pages = ["pg_amcheck", "--all", "--install-missing", "--heapallindexed"]
    output(lab, task.node, "docker", "exec", task.container, *check_pages)
    return sum(last for _, _, last in made.values()) - sum(acknowledged.values())


def _ask(lab: Lab, task: Task, query: str) -> Any:
    return json.loads(output(lab, task.node, *_psql(task, query)))


def _psql(task: Task, query: str) -> list[str]:
    return ["docker", "exec", task.container, "psql", "-XAtq", "--command", query]
