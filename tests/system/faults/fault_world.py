"""A writer whose every acknowledgement is known, and what must hold of its records after a fault.

The writer's word reaches the host by a file, also when its machine loses power a moment later: what
it was told to be on disk is known exactly, whatever became of the machine, its engine and its logs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from cluster_world import IMAGE, World
from demo import story
from notes import Note, Notes

from pannier.lab import LabError

LEASE_SECONDS = 4.0
PROMISE_SECONDS = 10.0
PATIENCE_SECONDS = 5.0
TAKEOVER_SECONDS = LEASE_SECONDS + 1 + 0.5 + 0.1
"""From a node's death to a Mount elsewhere, by docs/guarantees.md."""
STOOD_STILL_SECONDS = 3.0
"""For how long the lease of a daemon that stands still is renewed: another process does that."""
TAKEOVER_AND_ELECTION_SECONDS = TAKEOVER_SECONDS + LEASE_SECONDS + 2
"""Where the node that dies led the store: all leases get their full time again."""
STORE_PORTS = "2379,2380"

# Appends "HOST NUMBER BOOTTIME CHECKSUM", each line synced before "HOST NUMBER BOOTTIME" of that moment
# is told to the host. It goes on with the number after the last line that it finds.
WRITER = """
trap 'exit 0' TERM
n=0
[ -s /data/log ] && n=$(tail -n 1 /data/log | cut -d ' ' -f 2)
while :; do
  n=$((n + 1))
  read up rest </proc/uptime
  line="$HOST $n $up"
  sum=$(echo "$line" | md5sum | cut -c 1-32)
  echo "$line $sum" >>/data/log && sync /data/log || exit 1
  read up rest </proc/uptime
  echo "$HOST $n $up" >>"/told/$TELL"
  sleep 0.05
done
"""
SHELL_WRITER = ("sh", "-c", WRITER)


def uptime() -> float:
    """Seconds on the clock that all machines of a lab share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the writer's: who wrote it, its number, and a time on the machines' clock."""

    host: str
    number: int
    at: float


def _record(line: str) -> Record:
    host, number, at = line.split()
    return Record(host, int(number), float(at))


def records_of(text: str) -> list[Record]:
    """The records of a log, none garbled."""
    found = []
    for line in text.splitlines():
        head, _, digest = line.rpartition(" ")
        assert hashlib.md5(f"{head}\n".encode()).hexdigest() == digest, f"garbled: {line!r}"
        found.append(_record(head))
    return found


@dataclass(slots=True)
class Writer:
    """One container that writes. What it was told is read from a file that outlasts its machine."""

    node: str
    container: str
    file: Path
    _told: IO[str] | None = None
    _read: list[Record] = field(default_factory=list)
    _rest: str = ""

    @property
    def flags(self) -> list[str]:
        """What ``docker run`` is told: the container's name, and how it tells."""
        tell = ["-e", f"HOST={self.node}", "-e", f"TELL={self.container}"]
        return ["--name", self.container, "-v", "/run/lab/told:/told", *tell]

    def acknowledged(self) -> list[Record]:
        """Every record that it was told is on disk, in order, with the time at which it was told."""
        text = self._rest + (self._told.read() if self._told else "")
        whole, newline, self._rest = text.rpartition("\n")
        self._read += [_record(line) for line in (whole + newline).splitlines()]
        return self._read

    def listen(self) -> None:
        """Make the file: the host forgets a machine's folder with its power."""
        self.acknowledged()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        self._told, self._rest = self.file.open(), ""

    def goes_on(self, *, records: int = 10, seconds: float = 90.0) -> None:
        """Wait until so many more records are acknowledged."""
        before = len(self.acknowledged())
        story.wait_until(
            f"{self.container} has {records} more records acknowledged",
            lambda: len(self.acknowledged()) >= before + records,
            seconds=seconds,
        )


