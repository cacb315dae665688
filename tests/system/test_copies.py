"""Volumes with copies: what is left when a node is lost, cut off, or away for a while.

No test looks at a clock to say what is right. What a copy must have follows from what the holder
says of it: a copy of age A has everything that was written before now - A.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from cluster_world import World, check_sequence
from demo import story

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

IMAGE = "localhost:5000/busybox:1"
DEVICE = "/dev/pannier-pool"

# Appends "HOST NUMBER BOOTTIME CHECKSUM", each line synced before its number is said. It goes on with
# the number after the last line that it finds, so that a lost line is a gap and a second writer, or a
# line that comes twice, a duplicate. What is half a line or of another content has another checksum.
WRITER = """
trap 'exit 0' TERM
n=0
[ -s /data/log ] && n=$(tail -n 1 /data/log | cut -d ' ' -f 2)
while :; do
  n=$((n + 1))
  read up rest </proc/uptime
  line="$HOST $n $up"
  sum=$(echo "$line" | md5sum | cut -c 1-32)
  echo "$line $sum" >>/data/log && sync /data/log && echo $n || exit 1
  sleep 0.05
done
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the writer's, whole."""

    host: str
    number: int
    at: float


def read(text: str) -> list[Line]:
    """The lines of a log, none garbled."""
    lines = []
    for raw in text.splitlines():
        head, _, digest = raw.rpartition(" ")
        assert hashlib.md5(f"{head}\n".encode()).hexdigest() == digest, f"garbled: {raw!r}"
        host, number, at = head.split()
        lines.append(Line(host, int(number), float(at)))
    return lines


def check_whole(lines: list[Line], *, at_least: int) -> None:
    """Everything up to ``at_least`` is there, nothing twice, and one writer at a time."""
    check_sequence([(line.host, line.number) for line in lines])
    assert len(lines) >= at_least, f"{at_least} lines were on the copy, and {len(lines)} are there"


