"""The end of the story: a node loses power while a ledger and a database on it are written.

The system tests play the same steps.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from demo import database, ledger, postgres_image
from demo.story import (
    Task,
    expect,
    output,
    running_task,
    set_availability,
    volume,
    wait_until,
)
from pannier.lab import Lab

LEDGER, DRAFTS, DATABASE = "ledger", "drafts", "database"
VOLUMES = (LEDGER, DRAFTS, DATABASE)
_TAKEN_OVER = re.compile(r"(?P<at>[0-9.]+) .*event=volume.taken-over volume=(?P<volume>\S+)")
BUSYBOX = "localhost:5000/busybox:1"


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays what.

    Attributes:
        victim: runs both services, and loses power.
        copy: has the other copies.
        witness: has none; the database's clients run there.
    """

    victim: str
    copy: str
    witness: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Both services at work."""

    cast: Cast
    ledger: Task
    database: Task


@dataclass(frozen=True, slots=True)
class Loss:
    """A node lost power.

    Attributes:
        at: by the wall clock.
        at_boottime: by the clock that all machines share.
        lines: the last line of the ledger that was said to be synced.
        transactions: how many each client of the database was told are committed.
        waits: how long a synced line of the ledger waited until then, for people.
    """

    at: float
    at_boottime: float
    lines: int
    transactions: dict[int, int]
    waits: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What is there after a loss.

    Attributes:
        lines: the lost node's, in the ledger.
        drafts_lost: how many of them are missing in the file that was never synced.
        window_seconds: from the last line in that file to the loss.
        unanswered: transactions that are there, and whose answer never arrived.
    """

    lines: int
    drafts_lost: int
    window_seconds: float
    unanswered: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened ``seconds`` after the loss."""

    seconds: float
    what: str


# -- before -------------------------------------------------------------------------------------------


def set_the_scene(lab: Lab, cast: Cast) -> Scene:
    """Volumes with two copies, and the two services, all on one node."""
    for name in VOLUMES:
        create(lab, cast, name)
    tasks = [
        start(lab, cast, service, f"--constraint=node.labels.pannier.volume.{service}==copy")
        for service in (LEDGER, DATABASE)
    ]
    scene = Scene(cast, *tasks)
    wait_until("the database answers", lambda: database.answers(lab, scene.database))
    database.fill(lab, scene.database)
    for name in VOLUMES:
        wait_for_copy(lab, name, on=cast.copy, asked=cast.witness)
    return scene


def watch_closely(lab: Lab, *, asked: str) -> None:
    """Have Swarm notice within some 3 s, and not 15, that a node is lost."""
    output(lab, asked, "docker", "swarm", "update", "--dispatcher-heartbeat", "1s")


def create(lab: Lab, cast: Cast, name: str) -> None:
    """A volume with one copy more."""
    options = ["-o", "copies=2", "-o", f"nodes={cast.victim},{cast.copy}"]
    output(lab, cast.victim, "docker", "volume", "create", "--driver", "pannier", *options, name)


def start(lab: Lab, cast: Cast, service: str, *flags: str) -> Task:
    """A service, at first on the node that is going to lose power."""
    with _only(lab, cast.victim, asked=cast.witness):
        output(lab, cast.witness, *_create(service), *flags, *_CONTAINER[service])
        return _running(lab, service)


_CONTAINER = {
    LEDGER: [
        "--env", "HOST={{.Node.Hostname}}",
        "--mount", f"type=volume,volume-driver=pannier,source={LEDGER},target=/ledger",
        "--mount", f"type=volume,volume-driver=pannier,source={DRAFTS},target=/drafts",
        BUSYBOX, "sh", "-c", ledger.SCRIPT,
    ],
    DATABASE: [
        "--network", "host",
        "--mount", f"type=volume,volume-driver=pannier,source={DATABASE},target=/var/lib/postgresql",
        postgres_image.TAG,
    ],
}  # fmt: skip


def _create(service: str) -> list[str]:
    return [
        "docker", "service", "create", "--detach", "--no-resolve-image", "--endpoint-mode", "dnsrr",
        "--restart-delay", "0s", "--name", service,
    ]  # fmt: skip


@contextmanager
def _only(lab: Lab, node: str, *, asked: str) -> Iterator[None]:
    """Let Swarm start new tasks on one node only, for a while."""
    others = [view.name for view in lab.nodes if view.name != node]
    for other in others:
        set_availability(lab, other, "pause", asked=asked)
    try:
        yield
    finally:
        for other in others:
            set_availability(lab, other, "active", asked=asked)


# -- the loss -----------------------------------------------------------------------------------------


def lose_power(lab: Lab, scene: Scene, *, lines: int = 50, transactions: int = 100) -> Loss:
    """Cut the power of the node while both services are at work.

    Args:
        lines, transactions: at least so many are acknowledged before.
    """
    victim = scene.cast.victim
    address = next(node.address for node in lab.nodes if node.name == victim)
    with hearing(lab, scene.ledger) as said, ThreadPoolExecutor(1) as beside:
        bench = beside.submit(
            database.bench, lab, scene.cast.witness, host=address, run=1, seconds=100
        )
        wait_until("the ledger is written", lambda: said() >= lines)
        wait_until(
            "transactions are made", lambda: database.count(lab, scene.database) >= transactions
        )
        waits = wait_for_sync(lab, LEDGER, on=victim)
        at, at_boottime = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        expect(lab.crash(victim), "its disks keep what was not flushed")
        acknowledged = bench.result()
        return Loss(at, at_boottime, said(), dict(acknowledged), waits)


@contextmanager
def hearing(lab: Lab, task: Task) -> Iterator[Callable[[], int]]:
    """Somebody elsewhere who hears the numbers that a container says: yields a look at the last one."""
    engine = next(node.docker_host for node in lab.nodes if node.name == task.node)
    with tempfile.NamedTemporaryFile() as heard:
        follow = ["docker", "--host", str(engine), "logs", "--follow", task.container]
        child = subprocess.Popen(follow, stdout=heard, stderr=subprocess.DEVNULL)
        try:
            yield lambda: _last_number(Path(heard.name).read_text())
        finally:
            child.kill()
            child.wait()


def _last_number(text: str) -> int:
    whole, _, _ = text.rpartition("\n")
    return int(whole.split()[-1]) if whole else 0


# -- afterwards ---------------------------------------------------------------------------------------


def wait_for_both(lab: Lab, cast: Cast) -> Scene:
    """Both services at work elsewhere."""
    tasks = [_running(lab, service, not_on=cast.victim) for service in (LEDGER, DATABASE)]
    after = Scene(cast, *tasks)
    wait_until(
        "the ledger goes on", lambda: written(lab, after.ledger, LEDGER)[-1].host == tasks[0].node
    )
    wait_until("the database answers", lambda: database.answers(lab, after.database))
    return after


def timeline(lab: Lab, after: Scene, loss: Loss) -> list[Event]:
    """What happened since the loss, in order, by the machines' own logs."""
    events = []
    for service, task in ((LEDGER, after.ledger), (DATABASE, after.database)):
        made = _inspect(lab, after.cast.witness, _task_id(lab, after.cast.witness, service))
        events += [
            (_epoch(made["CreatedAt"]), f"Swarm starts {service} on {task.node}"),
            (started_at(lab, task), f"its container runs: {service}"),
        ]
    survivors = (after.cast.copy, after.cast.witness)
    events += [
        (at, f"{node} takes {name} over")
        for at, node, name in taken_over(lab, survivors, since=loss.at)
    ]
    first = next(
        line for line in written(lab, after.ledger, LEDGER) if line.host == after.ledger.node
    )
    events.append((first.at - loss.at_boottime + loss.at, "the ledger's first line there"))
    events.append((_ready_at(lab, after.database), "Postgres has recovered and answers"))
    return [Event(at - loss.at, what) for at, what in sorted(events)]


