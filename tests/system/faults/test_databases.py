"""Programs with data of their own whose machine loses its power: what they said is safe is there, and whole.

Each begins on the copy's node by itself, as after any loss of power, and checks all of its data by its own
means before it goes on. The moment of each cut is a matter of chance.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import git_image
import pytest
from demo import database, postgres_image, story
from fault_world import TAKEOVER_AND_ELECTION_SECONDS, Faults, Log, Writer, uptime

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

START_SECONDS = 150.0
"""For a program to begin where it was not: a takeover, its own recovery and its own check."""
RECORDS = (20, 300)
"""How many more are acknowledged at least and at most, before a cut."""

_PROGRAMS = Path(__file__).parents[1] / "programs"
_OF_THE_MACHINE = [
    word for path in ("/usr", "/lib", "/lib64") for word in ("-v", f"{path}:{path}:ro")
]
"""Lets a container have the machine's own Python."""


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
class Keeper(Program):
    """One of the ways of ``keeps.py``."""

    way: str

    def begin(self, log: Log, node: str) -> Writer:
        return log.begin(node, *_OF_THE_MACHINE, program=self._command())

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
class Git(Program):
    """A bare repository that commits are pushed to, one after the other."""

    def begin(self, log: Log, node: str) -> Writer:
        return log.begin(node, image=git_image.TAG, program=["sh", "-c", self._script(), "sh"])

    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        show = ["docker", "exec", writer.container, "sh", "-c", self._script(), "sh", "show"]
        return _pairs(log.world.run(writer.node, *show))

    def _script(self) -> str:
        return (_PROGRAMS / "pushes.sh").read_text()


# pgbench's transaction as the demo has it, and a number that is told when the server has said that it is
# committed.
_TRANSACTION = r"""
\set n :n + 1
\set aid random(1, 100000 * :scale)
\set bid random(1, :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, run, client, n)
  VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, :run, :client_id, :n) RETURNING number \gset
END;
\shell read up rest </proc/uptime; echo $HOST :number $up >>/told/$TELL
"""
_BENCH = """
printf %s "$TRANSACTION" >/tmp/transaction
exec pgbench --no-vacuum --client {clients} --jobs {clients} --time 3600 --file /tmp/transaction \
  --define n=0 --define scale={scale} --define run={run} >/tmp/said 2>&1
"""
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
            alter = "ALTER TABLE pgbench_history ADD number bigserial PRIMARY KEY"
            world.run(node, "docker", "exec", writer.container, "psql", "-c", alter)
        bench = _BENCH.format(clients=_CLIENTS, scale=database.SCALE, run=len(self.runs))
        # As root, for the file that it tells belongs to root.
        enter = ["docker", "exec", "-d", "-u", "0", "-e", f"TRANSACTION={_TRANSACTION}"]
        world.run(node, *enter, writer.container, "sh", "-c", bench)
        self.runs.append(node)
        return writer

    def records(self, log: Log, writer: Writer) -> list[tuple[str, int]]:
        world = log.world
        task = story.Task(writer.node, writer.container)
        database.check(world.lab, task, run=len(self.runs) - 1, acknowledged={})
        query = "SELECT run, number FROM pgbench_history"
        psql = ["docker", "exec", writer.container, "psql", "-XAtq", "-F", " ", "-c", query]
        found = _pairs(world.run(writer.node, *psql))
        return [(self.runs[int(run)], number) for run, number in found]


def _pairs(text: str) -> list[tuple[str, int]]:
    pairs = [line.split() for line in text.splitlines()]
    return [(word, int(number)) for word, number in pairs]


def endures(
    faults: Faults, program: Program, *, cuts: int, seed: str, fault: str, outcome: str
) -> None:
    """Cut the power of whoever holds the program's volume, again and again; the copy's node goes on."""
    log, chance = faults.log(), random.Random(seed)
    node, other = log.holder, log.replica
    writer = program.write(log, node)
    for _ in range(cuts):
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
            f"F01 the holder loses power under {fault}", outcome=f"a copy takes over; {outcome}",
            pause=log.pause_after(crashed_at), allowed=TAKEOVER_AND_ELECTION_SECONDS,
            told=len(before.acknowledged()),
        )  # fmt: skip
        faults.boot(node)
        node, other = other, node
    log.stop(writer)


def _told(log: Log) -> list[tuple[str, int]]:
    """(host, number) of all that was ever acknowledged."""
    return [(one.host, one.number) for writer in log.writers for one in writer.acknowledged()]


def _check(told: list[tuple[str, int]], kept: list[tuple[str, int]]) -> None:
    """All that was acknowledged is there, and no number was acknowledged or is there twice."""
    lost = sorted(set(told) - set(kept))
    assert not lost, f"{len(lost)} acknowledged records are lost, the first is {lost[0]}"
    for numbers in ([number for _, number in told], [number for _, number in kept]):
        assert len(numbers) == len(set(numbers)), "a double"


@pytest.mark.faults
@pytest.mark.parametrize("journal", ["journal", "wal"])
def test_f01_an_sqlite_database_loses_no_commit_with_its_node(faults: Faults, journal: str) -> None:
    """Its integrity check passes, and no transaction is there by half."""
    name = {"journal": "a rollback journal", "wal": "WAL"}[journal]
    endures(
        faults, Keeper(f"sqlite-{journal}"), cuts=3, seed=journal,
        fault=f"SQLite ({name})", outcome="its integrity check passes",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.usefixtures("postgres")
def test_f01_postgres_loses_no_commit_with_its_node(faults: Faults) -> None:
    """It recovers, pg_amcheck finds nothing, and sums that each transaction changes agree."""
    endures(
        faults, Postgres(), cuts=2, seed="postgres",
        fault="Postgres and pgbench", outcome="pg_amcheck passes",
    )  # fmt: skip


@pytest.mark.faults
def test_f01_what_msync_wrote_outlasts_its_node(faults: Faults) -> None:
    """A file that is only ever changed in memory."""
    endures(
        faults, Keeper("mmap"), cuts=2, seed="mmap",
        fault="a program that uses mmap and msync", outcome="every checksum is right",
    )  # fmt: skip


@pytest.mark.faults
def test_f01_mail_that_was_delivered_outlasts_its_node(faults: Faults) -> None:
    """No file that has its last name is half there."""
    endures(
        faults, Keeper("maildir"), cuts=2, seed="maildir",
        fault="a maildir", outcome="every mail is whole",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.usefixtures("git")
def test_f01_a_git_repository_loses_no_push_with_its_node(faults: Faults) -> None:
    """git fsck finds nothing."""
    endures(
        faults, Git(), cuts=2, seed="git",
        fault="pushes to a git repository", outcome="git fsck passes",
    )  # fmt: skip


@pytest.fixture(scope="module")
def postgres(fault_lab: Lab) -> None:
    postgres_image.load(fault_lab)


@pytest.fixture(scope="module")
def git(fault_lab: Lab) -> None:
    git_image.load(fault_lab)
