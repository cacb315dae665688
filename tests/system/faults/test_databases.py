"""Programs with data of their own whose machine loses its power: what they said is safe is there, and whole.

Each begins on the copy's node by itself, as after any loss of power, and checks all of its data by its own
means before it goes on. The moment of each cut is a matter of chance.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from demo import database, databases_image, postgres_image, story
from fault_world import TAKEOVER_AND_ELECTION_SECONDS, Faults, Log, Writer, uptime

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

START_SECONDS = 150.0
"""For a program to begin where it was not: a takeover, its own recovery and its own check."""
RECORDS = (20, 300)
"""How many more are acknowledged at least and at most, before a cut."""

_PROGRAMS = Path(__file__).parents[1] / "programs"


class Program(ABC):
    """Something that keeps numbered records in a volume, and tells each number when it is safe."""

    @abstractmethod
    def begin(self, log: Log, node: str) -> Writer:
        """Start it; it goes on with what it finds."""

    @abstractmethod
    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        """(host, number) of all that it has. Its own check of its data has found nothing wrong before."""

    def write(self, log: Log, node: str) -> Writer:
        """Start it, and wait until it has some records acknowledged."""
        writer = self.begin(log, node)
        try:
            writer.goes_on(records=5, seconds=START_SECONDS)
        except story.StoryError as error:
            said = log.world.attempt(node, "docker", "logs", writer.container).text
            raise AssertionError(f"{error}; it says: {said}") from error
        return writer


@dataclass(frozen=True, slots=True)
class PythonProgram(Program):
    """One of the ways of ``keeps.py``."""

    way: str

    def begin(self, log: Log, node: str) -> Writer:
        return log.begin(node, image=databases_image.TAG, program=self._command())

    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        show = ["docker", "exec", writer.container, *self._command(), "show"]
        found = _pairs(log.world.run(writer.node, *show))
        numbers = [number for _, number in found]
        assert numbers == list(range(1, len(found) + 1)), "a gap or a double"
        return found

    def _command(self) -> list[str]:
        source = (_PROGRAMS / "keeps.py").read_text()
        return ["/usr/bin/python3", "-c", source, "/data", self.way]


@dataclass(frozen=True, slots=True)
class ShellProgram(Program):
    """A shell script that has a server or a program keep records.

    Attributes:
        name: of a file in ``programs``.
    """

    name: str

    def begin(self, log: Log, node: str) -> Writer:
        return log.begin(node, image=databases_image.TAG, program=self._command())

    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        return _pairs(
            log.world.run(writer.node, "docker", "exec", writer.container, *self._command(), "show")
        )

    def _command(self) -> list[str]:
        return ["sh", "-c", (_PROGRAMS / self.name).read_text(), "sh"]


# The demo's transaction, and a number that is told when the server has said that it is committed.
_BENCH = r"""
{{
  cat /bench.sql
  echo '\set number (:run * 1000000 + :n) * {clients} + :client_id'
  echo '\shell read up rest </proc/uptime; echo $HOST :number $up >>/told/$TELL'
}} >/tmp/transaction
exec pgbench --no-vacuum --client {clients} --jobs {clients} --time 3600 --file /tmp/transaction \
  --define n=0 --define scale={scale} --define run={run} >/tmp/said 2>&1