def check(lab: Lab, after: Scene, loss: Loss) -> Kept:
    """Everything that was acknowledged is there, once.

    Raises:
        StoryError: it is not.
    """
    cast = after.cast
    lines = written(lab, after.ledger, LEDGER)
    ledger.check_whole(lines, first=cast.victim, acknowledged=loss.lines)
    ours = [line for line in lines if line.host == cast.victim]
    drafts = {line.number: line for line in written(lab, after.ledger, DRAFTS)}
    there = [line for line in ours if line.number in drafts]
    unanswered = database.check(lab, after.database, run=1, acknowledged=loss.transactions)
    return Kept(
        lines=len(ours),
        drafts_lost=len(ours) - len(there),
        window_seconds=loss.at_boottime - (there[-1].at if there else ours[0].at),
        unanswered=unanswered,
    )


def wait_for_sync(lab: Lab, name: str, *, on: str) -> str:
    """How long the last synced writes of a volume waited, as its holder tells."""

    def told() -> dict[str, Any] | None:
        sync: dict[str, Any] = volume(lab, name, node=on)["sync"]
        return sync if sync["total"] else None

    sync = wait_until(f"{on} tells how long sync calls of {name} wait", told)
    total, local = (1000 * sync[part]["median"] for part in ("total", "local"))
    return f"{total:.1f} ms, {local:.1f} of them for the disk of {on}"