@dataclass(slots=True)
class Log:
    """One volume, and all who ever wrote it.

    Attributes:
        start_seconds: from ``docker run`` to the first acknowledged record, without any fault.
    """

    world: World
    volume: str
    holder: str
    replicas: list[str]
    witness: str | None
    writers: list[Writer] = field(default_factory=list)
    start_seconds: float = 0.0

    @property
    def replica(self) -> str:
        (node,) = self.replicas
        return node

    def begin(
        self, node: str, *flags: str, image: str = IMAGE, program: Sequence[str] = SHELL_WRITER
    ) -> Writer:
        """Let a container write on ``node``; returns at once."""
        writer = self.expect(node)
        command = self.world.docker_run(self.volume, "-d", *writer.flags, *flags, image=image)
        self.world.start(self.world.attempt, node, *command, *program)
        return writer

    def expect(self, node: str) -> Writer:
        """Listen to a container that is going to write on ``node``, run with the writer's own flags."""
        name = f"{self.volume}-on-{node}-{len(self.writers)}"
        writer = Writer(node, name, self.world.lab.machine(node).shared_dir / "told" / name)
        writer.listen()
        self.writers.append(writer)
        return writer

    def write(self, node: str, *flags: str) -> Writer:
        """A container on ``node`` that has some records acknowledged."""
        writer = self.begin(node, *flags)
        writer.goes_on(records=5, seconds=120)
        return writer

    def is_in_sync(self, nodes: Sequence[str], *, at: str) -> bool:
        """Whether exactly these nodes could take the volume over, as ``at`` says."""
        try:
            view = self.world.json(at, "volume", "show", self.volume)
        except LabError:
            return False
        return sorted(view["in_sync"]) == sorted(nodes)

    def wait_in_sync(self, nodes: Sequence[str], *, at: str, seconds: float = 90.0) -> None:
        """Wait until exactly these nodes could take the volume over."""
        story.wait_until(
            f"in sync of {self.volume} is {', '.join(nodes) or 'nobody'}",
            lambda: self.is_in_sync(nodes, at=at),
            seconds=seconds,
        )

    def stop(self, writer: Writer) -> None:
        """End a writer in good order."""
        self.world.stop(writer.node, writer.container)

    def read(self, node: str) -> list[Record]:
        """What the volume has, read by a container on ``node``."""
        return records_of(self.world.container(node, self.volume, "cat", "/data/log"))

    # -- what must hold --------------------------------------------------------------------------

    def check(self, kept: list[Record]) -> int:
        """No acknowledged record is lost, none written twice, and one writer at a time.

        ``kept`` is what the volume has at the end. The history is one of a single register to which
        records are appended: the order of the numbers is that of the time, for all writers together.
        Returns how many records were acknowledged.
        """
        assert [one.number for one in kept] == list(range(1, len(kept) + 1)), "a gap or a double"
        assert all(a.at <= b.at for a, b in pairwise(kept)), "not in the order of time"
        told = [record for writer in self.writers for record in writer.acknowledged()]
        there = {(one.host, one.number) for one in kept}
        lost = [one for one in told if (one.host, one.number) not in there]
        assert not lost, f"{len(lost)} acknowledged records are lost, the first is {lost[0]}"
        by_number = sorted(told, key=lambda one: one.number)
        for before, after in pairwise(by_number):
            assert before.number < after.number, f"two were told of {after}"
        hosts = [one.host for one in kept]
        changes = sum(a != b for a, b in pairwise(hosts))
        assert changes < len(self.writers), f"the writers alternate: {hosts}"
        return len(told)

    def pause_after(self, fault_at: float) -> float:
        """The longest time without an acknowledged record that ended after ``fault_at``, in seconds."""
        times = sorted(one.at for writer in self.writers for one in writer.acknowledged())
        gaps = [b - max(a, fault_at) for a, b in pairwise(times) if b > fault_at]
        assert gaps, "nothing was acknowledged after the fault"
        return max(gaps)


