"""Copies that are being made, and takeovers that meet, while a container writes."""

from __future__ import annotations

import pytest
from fault_world import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    TAKEOVER_SECONDS,
    Faults,
    uptime,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("source", marks=pytest.mark.faults),
        pytest.param("target", marks=pytest.mark.faults),
        "power",
    ],
)
def test_f60_f59_a_copy_that_catches_up_is_interrupted(faults: Faults, fault: str) -> None:
    """By the end of either daemon, or of the copy's machine: it is made all the same, and whole."""
    log, writer = faults.writing()
    world, replica = faults.world, log.replica
    began = uptime()
    world.stop_pannier(replica)
    writer.goes_on()
    log.wait_in_sync([], at="node1")
    bulk = "dd if=/dev/urandom of=/data/bulk bs=1M count=200 2>/dev/null; sync /data/bulk"
    world.run("node1", "docker", "exec", writer.container, "sh", "-c", bulk)
    world.start_pannier(replica)
    wait_until(
        "the copy is on its way",
        lambda: world.json("node1", "node", "show", replica)["state"] == "up",
    )
    if fault == "power":
        faults.world.lab.crash(replica)
        faults.boot(replica)
    else:
        world.kill("node1" if fault == "source" else replica, "pannierd")
    log.wait_in_sync([replica], at="node1", seconds=120)
    writer.goes_on()
    log.stop(writer)
    whole = world.manifest("node1", log.volume)
    assert world.manifest(replica, log.volume) == whole
    faults.finish(
        log, at=replica, since=began, allowed=None,
        fault=f"F60 a copy that catches up is interrupted ({fault})", outcome="it is made, and whole",
    )  # fmt: skip


@pytest.mark.faults
def test_f61_a_copy_that_is_interrupted_again_and_again_gets_the_difference_only(
    faults: Faults,
) -> None:
    """Not all of the volume once more, whenever its daemon was away."""
    log, writer = faults.writing()
    world, replica, began = faults.world, log.replica, uptime()
    mebibytes = 100
    bulk = f"dd if=/dev/urandom of=/data/bulk bs=1M count={mebibytes} 2>/dev/null; sync /data/bulk"
    world.run("node1", "docker", "exec", writer.container, "sh", "-c", bulk)
    log.wait_in_sync([replica], at="node1")

    def received() -> int:
        """Bytes that have come over the replica's network, broken transfers and all others included."""
        return int(world.sh(replica, "cat /sys/class/net/eth0/statistics/rx_bytes"))

    before = received()
    for _ in range(4):
        world.stop_pannier(replica)
        writer.goes_on()
        world.start_pannier(replica)
        world.kill(replica, "pannierd")
        writer.goes_on()
    log.wait_in_sync([replica], at="node1", seconds=120)
    assert received() - before < mebibytes * 2**20 / 2
    log.stop(writer)
    assert world.manifest(replica, log.volume) == world.manifest("node1", log.volume)
    faults.finish(
        log, at=replica, since=began, allowed=None,
        fault="F61 a copy is interrupted again and again", outcome="it gets the difference only",
    )  # fmt: skip


def test_f65_f04_all_nodes_lose_power_at_once(faults: Faults) -> None:
    """The holder goes on, with all that was acknowledged, or the copy does: nobody has to choose."""
    log, writer = faults.writing("--restart", "always")
    world = faults.world
    crashed_at = uptime()
    for node in world.nodes:
        world.lab.crash(node)
    booted_at = uptime()
    faults.boot(*world.nodes)
    writer.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    told = log.check(log.read(log.replica))
    faults.note(
        "F65 F04 all nodes lose power at once", outcome="the container goes on by itself",
        pause=log.pause_after(crashed_at) - (booted_at - crashed_at), allowed=None, told=told,
    )  # fmt: skip


@pytest.mark.exclusive
def test_f67_two_nodes_want_a_dead_holders_volume(faults: Faults) -> None:
    """Exactly one gets it; the other waits until that one's container has ended."""
    log, _ = faults.writing(copies="3")
    world = faults.world
    crashed_at = uptime()
    faults.world.lab.crash("node1")
    both = [log.begin(node) for node in log.replicas]
    wait_until("one writes", lambda: any(each.acknowledged() for each in both))
    winner, other = both if both[0].acknowledged() else reversed(both)
    winner.goes_on(records=20)
    assert not other.acknowledged()
    assert world.json(winner.node, "volume", "show", log.volume)["epoch"] == 2
    log.stop(winner)
    other.goes_on()
    faults.boot("node1")
    log.stop(other)
    faults.finish(
        log, at="node1", since=crashed_at, allowed=TAKEOVER_SECONDS + LEASE_SECONDS + 2 + PATIENCE_SECONDS,
        fault="F67 F01 two nodes want a dead holder's volume", outcome="one gets it, the other waits",
    )  # fmt: skip


@pytest.mark.faults
def test_f70_the_target_of_a_move_loses_power_under_a_writer(faults: Faults) -> None:
    """The container never notices, and the move succeeds when it is repeated."""
    log, writer = faults.writing()
    world, target = faults.world, log.replica
    move = world.moving(log.volume, target, at="node1", wait="60s")
    move.wait_for("waiting")
    crashed_at = uptime()
    faults.world.lab.crash(target)
    writer.goes_on(records=20)
    faults.boot(target)
    assert move.outcome().status in (0, 4, 6, 8), move.outcome().text
    log.wait_in_sync([target], at="node1")
    log.stop(writer)
    world.move(log.volume, target, at="node1")
    faults.finish(
        log, at=target, since=crashed_at, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault="F70 a move's target loses power", outcome="the container goes on",
    )  # fmt: skip