def uptime() -> float:
    """Seconds on the clock that all machines of a lab share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def writer(world: World, node: str, volume: str, *flags: str) -> str:
    """A container on ``node`` that writes such lines."""
    name = f"{volume}-on-{node}"
    command = world.docker_run(volume, "-d", "--name", name, "-e", f"HOST={node}", *flags)
    world.run(node, *command, "sh", "-c", WRITER)
    story.wait_until("the writer writes", lambda: world.acknowledged(node, name))
    return name


def show(world: World, name: str, *, at: str) -> dict[str, Any]:
    shown: dict[str, Any] = world.json(at, "volume", "show", name)
    return shown


def copies(world: World, name: str, *, at: str) -> dict[str, dict[str, Any]]:
    """The copies that ``pannier volume show`` lists, by node."""
    return {copy["node"]: copy for copy in show(world, name, at=at)["copies"] or []}


def wait_for_copies(world: World, name: str, *, at: str) -> dict[str, dict[str, Any]]:
    """Wait until all copies have everything that was written up to now."""
    began = uptime()

    def have_all() -> dict[str, dict[str, Any]] | None:
        asked = uptime()
        found = copies(world, name, at=at)
        ages = [copy["lag_seconds"] for copy in found.values()]
        # Ages are rounded to a tenth.
        whole = ages and all(age is not None and asked - age > began + 0.1 for age in ages)
        return found if whole else None

    return story.wait_until(f"the copies of {name} are current", have_all, seconds=120)


def replica_of(world: World, name: str, *, at: str) -> str:
    """The node of the one copy."""
    (node,) = story.wait_until("it has a copy", lambda: list(copies(world, name, at=at)))
    return str(node)


def wait_until_down(world: World, node: str, *, seen_by: str) -> None:
    story.wait_until(
        f"{seen_by} sees {node} down",
        lambda: world.json(seen_by, "node", "show", node)["state"] == "down",
    )


def stray_is_told(world: World, node: str, name: str) -> bool:
    found = world.json(node, "doctor")
    return any(f["subject"] == f"volume {name}" and "stray of epoch 1" in f["what"] for f in found)


def received(world: World, node: str, name: str) -> list[dict[str, str]]:
    """What the daemon of a node has logged of transfers to it."""
    script = f"journalctl -u pannierd -b -o cat --grep 'transport.received' | grep {name} || :"
    lines = world.sh(node, script).splitlines()
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


# -- the holder is lost -------------------------------------------------------------------------------


@pytest.mark.faults  # test_failover has it on every merge, with a database
def test_f01_a_service_goes_on_from_the_copy_after_its_node_lost_power(cuttable: World) -> None:
    """Nobody has to say anything; the lost node is a copy again when it is back, and keeps the rest."""
    world, name = cuttable, cuttable.name("db")
    world.run(
        "node1", "docker", "service", "create", "--detach", "--name", name, "--no-resolve-image",
        "--endpoint-mode", "dnsrr", "--restart-delay", "1s", "--env", "HOST={{.Node.Hostname}}",
        "--mount",
        f"type=volume,source={name},target=/data,volume-driver=pannier,volume-opt=copies=2",
        IMAGE, "sh", "-c", WRITER,
    )  # fmt: skip
    task = story.wait_until("the service runs", lambda: story.running_task(world.lab, name))
    holder = task.node
    replica = replica_of(world, name, at=holder)
    story.wait_until("lines", lambda: world.acknowledged(holder, task.container) > 40)
    story.wait_until("in sync", lambda: copies(world, name, at=holder)[replica]["in_sync"])

    sure = world.acknowledged(holder, task.container)
    world.lab.crash(holder)
    moved = story.wait_until(
        "the service runs elsewhere",
        lambda: story.running_task(world.lab, name, not_on=holder),
        seconds=150,
    )
    story.wait_until("it goes on", lambda: world.acknowledged(moved.node, moved.container) > sure)
    lines = read(world.run(moved.node, "cat", f"{story.MOUNTS}/{name}/log"))
    check_whole(lines, at_least=sure)
    kept = [line for line in lines if line.host == holder]
    world.lab.boot(holder)
    world.wait_until_all_up()
    # Whoever is a copy now: the service may have been started on a node that had none.
    current = world.holder(name)
    wait_for_copies(world, name, at=current)
    story.wait_until("the stray is told", lambda: stray_is_told(world, holder, name))
    stray = read(world.former(holder, name, "log", tree="1"))
    assert stray[: len(kept)] == kept
    assert {line.host for line in stray} == {holder}


@pytest.mark.faults  # tests/system/faults has it on every merge
def test_f20_a_holder_that_is_cut_off_ends_its_containers_and_a_copy_goes_on(
    cuttable: World,
) -> None:
    """What the old one acknowledged is there; it wrote nothing more, and is a copy again afterwards."""
    world = cuttable
    name = world.create("node1", copies="2")
    old = writer(world, "node1", name)
    replica = replica_of(world, name, at="node1")
    story.wait_until("in sync", lambda: copies(world, name, at="node1")[replica]["in_sync"])
    with world.cut("node1"):
        new = writer(world, replica, name)
        story.wait_until("the old container ends", lambda: not world.is_running("node1", old))
        sure = world.acknowledged("node1", old)
        story.wait_until("more lines", lambda: world.acknowledged(replica, new) > sure + 20)
    ended = world.run("node1", "docker", "inspect", "-f", "{{.State.ExitCode}}", old)
    assert ended.strip() == "137"
    world.wait_until_all_up()
    wait_for_copies(world, name, at=replica)
    assert copies(world, name, at=replica).keys() == {"node1"}, "it is a copy again"
    world.refused("node1", "touch", f"{story.MOUNTS}/{name}/intruder", says=["not permitted"])
    assert world.holder(name) == replica
    world.stop(replica, new)
    lines = read(world.container("node1", name, "cat", "/data/log"))
    check_whole(lines, at_least=sure)
    assert [host for host, _ in itertools.groupby(lines, key=lambda one: one.host)] == [
        "node1",
        replica,
    ]
    world.run("node1", "docker", "rm", old)


# -- a copy is away ---------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_copy_whose_node_lost_power_disturbs_nobody_and_catches_up(cuttable: World) -> None:
    world = cuttable
    name = world.filled("node1", mebibytes=24, files=10, copies="2")
    writing = writer(world, "node1", name)
    replica = replica_of(world, name, at="node1")
    wait_for_copies(world, name, at="node1")
    last = copies(world, name, at="node1")[replica]["generation"]
    world.lab.crash(replica)
    sure = world.acknowledged("node1", writing)
    story.wait_until("it writes on", lambda: world.acknowledged("node1", writing) > sure + 60)
    behind = story.wait_until(
        "it is said to be behind",
        lambda: (
            (c := copies(world, name, at="node1")[replica])["error"] and c["lag_seconds"] > 5 and c
        ),
    )
    assert f"node {replica}" in behind["error"]
    world.lab.boot(replica)
    world.wait_until_all_up()
    assert copies(world, name, at="node1").keys() == {replica}
    wait_for_copies(world, name, at="node1")
    first = received(world, replica, name)[0]
    assert int(first["bytes"]) < 8 * 2**20, f"not everything again: {first}, and it had {last}"
    lines = world.acknowledged("node1", writing)
    world.stop("node1", writing)
    check_whole(read(world.container("node1", name, "cat", "/data/log")), at_least=lines)


def make_a_member_again(world: World, node: str, *, address: str) -> None:
    """Give the etcd member of a node that was removed a certificate that is not refused."""
    folder = f"/root/etcd-{node}"
    files = world.sh(
        "node1",
        f"rm -rf {folder}; pannier ca issue etcd-{node} --address {address} --out {folder} >/dev/null; "
        f"tar -c -C {folder} ca.crt tls.crt tls.key | base64; rm -r {folder}",
    )
    install = "base64 -d | tar -x -C /etc/etcd/pki; chown -R etcd:etcd /etc/etcd/pki; systemctl restart etcd"
    world.run(node, "sh", "-euc", install, input=files)


def test_f66_a_copy_is_made_elsewhere_when_its_node_is_given_up(cuttable: World) -> None:
    """And the node can join again later."""
    world = cuttable
    name = world.create("node1", nodes="node1,node3", copies="2")
    world.write("node1", name, mebibytes=4, files=50)
    before = world.manifest("node1", name)
    wait_for_copies(world, name, at="node1")
    assert copies(world, name, at="node1").keys() == {"node3"}
    world.lab.crash("node3")
    wait_until_down(world, "node3", seen_by="node1")
    try:
        world.run("node1", "pannier", "node", "rm", "--lost", "node3")
        story.wait_until(
            "the copy is made on node2", lambda: [*copies(world, name, at="node1")] == ["node2"]
        )
        wait_for_copies(world, name, at="node1")
        world.move(name, "node2")
        assert world.manifest("node2", name) == before
    finally:
        world.lab.boot("node3")
        token = world.printed("node1", "token", "create")["token"]
        first, third = world.lab.nodes[0], world.lab.nodes[2]
        make_a_member_again(world, third.name, address=third.address)
        world.sh("node3", "mkdir -p /root/old && rm -rf /root/old/* && mv /etc/pannier/* /root/old")
        join = ["pannier", "join", first.address, "--token", token, "--address", third.address]
        world.run("node3", *join, "--name", "node3", "--pool", DEVICE)
        world.wait_until_all_up()


# -- moves ------------------------------------------------------------------------------------------------


def test_f06_a_drained_node_loses_its_service_and_the_volume_keeps_two_copies(
    cuttable: World,
) -> None:
    world, name = cuttable, cuttable.name("svc")
    world.run(
        "node1", "docker", "service", "create", "--detach", "--name", name, "--no-resolve-image",
        "--endpoint-mode", "dnsrr", "--env", "HOST={{.Node.Hostname}}", "--stop-grace-period", "5s",
        "--mount",
        f"type=volume,source={name},target=/data,volume-driver=pannier,volume-opt=copies=2",
        IMAGE, "sh", "-c", WRITER,
    )  # fmt: skip
    task = story.wait_until("the service runs", lambda: story.running_task(world.lab, name))
    for _ in range(2):
        story.wait_until("lines", partial(world.acknowledged, task.node, task.container))
        wait_for_copies(world, name, at=task.node)
        sure, left = world.acknowledged(task.node, task.container), task.node
        manager = world.others(left)[0]
        story.set_availability(world.lab, left, "drain", asked=manager)
        try:
            task = story.wait_until(
                "the service runs elsewhere",
                partial(story.running_task, world.lab, name, not_on=left),
            )
        finally:
            story.set_availability(world.lab, left, "active", asked=manager)
        story.wait_until("it goes on", partial(world.has_more, task.node, task.container, sure))
        assert world.holder(name) == task.node
        found = wait_for_copies(world, name, at=task.node)
        assert found.keys() == {left}, "the former holder is the copy"
        check_whole(read(world.run(task.node, "cat", f"{story.MOUNTS}/{name}/log")), at_least=sure)


@pytest.mark.faults
def test_f43_f63_the_first_copy_of_much_data_is_made_while_it_is_written(cuttable: World) -> None:
    world = cuttable
    name = world.create("node1", copies="2", interval="1s")
    writing = writer(world, "node1", name)
    world.write("node1", name, mebibytes=300, files=200)
    sure = world.acknowledged("node1", writing)
    wait_for_copies(world, name, at="node1")
    replica = replica_of(world, name, at="node1")
    story.wait_until("it writes on", lambda: world.acknowledged("node1", writing) > sure + 20)
    last = world.acknowledged("node1", writing)
    world.stop("node1", writing)
    before = world.manifest("node1", name)
    world.move(name, replica)
    assert world.manifest(replica, name) == before
    check_whole(read(world.container(replica, name, "cat", "/data/log")), at_least=last)


# -- what is said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"copies": "9"}, ["copies=9 needs as many nodes", "has 3", "join more nodes"]),
        ({"durability": "fsync"}, ["needs a second copy", "copies=2"]),
        ({"copies": "2", "min_copies": "3"}, ["min_copies=3 with copies=2 could never be met"]),
        (
            {"copies": "2", "driver": "directory"},
            ["the directory driver keeps one copy", "driver=btrfs"],
        ),
        ({"copies": "2", "durability": "none"}, ["never be up to date"]),
        ({"durability": "interval"}, ["needs a second copy", "copies=2"]),
        ({"interval": "5s"}, ["more than one copy", "copies=2"]),
        ({"copies": "2", "interval": "1ms"}, ["interval=1ms is out of range", "200ms to 60m"]),
        ({"copies": "0"}, ["copies=0 is not allowed"]),
    ],
)
def test_what_cannot_be_is_refused_in_plain_words(
    power_lab: Lab, options: dict[str, str], says: list[str]
) -> None:
    world = World(power_lab)
    name = world.name()
    world.check_not_created(name, options, says=says)


def test_people_see_how_far_the_copies_are(cuttable: World) -> None:
    world = cuttable
    name = world.filled("node1", files=5, copies="3", interval="500ms")
    found = wait_for_copies(world, name, at="node3")
    assert found.keys() == {"node2", "node3"}
    shown = show(world, name, at="node2")
    assert {copy["generation"] for copy in shown["copies"]} == {shown["generation"]}
    assert sorted(shown["copies_on"]) == world.nodes
    said = world.run("node3", "pannier", "volume", "show", name)
    for node in ("node2", "node3"):
        assert re.search(rf"{node}: generation 1\.\d+-[0-9a-f]+, \d+ s behind", said), said
    world.refused(
        "node2", "pannier", "volume", "recover", name, "--accept-loss",
        says=["node node1", "is up", "pannier volume move"], status=4,
    )  # fmt: skip