def come_back(lab: Lab, after: Scene) -> list[str]:
    """Give the node its power back, and wait until it has copies again that are in sync.

    Returns:
        what `pannier doctor` says there of what only that node has.
    """
    victim = after.cast.victim
    lab.boot(victim, wait=False)
    for name in VOLUMES:
        wait_for_copy(lab, name, on=victim, asked=after.cast.witness)
    # Its exit status says that there is something to read.
    told = lab.run(victim, ["pannier", "doctor", "-o", "json"], check=False, timeout=60)
    found = json.loads(told.stdout)
    return [f"{each['subject']}: {each['what']}" for each in found if "stray" in each["what"]]


def wait_for_copy(lab: Lab, name: str, *, on: str, asked: str) -> None:
    """Wait until a node has a copy of a volume that is in sync."""
    wait_until(
        f"{on} has a copy of {name} in sync",
        lambda: on in volume(lab, name, node=asked)["in_sync"],
    )


# -- looking ------------------------------------------------------------------------------------------


def _running(lab: Lab, service: str, *, not_on: str | None = None) -> Task:
    return wait_until(
        f"{service} runs", lambda: running_task(lab, service, not_on=not_on), seconds=120
    )


def written(lab: Lab, task: Task, name: str) -> list[ledger.Line]:
    """What is in the volume ``name``, as the ledger's container sees it."""
    cat = ["docker", "exec", task.container, "cat", f"/{name}/lines"]
    return ledger.read(output(lab, task.node, *cat), synced=name != DRAFTS)


def _task_id(lab: Lab, asked: str, service: str) -> str:
    """Swarm's id of the task that runs now."""
    running = ["--filter", "desired-state=running", "--quiet", "--no-trunc"]
    return output(lab, asked, "docker", "service", "ps", *running, service).split()[0]


def _inspect(lab: Lab, asked: str, thing: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(lab, asked, "docker", "inspect", thing))[0]
    return found


def taken_over(lab: Lab, nodes: Iterable[str], *, since: float) -> list[tuple[float, str, str]]:
    """(time, node, volume) of each takeover, from the daemons' logs; by the wall clock."""
    read = ["journalctl", "--unit", "pannierd", "--output", "short-unix", "--no-pager"]
    found = []
    for node in nodes:
        logged = output(lab, node, *read, "--since", f"@{since:.0f}")
        for line in logged.splitlines():
            if match := _TAKEN_OVER.match(line):
                found.append((float(match["at"]), node, match["volume"]))
    return found


def started_at(lab: Lab, task: Task) -> float:
    """When a container was started, by the wall clock."""
    return _epoch(_inspect(lab, task.node, task.container)["State"]["StartedAt"])


def _ready_at(lab: Lab, task: Task) -> float:
    logs = ["docker", "logs", "--timestamps", task.container]
    said = lab.run(task.node, logs).stderr.splitlines()
    return _epoch(next(line for line in said if "ready to accept" in line).split()[0])


def _epoch(text: str) -> float:
    """Seconds since 1970 of Docker's times, which have nanoseconds."""
    return datetime.fromisoformat(text).timestamp()
