"""Disks that fail, are full, or return other bytes than were written."""

from __future__ import annotations

import json

import pytest
from cluster_world import IMAGE, IMAGES, MOUNTS, STAGING, World
from demo import story
from fault_world import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    TAKEOVER_SECONDS,
    Faults,
    Log,
    Writer,
    uptime,
    wait_until,
)

from pannier.core.pace import Pace

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NOTICE_SECONDS = 1.5
"""Until btrfs has met the error, and pannierd has seen that."""
HANG_SECONDS = Pace().agent.disk_hang
"""Until a disk that answers nothing is given up."""
FILLER = "/var/lib/pannier/pool/filler"
# Large pieces first, then small ones: until there is no room for a generation's metadata either.
FILL = f"""
mkdir -p {FILLER}
for size in 4G 1G 200M 20M 1M; do
  i=0
  while fallocate -l $size {FILLER}/$size.$i 2>/dev/null; do i=$((i + 1)); done
done
i=0
while head -c 2000 /dev/zero >{FILLER}/small.$i 2>/dev/null && [ $i -lt 20000 ]; do i=$((i + 1)); done
sync -f {FILLER} || :
"""


def test_f50_the_copys_disk_fails(faults: Faults) -> None:
    """The copy leaves what counts; its node is switched off and on with a sound disk, and it joins."""
    log, writer = faults.writing()
    failed_at = uptime()
    faults.world.lab.disk(log.replica, "fail")
    writer.goes_on(records=20)
    log.wait_in_sync([], at="node1")
    writer.goes_on()
    told = len(writer.acknowledged())
    pause = log.pause_after(failed_at)
    faults.world.lab.disk(log.replica, "heal")
    faults.world.lab.crash(log.replica)
    faults.boot(log.replica)
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    log.check(log.read(log.replica))
    faults.note(
        "F50 the disk of the copy fails", outcome="sync calls go on without the copy",
        pause=pause, allowed=PATIENCE_SECONDS, told=told,
    )  # fmt: skip
    assert pause < PATIENCE_SECONDS + LEASE_SECONDS


@pytest.mark.faults
def test_f52_the_copys_pool_is_full(faults: Faults) -> None:
    """The copy leaves what counts, and joins by itself when there is room again."""
    log, writer = faults.writing()
    began = uptime()
    faults.world.sh(log.replica, FILL)
    try:
        faults.world.run("node1", "docker", "exec", writer.container, "sh", "-c",
                         "dd if=/dev/urandom of=/data/bulk bs=1M count=8")  # fmt: skip
        log.wait_in_sync([], at="node1")
        writer.goes_on(records=20)
        shown = faults.world.json("node1", "volume", "show", log.volume)["copies"][0]
        assert "space" in shown["error"] or "full" in shown["error"], shown
    finally:
        faults.world.sh(log.replica, f"rm -rf {FILLER}")
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS,
        fault="F52 the pool of the copy is full", outcome="sync calls go on without the copy",
    )  # fmt: skip


@pytest.mark.faults
def test_f52_the_holders_pool_is_full(faults: Faults) -> None:
    """Somebody else takes all room at once: who writes stands still or is told. It goes on with room."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    world.sh("node1", FILL)
    try:
        wait_until(
            "nobody can write",
            lambda: world.json("node1", "volume", "show", log.volume)["stands_still"],
        )
    finally:
        world.sh("node1", f"rm -rf {FILLER}")
    before = len(writer.acknowledged())

    def goes_on() -> bool:
        if not faults.is_running(writer):  # a write was refused, and the volume is mounted anew
            world.attempt("node1", "docker", "start", writer.container)
        return len(writer.acknowledged()) > before + 10

    wait_until("it goes on", goes_on)
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=None,
        fault="F52 the pool of the holder is full", outcome="who writes stands still until there is room",
    )  # fmt: skip


# Overwrites a block in each place that has it, found by its bytes, on the device itself. No other block is touched:
# somebody may be writing it. A copy's journal may have the bytes, too, but not at a block's beginning.
CORRUPT = r"""
import mmap, os, sys
block = bytes.fromhex(sys.argv[1])
STEP = 2**20
device = os.open("/dev/pannier-pool", os.O_RDWR | os.O_DIRECT)
buffer, found = mmap.mmap(-1, STEP), 0
for start in range(0, 8 * 2**30, STEP):
    os.preadv(device, [buffer], start)
    at = buffer.find(block)
    while at >= 0:
        if at % 4096 == 0:
            buffer[at : at + 16] = bytes(16)
            os.pwritev(device, [memoryview(buffer)[at : at + 4096]], start + at)
            found += 1
        at = buffer.find(block, at + 1)