@dataclass(slots=True)
class Faults:
    """A world, with logs, faults of its network, and notes of what was measured."""

    world: World
    notes: Notes
    test: str
    logs: list[Log] = field(default_factory=list)

    def log(self, *, on: str = "node1", copy_on: str | None = None, **options: str) -> Log:
        """A new volume with two copies (or as ``options`` say), held by ``on`` and in sync."""
        world = self.world
        if copy_on:
            options["nodes"] = f"{on},{copy_on}"
        options.setdefault("copies", "2")
        name = world.create(on, "log", **options)

        def replicas() -> list[str] | None:
            found = sorted(world.json(on, "volume", "show", name)["in_sync"])
            return found if len(found) == int(options["copies"]) - 1 else None

        there = story.wait_until(f"{name} has its copies", replicas)
        others = world.others(on, *there)
        log = Log(world, name, on, there, others[0] if others else None)
        self.logs.append(log)
        return log

    def writing(self, *flags: str, **options: str) -> tuple[Log, Writer]:
        """Such a volume, with a container that writes on its holder."""
        log = self.log(**options)
        log.world.container(log.holder, log.volume, "true")
        began = uptime()
        writer = log.write(log.holder, *flags)
        log.start_seconds = writer.acknowledged()[0].at - began
        log.world.lab.flush()  # so that Docker, too, knows its container after a power cut
        writer.goes_on()
        return log, writer

    def finish(
        self, log: Log, *, at: str, fault: str, outcome: str, since: float, allowed: float | None
    ) -> float:
        """Read the volume at ``at``, check it, and note what the fault did to its user.

        Args:
            allowed: seconds without an acknowledged record that the guarantees give for the fault;
                twice the time in which a container starts on this machine is added.
        """
        kept = log.read(at)
        told = log.check(kept)
        pause = log.pause_after(since)
        self.note(fault, outcome=outcome, pause=pause, allowed=allowed, told=told)
        if allowed is not None:
            limit = allowed + 2 * log.start_seconds + 1
            assert pause <= limit, f"{pause:.1f} s without an answer; allowed were {limit:.1f} s"
        return pause

    def note(
        self, fault: str, *, outcome: str, pause: float, allowed: float | None, told: int
    ) -> None:
        """Keep what was measured."""
        note = Note(
            fault=fault,
            outcome=outcome,
            pause_seconds=round(pause, 2),
            allowed_seconds=allowed,
            lost=0,  # or the check had failed
            acknowledged=told,
            test=self.test,
        )
        print(f"{fault}: {pause:.2f} s, {told} records, none lost")
        self.notes.add(note)

    # -- faults ----------------------------------------------------------------------------------

    @contextmanager
    def dropping(self, node: str, *rules: str) -> Iterator[None]:
        """Let the node's kernel drop packets: each rule is ``INPUT ...`` or ``OUTPUT ...``.

        All of them from the same moment on: with one way cut before the other, it is another fault.
        """

        def change(how: str) -> None:
            lines = ["*filter", *(f"-{how} {rule} -j DROP" for rule in rules), "COMMIT", ""]
            self.world.run(node, "iptables-restore", "-w", "-n", input="\n".join(lines))

        change("I")
        try:
            yield
        finally:
            if any(each.name == node and each.state != "crashed" for each in self.world.lab.nodes):
                change("D")

    def between(self, one: str, other: str) -> list[str]:
        """Rules for ``one`` that cut it off from ``other`` only."""
        address = self.address(other)
        return [f"INPUT -s {address}", f"OUTPUT -d {address}"]

    def address(self, node: str) -> str:
        return next(each.address for each in self.world.lab.nodes if each.name == node)

    def boot(self, *nodes: str) -> None:
        """Switch machines on and wait until everything is up: nobody cleans up by hand."""
        for node in nodes:
            self.world.lab.boot(node, wait=False)
            for writer in (each for log in self.logs for each in log.writers):
                if writer.node == node:
                    writer.listen()
        self.world.wait_until_all_up()

    def wait_until_down(self, node: str, *, seen_by: str) -> None:
        """Wait until ``seen_by`` knows that the node's lease is over."""

        def down() -> bool:
            listed = self.world.json(seen_by, "node", "ls")
            return any((view["name"], view["state"]) == (node, "down") for view in listed)

        story.wait_until(f"{seen_by} sees {node} down", down)

    def is_running(self, writer: Writer) -> bool:
        return self.world.is_running(writer.node, writer.container)


def wait_until(what: str, look: Callable[[], Any], *, seconds: float = 90.0) -> Any:
    """See :func:`demo.story.wait_until`."""
    return story.wait_until(what, look, seconds=seconds)
