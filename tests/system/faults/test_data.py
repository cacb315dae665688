"""What a person does with data, while its node loses power at some moment of it: it is done and whole, or was not done."""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
from cluster_world import IMAGES, Outcome, World
from demo import looks, story
from fault_world import Faults, Log, Record, records_of, uptime, wait_until

from pannier.lab import LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

ANSWER_SECONDS = 15
"""For an answer of a node that may have asked one which is lost: longer than that is found out."""
SOURCE, REPOSITORY = "/srv/source", "/srv/repository"
FILL = "dd if=/dev/urandom of=/data/full bs=1M 2>&1 || true; sync"


@dataclass(slots=True)
class Asking:
    """Makes snapshots and clones of a volume, one after the other.

    Attributes:
        snapshots: those of which it was told that they are made, each with what was acknowledged before it was asked for.
        clones: the same.
    """

    log: Log
    at: str
    snapshots: dict[str, list[Record]] = field(default_factory=dict)
    clones: dict[str, list[Record]] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    def more(self) -> None:
        """A snapshot, and each fourth time a clone. Whether that can be is another question."""
        number = len(self.snapshots) + len(self.tried)
        if number % 4 == 3:
            new = self.log.world.name("clone")
            self.tried.append(new)
            body: dict[str, object] = {"new": new, "options": {"copies": "1"}}
            self._ask("clones", new, body, self.clones)
        else:
            new = f"at-{number}-{time.monotonic_ns()}"
            self._ask("snapshots", new, {"snapshot": new}, self.snapshots)

    def _ask(
        self, what: str, new: str, body: dict[str, object], told: dict[str, list[Record]]
    ) -> None:
        before = [one for each in self.log.writers for one in each.acknowledged()]
        daemon = looks.daemon(self.log.world.lab, self.at)
        with suppress(LabError, OSError):
            daemon.post(f"/v1/volumes/{self.log.volume}/{what}", body, timeout=ANSWER_SECONDS)
            told[new] = before


def crash_after(world: World, seconds: float, node: str = "node1") -> None:
    time.sleep(seconds)
    world.lab.crash(node)


def nothing_is_left(world: World, name: str) -> bool:
    """Whether no node's disk has anything of a volume of that name."""
    said = world.on_all(lambda node: world.sh(node, f"ls {IMAGES}"))
    return not [each for lines in said for each in lines.split() if each.startswith(f"{name}.")]


def check_state(kept: list[Record], *, before: list[Record], whole: list[Record]) -> None:
    """A state of the log at some time: all that was acknowledged before, and nothing that never was."""
    assert kept == whole[: len(kept)], "it is no beginning of what the volume has"
    there = {(one.host, one.number) for one in kept}
    assert not [one for one in before if (one.host, one.number) not in there], "it lacks records"


@pytest.mark.faults
@pytest.mark.parametrize("moment", [0.5, 1.3, 2.9])
def test_f71_snapshots_and_clones_are_made_while_the_holder_loses_power(
    faults: Faults, moment: float
) -> None:
    """Without a pause, before, during and after a takeover: what was told to be made is on both nodes, and has all."""
    log, _ = faults.writing()
    world, replica = faults.world, log.replica
    assert log.witness
    asking = Asking(log, log.witness)
    cut = world.start(crash_after, world, moment)
    while not cut.done():
        asking.more()
    crashed_at = uptime()
    new = log.begin(replica)
    while len(new.acknowledged()) < 20:
        asking.more()
    faults.boot("node1")
    log.wait_in_sync(["node1"], at=replica)
    for _ in range(4):
        asking.more()
    log.stop(new)
    whole = log.read(replica)
    listed = world.printed(replica, "volume", "snapshot", "ls", log.volume)
    assert asking.snapshots.keys() <= {each["name"] for each in listed}
    for each in listed:
        name = each["name"]
        wait_until(f"both have {name}", partial(_is_on_both, world, log, name))
        for node in ("node1", replica):
            kept = records_of(world.former(node, log.volume, "log", tree=name))
            check_state(kept, before=asking.snapshots.get(name, []), whole=whole)
    known = world.volumes_known()
    assert asking.clones.keys() <= known
    for name in known & set(asking.tried):
        kept = records_of(world.container(replica, name, "cat", "/data/log"))
        check_state(kept, before=asking.clones.get(name, []), whole=whole)
    for name in set(asking.tried) - known:
        wait_until(f"nothing is left of {name}", partial(nothing_is_left, world, name))
    faults.finish(
        log, at=replica, since=crashed_at, allowed=None,
        fault="F71 snapshots and clones are made while the holder loses power",
        outcome="each that was told to be made is on both nodes, and whole",
    )  # fmt: skip


def _is_on_both(world: World, log: Log, snapshot: str) -> bool:
    daemon = looks.daemon(world.lab, log.replica)
    return len(daemon.get(f"/v1/volumes/{log.volume}/snapshots/{snapshot}")["on"]) == 2