if not found:
    sys.exit("its bytes are not on the device")
"""


def test_f58_a_copys_bytes_change_on_its_disk(faults: Faults) -> None:
    """Reading every copy finds the block, and it is mended with the holder's, under a writer."""
    log, writer = faults.writing()
    world, replica = faults.world, log.replica
    before, block = _victim(faults, log, writer)
    began = uptime()
    world.run(replica, "/opt/pannier/venv/bin/python3", "-", block, input=CORRUPT)
    writer.goes_on()
    found = {
        check["node"]: check for check in world.printed("node1", "volume", "verify", log.volume)
    }
    # "read" where the copy had a newer generation by then, and nothing was left to compare it with.
    assert found["node1"]["state"] in ("whole", "read")
    assert found[replica]["state"] == "mended"
    assert "the image's block at" in found[replica]["error"]
    writer.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    found = {
        check["node"]: check for check in world.printed("node1", "volume", "verify", log.volume)
    }
    assert {check["state"] for check in found.values()} == {"whole"}
    log.stop(writer)
    told = log.check(log.read("node1"))
    after = world.run(replica, *world.docker_run(log.volume, "--rm"), "md5sum", "/data/victim")
    assert after == before
    faults.note(
        "F58 bytes of a copy change on its disk",
        outcome="reading all of it finds the block; it is mended with the other copy's",
        pause=log.pause_after(began), allowed=PATIENCE_SECONDS, told=told,
    )  # fmt: skip


@pytest.mark.faults
def test_f58_the_holders_bytes_change_on_its_disk(faults: Faults) -> None:
    """The copy's checksum proves it, the remedy moves the volume there, and the node's own is made anew then."""
    log, writer = faults.writing()
    world, replica = faults.world, log.replica
    before, block = _victim(faults, log, writer)
    log.stop(writer)
    world.run("node1", "/opt/pannier/venv/bin/python3", "-", block, input=CORRUPT)
    done = world.attempt("node1", "pannier", "volume", "verify", log.volume, "-o", "json")
    assert done.status == 10
    found = {check["node"]: check for check in json.loads(done.out)}
    assert (found["node1"]["state"], found[replica]["state"]) == ("damaged", "whole")
    assert world.printed("node1", "volume", "show", log.volume)["damage"]
    world.run("node1", *found["node1"]["remedy"].split())
    after = world.run(replica, *world.docker_run(log.volume, "--rm"), "md5sum", "/data/victim")
    assert after == before

    def made_anew() -> bool:
        history = world.printed(replica, "volume", "history", log.volume)
        return ("volume.made anew", "node1") in [(each["kind"], each["node"]) for each in history]

    wait_until("node1 has set its copy aside", made_anew, seconds=150)
    log.wait_in_sync(["node1"], at=replica)
    checks = world.printed(replica, "volume", "verify", log.volume)
    assert {check["state"] for check in checks} == {"whole"}
    log.check(log.read(replica))


def _victim(faults: Faults, log: Log, writer: Writer) -> tuple[str, str]:
    """The checksum of a new file that all have, and its first block in hex."""
    world = faults.world
    world.run("node1", "docker", "exec", writer.container, "sh", "-c",
              "dd if=/dev/urandom of=/data/victim bs=4k count=64; sync /data/victim")  # fmt: skip
    before = world.run("node1", "docker", "exec", writer.container, "md5sum", "/data/victim")
    block = world.sh(
        "node1", f"head -c 4096 {MOUNTS}/{log.volume}/victim | od -An -v -tx1 | tr -d ' \\n'"
    )
    for _ in range(2):  # the copy has a generation with it then, and the newest was made after that
        _wait_for_generation(world, log)
    log.wait_in_sync(log.replicas, at="node1")
    return before, block


def _wait_for_generation(world: World, log: Log) -> None:
    def newest() -> str:
        return str(world.json("node1", "volume", "show", log.volume)["generation"])

    before = newest()
    wait_until("there is a newer generation", lambda: newest() != before)