"""
_NUMBERS = "SELECT run, (run * 1000000 + n) * {clients} + client FROM pgbench_history"
_CLIENTS = 4


@dataclass(slots=True)
class Postgres(Program):
    """A server, and clients beside it in its container.

    Attributes:
        runs: the host of each server there was; the rows' runs count them.
    """

    runs: list[str] = field(default_factory=list)

    def begin(self, log: Log, node: str) -> Writer:
        world, writer = log.world, log.expect(node)
        image, at = postgres_image.TAG, "/var/lib/postgresql"
        world.run(node, *world.docker_run(log.volume, "-d", *writer.flags, image=image, at=at))
        task = story.Task(node, writer.container)
        story.wait_until(
            "Postgres answers", lambda: database.answers(world.lab, task), seconds=START_SECONDS
        )
        if not self.runs:
            database.fill(world.lab, task)
        bench = _BENCH.format(clients=_CLIENTS, scale=database.SCALE, run=len(self.runs))
        # As root, for the file that it tells belongs to root.
        enter = ["docker", "exec", "-d", "-u", "0"]
        world.run(node, *enter, writer.container, "sh", "-c", bench)
        self.runs.append(node)
        return writer

    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        world = log.world
        task = story.Task(writer.node, writer.container)
        database.check(world.lab, task, run=len(self.runs) - 1, acknowledged={})
        query = _NUMBERS.format(clients=_CLIENTS)
        psql = ["docker", "exec", writer.container, "psql", "-XAtq", "-F", " ", "-c", query]
        found = _pairs(world.run(writer.node, *psql))
        return [(self.runs[int(run)], number) for run, number in found]


def _pairs(text: str) -> list[tuple[str, int]]:
    pairs = [line.split() for line in text.splitlines()]
    return [(word, int(number)) for word, number in pairs]


def _told(log: Log) -> list[tuple[str, int]]:
    """(host, number) of all that was ever acknowledged."""
    return [(one.host, one.number) for writer in log.writers for one in writer.acknowledged()]


def _check(told: list[tuple[str, int]], kept: list[tuple[str, int]]) -> None:
    """All that was acknowledged is there, and no number was acknowledged or is there twice."""
    lost = sorted(set(told) - set(kept))
    assert not lost, f"{len(lost)} acknowledged records are lost, the first is {lost[0]}"
    for numbers in ([number for _, number in told], [number for _, number in kept]):
        assert len(numbers) == len(set(numbers)), "a double"


@dataclass(frozen=True, slots=True)
class Case:
    """What loses its power.

    Attributes:
        what: in the words of docs/faults.md.
        outcome: what its own check has found afterwards.
    """

    what: str
    program: Callable[[], Program]
    outcome: str
    cuts: int = 2


CASES = {
    "journal": Case(
        "SQLite (a rollback journal)", lambda: PythonProgram("sqlite-journal"), "its integrity check passes", 3
    ),
    "wal": Case("SQLite (WAL)", lambda: PythonProgram("sqlite-wal"), "its integrity check passes", 3),
    "postgres": Case("Postgres and pgbench", Postgres, "pg_amcheck passes"),
    "mariadb": Case("MariaDB", lambda: ShellProgram("mariadb.sh"), "its check of all tables passes"),
    "redis": Case("Redis (appendfsync always)", lambda: ShellProgram("redis.sh"), "redis-check-aof passes"),
    "etcd": Case("etcd", lambda: ShellProgram("etcd.sh"), "its check of the store passes"),
    "lmdb": Case("LMDB (a writable map)", lambda: PythonProgram("lmdb"), "every key is whole"),
    "mmap": Case(
        "a program that uses mmap and msync", lambda: PythonProgram("mmap"), "every checksum is right"
    ),
    "maildir": Case("a maildir", lambda: PythonProgram("maildir"), "every mail is whole"),
    "git": Case("pushes to a git repository", lambda: ShellProgram("pushes.sh"), "git fsck passes"),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("name", CASES)
def test_f01_what_a_program_acknowledged_outlasts_its_node(faults: Faults, name: str) -> None:
    """Again and again whoever holds its volume loses power; the copy's node goes on."""
    case, chance = CASES[name], random.Random(name)
    log, program = faults.log(), case.program()
    node, other = log.holder, log.replica
    writer = program.write(log, node)
    for _ in range(case.cuts):
        log.wait_in_sync([other], at=node)
        faults.world.lab.flush()  # so that Docker, too, knows its container after a power cut
        writer.goes_on(records=chance.randint(*RECORDS))
        time.sleep(chance.random() / 4)
        crashed_at = uptime()
        faults.world.lab.crash(node)
        before, writer = writer, program.write(log, other)
        told = _told(log)  # before the look at what is there, for the program goes on
        _check(told, program.records(log, writer))
        faults.note(
            f"F01 the holder loses power under {case.what}",
            outcome=f"a copy takes over; {case.outcome}",
            pause=log.pause_after(crashed_at), allowed=TAKEOVER_AND_ELECTION_SECONDS,
            told=len(before.acknowledged()),
        )  # fmt: skip
        faults.boot(node)
        node, other = other, node
    log.stop(writer)


@pytest.fixture(scope="module")
def images(fault_lab: Lab) -> None:
    postgres_image.load(fault_lab)
    databases_image.load(fault_lab)