@pytest.mark.faults
@pytest.mark.parametrize("moment", [0.02, 0.1, 0.25, 0.5])
def test_f72_the_holder_loses_power_in_a_rollback(faults: Faults, moment: float) -> None:
    """A copy has what the volume was, or all of what it shall be; a rollback that was told to be done is done."""
    log = faults.log()
    world, replica, name = faults.world, log.replica, log.volume
    assert log.witness
    world.container("node1", name, "sh", "-c", "echo early >/data/state; sync")
    world.run("node1", "pannier", "volume", "snapshot", "create", name, "early")
    world.container("node1", name, "sh", "-c", "echo late >/data/state; sync")
    log.wait_in_sync([replica], at="node1")
    rollback = ("pannier", "volume", "rollback", name, "early")
    ended = world.start(world.attempt, log.witness, *rollback)
    crash_after(world, moment)
    done = ended.result().status == 0
    state = world.container(replica, name, "cat", "/data/state").strip()
    assert state in (("early",) if done else ("early", "late"))
    faults.boot("node1")
    log.wait_in_sync(["node1"], at=replica)
    assert world.container("node1", name, "cat", "/data/state").strip() == state
    world.run(log.witness, *rollback)
    assert world.container(replica, name, "cat", "/data/state") == "early\n"


@pytest.mark.faults
@pytest.mark.parametrize("moment", [0.3, 0.8, 1.5])
@pytest.mark.parametrize("what", ["import", "restore"])
def test_f72_a_node_loses_power_while_it_makes_a_volume_of_other_data(
    faults: Faults, what: str, moment: float
) -> None:
    """The volume has its name and is whole, or there is nothing of it; then the same command makes it."""
    world = faults.world
    new = world.name(what)
    world.sh(
        "node1", f"mkdir -p {SOURCE}; head -c 64M /dev/urandom >{SOURCE}/bulk; cp -r /etc {SOURCE}"
    )
    command: tuple[str, ...] = (
        "pannier",
        "volume",
        "import",
        new,
        "--from",
        f"dir:{SOURCE}",
        "-o",
        "copies=2",
    )
    if what == "restore":
        command = ("pannier", "backup", "restore", _backed_up(world), new)
    world.lab.flush()
    ended: Future[Outcome] = world.start(world.attempt, "node1", *command)
    crash_after(world, moment)
    ended.result()
    faults.boot("node1")
    if new not in world.volumes_known():
        wait_until("nothing is left of it", partial(nothing_is_left, world, new))
        world.run("node1", *command)
    there = world.container(
        "node1", new, "sh", "-c", "cd /data; find . -type f | sort | xargs md5sum"
    )
    wanted = world.sh("node1", f"cd {SOURCE}; find . -type f | sort | xargs md5sum")
    assert there == wanted
    world.sh("node1", f"rm -r {SOURCE}")
    if what == "restore":
        world.sh("node1", f"pannier backup target rm data; rm -r {REPOSITORY}")


def _backed_up(world: World) -> str:
    """A volume with what is to be brought back, of which there is a backup on node1."""
    name = world.name("backed")
    world.run("node1", "pannier", "volume", "import", name, "--from", f"dir:{SOURCE}")
    add = f"mkdir -p {REPOSITORY}; echo secret | pannier backup target add data {REPOSITORY} --password-file -"
    world.sh("node1", add)
    world.run("node1", "pannier", "backup", "run", name)
    return name


@pytest.mark.faults
@pytest.mark.parametrize("moment", [0.02, 0.2, 0.6])
def test_f76_the_holder_loses_power_while_its_volume_becomes_larger(
    faults: Faults, moment: float
) -> None:
    """Under a writer, and a volume that is full: a size that was told to be set is there after the takeover."""
    log, _ = faults.writing(size="100M")
    world, replica, name = faults.world, log.replica, log.volume
    assert log.witness
    grow = ("pannier", "volume", "set", name, "-o", "size=200M")
    ended = world.start(world.attempt, log.witness, *grow)
    crash_after(world, moment)
    crashed_at = uptime()
    done = ended.result().status == 0
    new = log.write(replica)
    new.goes_on()
    faults.boot("node1")
    log.wait_in_sync(["node1"], at=replica)
    size = world.json(replica, "volume", "show", name)["options"]["size"]
    assert size in (("200M",) if done else ("100M", "200M"))
    world.run(log.witness, *grow)
    says = ["never shrinks"]
    world.refused(log.witness, "pannier", "volume", "set", name, "-o", "size=100M", says=says)
    log.stop(new)
    faults.finish(
        log, at="node1", since=crashed_at, allowed=None,
        fault="F76 the holder loses power while its volume becomes larger",
        outcome="a copy takes over; the size is the old one, or the new one",
    )  # fmt: skip
    assert "No space left" in world.container("node1", name, "sh", "-c", FILL)
    assert _mebibytes(world, name) >= 195
    world.run(log.witness, "pannier", "volume", "set", name, "-o", "size=300M")
    story.wait_until("it is larger", lambda: _mebibytes(world, name) >= 295)
    assert "No space left" in world.container("node1", name, "sh", "-c", FILL)
    log.check(log.read("node1"))


def _mebibytes(world: World, name: str) -> int:
    """The size that a new container on node1 sees."""
    return int(world.container("node1", name, "sh", "-c", "df -m /data | tail -n 1").split()[1])