@pytest.mark.faults
@pytest.mark.parametrize("where", ["copy", "holder"])
def test_f51_a_disk_crawls(faults: Faults, where: str) -> None:
    """The copy's: it leaves what counts, or keeps up. The holder's: sync calls take their time."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    node = log.replica if where == "copy" else log.holder
    # At 125 kB/s, sync calls of a holder were seen to take 22 s each, in a pool after forty volumes.
    records = 4 if where == "copy" else 1
    world.lab.disk(node, "slow")
    try:
        for _ in range(5):
            writer.goes_on(records=records, seconds=60)
            assert not world.lease_lacks(node)  # the daemon does not stand still with its disk
        assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    finally:
        world.lab.disk(node, "heal")
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS if where == "copy" else None,
        fault=f"F51 the disk of the {where} crawls", outcome="the container goes on, slower",
    )  # fmt: skip


@pytest.mark.faults
def test_f51_the_holders_disk_hangs(faults: Faults) -> None:
    """No error, and no answer: after the stated time a copy takes over. It comes back by itself when it answers."""
    log, old = faults.writing()
    world, replica, why = faults.world, log.replica, "it hangs"
    hung_at = uptime()
    world.lab.disk("node1", "hang")
    try:
        new = log.write(replica)
        shown = world.json(replica, "volume", "show", log.volume)
        assert (shown["holder"], shown["epoch"]) == (replica, 2)
        assert why in world.json(replica, "node", "show", "node1")["disk_error"]
        world.refused("node1", "pannier", "doctor", says=[why], status=10)
        world.refused("node1", *world.docker_run(log.volume, "--rm"), "ls", "/data", says=[why])
        new.goes_on()
    finally:
        world.lab.disk("node1", "heal")
    wait_until("the old container is ended", lambda: not faults.is_running(old))
    log.wait_in_sync(["node1"], at=replica)
    assert world.json(replica, "node", "show", "node1")["disk_error"] == ""
    log.stop(new)
    faults.finish(
        log, at="node1", since=hung_at, allowed=HANG_SECONDS + TAKEOVER_SECONDS + NOTICE_SECONDS,
        fault="F51 the disk of the holder hangs", outcome="a copy takes over; the node comes back by itself",
    )  # fmt: skip


@pytest.mark.faults
def test_f51_the_copys_disk_hangs(faults: Faults) -> None:
    """It leaves what counts, as one that is slow, and joins by itself when it answers."""
    log, writer = faults.writing()
    hung_at = uptime()
    faults.world.lab.disk(log.replica, "hang")
    try:
        writer.goes_on(records=20)
        log.wait_in_sync([], at="node1")
        faults.wait_until_down(log.replica, seen_by="node1")
        writer.goes_on()
    finally:
        faults.world.lab.disk(log.replica, "heal")
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=hung_at, allowed=PATIENCE_SECONDS,
        fault="F51 the disk of the copy hangs", outcome="sync calls go on without the copy",
    )  # fmt: skip


@pytest.mark.faults
def test_f51_a_daemon_whose_disk_hangs_can_be_replaced(faults: Faults) -> None:
    """Its threads that wait for the disk cannot be killed. It ends, and another one says what is wrong."""
    log, _ = faults.writing()
    world, replica = faults.world, log.replica
    world.lab.disk("node1", "hang")
    try:
        faults.wait_until_down("node1", seen_by=replica)
        world.run("node1", "systemctl", "restart", "pannierd")
        world.wait_for_pannier("node1")
        disk_error = lambda: world.json(replica, "node", "show", "node1")["disk_error"]  # noqa: E731
        wait_until("it is told again", lambda: "it hangs" in (disk_error() or ""), seconds=10)
        faults.wait_until_down("node1", seen_by=replica)
    finally:
        world.lab.disk("node1", "heal")
    world.wait_until_all_up()


@pytest.mark.faults
def test_f56_the_holders_disk_fails(faults: Faults) -> None:
    """Its file system goes read-only: to the others its node is lost, until it has a sound disk."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    failed_at = uptime()
    world.lab.disk("node1", "fail")
    new = log.write(replica)
    shown = world.json(replica, "volume", "show", log.volume)
    assert (shown["holder"], shown["epoch"]) == (replica, 2)
    assert "lease ran out" in world.run(replica, "pannier", "volume", "history", log.volume)
    wait_until("the old container is ended", lambda: not faults.is_running(old))
    why = "takes no writes any more"
    world.refused("node1", "pannier", "doctor", says=[why], status=10)
    world.refused("node1", *world.docker_run(log.volume, "--rm"), "ls", "/data", says=[why])
    new.goes_on()
    world.lab.disk("node1", "heal")
    world.lab.crash("node1")
    faults.boot("node1")
    log.wait_in_sync(["node1"], at=replica)
    log.stop(new)
    faults.finish(
        log, at="node1", since=failed_at, allowed=TAKEOVER_SECONDS + NOTICE_SECONDS,
        fault="F56 the disk of the holder fails", outcome="a copy takes over; the node comes back as a copy",
    )  # fmt: skip


SERVICE = """
while :; do
  n=$(cat /data/number 2>/dev/null || echo 0); echo $((n + 1)) >/data/new
  mv /data/new /data/number; sync /data/number /data; sleep 0.1
done
"""


@pytest.mark.faults
def test_f56_a_service_leaves_the_node_whose_disk_failed(faults: Faults) -> None:
    """Swarm finds nothing wrong with the node: it is drained until it has a sound disk.

    As long as another one is kept empty, of three, it is not.
    """
    world = faults.world

    def available(node: str) -> str:
        asked = world.others(node)[0]
        inspect = ("docker", "node", "inspect", "-f", "{{.Spec.Availability}}", node)
        return world.run(asked, *inspect).strip()

    world.wait_until_all_take_tasks()  # one that was drained again and again is given back late
    volume, name = faults.log().volume, world.name("svc")
    world.run(
        "node1", "docker", "service", "create", "--detach", "--name", name, "--no-resolve-image",
        "--mount", f"type=volume,source={volume},target=/data,volume-driver=pannier",
        "--endpoint-mode", "dnsrr", IMAGE, "sh", "-c", SERVICE,
    )  # fmt: skip
    victim = wait_until("it runs", lambda: story.running_task(world.lab, name)).node
    manager = world.others(victim)[0]

    def number(node: str) -> int:
        mounted = f"{MOUNTS}/{volume}/number"
        return int(world.attempt(node, "cat", mounted).out or 0)

    wait_until("it counts", lambda: number(victim) > 10)
    world.lab.flush()
    before, failed_at = number(victim), uptime()
    world.lab.disk(victim, "fail")
    elsewhere = lambda: story.running_task(world.lab, name, not_on=victim)  # noqa: E731
    there = wait_until("it runs elsewhere", elsewhere).node
    wait_until("it goes on counting", lambda: number(there) > before)
    print(f"it counted elsewhere {uptime() - failed_at:.1f} s after its disk had failed")
    wait_until("it is drained", lambda: available(victim) == "drain")
    assert "no writes" in world.json(manager, "node", "show", victim)["disk_error"]
    world.lab.disk(victim, "heal")
    world.lab.crash(victim)
    faults.boot(victim)
    wait_until("it is given back", lambda: available(victim) == "active")
    assert world.json(manager, "node", "show", victim)["disk_error"] == ""


@pytest.mark.faults
def test_f56_what_has_only_this_copy_is_not_touched(faults: Faults) -> None:
    """It is mended, too, without a start of anything."""
    world, name = faults.world, faults.world.create("node1")
    world.container("node1", name, "sh", "-c", "echo kept >/data/note; sync")
    why = "takes no writes any more"
    pool = "/var/lib/pannier/pool"

    def disk_error() -> str:
        return str(world.json("node2", "node", "show", "node1")["disk_error"])

    # The kernel makes no file system read-only while somebody writes to it: the daemon its journal, a device its image.
    world.stop_pannier("node1")
    world.sh("node1", f"umount {MOUNTS}/{name} {STAGING}/*")
    world.sh("node1", f"until mount -o remount,ro {pool}; do sleep 0.2; done")
    try:
        world.start_pannier("node1")
        wait_until("it is told", lambda: why in disk_error())
        for verb in (["move", name, "node2"], ["rm", name]):
            world.refused("node1", "pannier", "volume", *verb, says=[why])
        world.run("node1", "systemctl", "restart", "pannierd")
        world.wait_for_pannier("node1")
        wait_until("it is told again", lambda: why in disk_error())
        world.refused("node1", *world.docker_run(name, "--rm"), "ls", "/data", says=[why])
    finally:
        world.run("node1", "mount", "-o", "remount,rw", pool)
    wait_until("it is mended", lambda: disk_error() == "")
    world.wait_until_all_up()
    assert world.container("node1", name, "cat", "/data/note") == "kept\n"
    world.run("node1", "systemctl", "restart", "pannierd")  # with a journal that it can write
    world.wait_for_pannier("node1")


@pytest.mark.faults
@pytest.mark.parametrize("which", ["the newest", "all"])
def test_f57_a_copys_generations_are_deleted_by_hand(faults: Faults, which: str) -> None:
    """It is made anew by itself, and whole."""
    log, writer = faults.writing()
    world, replica, began = faults.world, log.replica, uptime()
    volume_id = world.json("node1", "volume", "show", log.volume)["id"]
    trees = f"{IMAGES}/{volume_id}/generations/*/tree"
    some = f"ls -d {trees}" if which == "all" else f"ls -d {trees} | sort -V | tail -n 1"
    world.sh(replica, f"btrfs subvolume delete $({some})")
    writer.goes_on(records=20)
    wait_until(
        "the copy is made anew",
        lambda: (
            {each["state"] for each in world.printed("node1", "volume", "verify", log.volume)}
            <= {"whole", "read", "made anew"}
        ),
    )
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault=f"F57 {which} of a copy's generations are deleted by hand", outcome="it is made anew",
    )  # fmt: skip
