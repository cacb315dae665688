"""Nodes that lose power, stand still, or are away together, while a container writes."""

from __future__ import annotations

import pytest
from fault_world import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    TAKEOVER_AND_ELECTION_SECONDS,
    Faults,
    records_of,
    uptime,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.exclusive
def test_f01_f02_f26_the_holder_loses_power_and_comes_back_with_stale_data(faults: Faults) -> None:
    """What it wrote and never synced is a stray, told on both sides, and merged nowhere."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    unsynced = "i=0; while :; do i=$((i+1)); echo $i >>/data/loose; sleep 0.02; done"
    world.run("node1", "docker", "exec", "-d", old.container, "sh", "-c", unsynced)
    old.goes_on()
    crashed_at = uptime()
    faults.world.lab.crash("node1")
    new = log.write(replica)
    new.goes_on()
    shown = world.json(replica, "volume", "show", log.volume)
    assert (shown["holder"], shown["epoch"]) == (replica, 2)
    faults.boot("node1")
    log.wait_in_sync(["node1"], at=replica)
    new.goes_on()
    log.stop(new)
    faults.finish(
        log, at="node1", since=crashed_at, allowed=TAKEOVER_AND_ELECTION_SECONDS,
        fault="F01 F02 the holder loses power", outcome="a copy takes over; the node comes back as a copy",
    )  # fmt: skip
    assert world.holder(log.volume) == "node1"
    told = {f["what"] for n in world.nodes for f in world.json(n, "doctor")}
    if any("stray of epoch 1" in what for what in told):
        # It has what was written on node1, and at most that.
        stray = world.former("node1", log.volume, "log", tree="1")
        assert {one.host for one in records_of(stray)} == {"node1"}


def test_f01_the_holder_loses_power_for_a_moment(faults: Faults) -> None:
    """Whether its lease has run out or not: the container is started again where it was."""
    log, old = faults.writing("--restart", "always")
    crashed_at = uptime()
    faults.world.lab.crash("node1")
    faults.boot("node1")
    old.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(old)
    faults.finish(
        log, at=log.replica, since=crashed_at, allowed=None,
        fault="F01 the holder boots at once", outcome="the container goes on there",
    )  # fmt: skip


def test_f03_each_other_node_loses_power_under_a_writer(faults: Faults) -> None:
    """The replica and the third node, one after the other: sync calls go on, and the copy comes back."""
    log, writer = faults.writing()
    assert log.witness
    for node in (log.replica, log.witness):
        crashed_at = uptime()
        faults.world.lab.crash(node)
        writer.goes_on(records=30)
        pause = log.pause_after(crashed_at)
        faults.note(
            f"F03 {'the replica' if node == log.replica else 'a third node'} loses power",
            outcome="sync calls go on without it", pause=pause,
            allowed=PATIENCE_SECONDS + LEASE_SECONDS, told=len(writer.acknowledged()),
        )  # fmt: skip
        faults.boot(node)
        log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    log.check(log.read(log.replica))
    assert pause < PATIENCE_SECONDS + LEASE_SECONDS + 2


@pytest.mark.exclusive
def test_f08_the_holder_stands_still_until_a_copy_has_taken_over(faults: Faults) -> None:
    """Thawed, it acknowledges nothing any more: its container is ended."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    paused_at = uptime()
    world.lab.pause("node1")
    new = log.write(replica)
    new.goes_on()
    world.lab.resume("node1")
    wait_until("the old container is ended", lambda: not faults.is_running(old))
    log.wait_in_sync(["node1"], at=replica)
    log.stop(new)
    world.run("node1", "docker", "rm", old.container)
    faults.finish(
        log, at="node1", since=paused_at, allowed=TAKEOVER_AND_ELECTION_SECONDS,
        fault="F08 the holder stands still, and goes on after a takeover",
        outcome="a copy takes over; the old container is ended",
    )  # fmt: skip


@pytest.mark.parametrize("first", ["replica", pytest.param("other", marks=pytest.mark.faults)])
def test_f11_two_nodes_lose_power_at_once(faults: Faults, first: str) -> None:
    """Without store and copy the holder stops rather than acknowledge alone; then all goes on."""
    log, writer = faults.writing("--restart", "always")
    assert log.witness
    down = (log.replica, log.witness)
    crashed_at = uptime()
    for node in down:
        faults.world.lab.crash(node)
    wait_until(
        "no sync call is answered",
        lambda: uptime() - writer.acknowledged()[-1].at > 2 * LEASE_SECONDS,
    )
    assert writer.acknowledged()[-1].at < crashed_at + LEASE_SECONDS
    booted_at = uptime()
    faults.boot(*(down if first == "replica" else reversed(down)))
    if not faults.is_running(writer):  # ended by the fence: Docker starts it again, or its user
        faults.world.attempt("node1", "docker", "start", writer.container)
    writer.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    told = log.check(log.read(log.replica))
    faults.note(
        f"F11 two nodes of three lose power, the {first} comes back first",
        outcome="the holder stops; goes on when they are back",
        pause=log.pause_after(crashed_at) - (booted_at - crashed_at), allowed=None, told=told,
    )  # fmt: skip


@pytest.mark.faults
def test_f10_the_node_with_the_last_copy_is_drained(faults: Faults) -> None:
    """It keeps what nobody else has, and cannot be removed."""
    log, writer = faults.writing()
    world, asked, began = faults.world, log.witness, uptime()
    assert asked
    for node in log.replicas:
        world.stop_pannier(node)
    log.wait_in_sync([], at="node1")
    world.run(asked, "pannier", "node", "drain", "node1")
    try:
        writer.goes_on(records=20)
        says = ["node node1 holds", log.volume]
        world.refused(asked, "pannier", "node", "rm", "node1", says=says, status=4)
        assert world.json(asked, "volume", "show", log.volume)["holder"] == "node1"
    finally:
        world.run(asked, "pannier", "node", "drain", "node1", "--undo")
        for node in log.replicas:
            world.start_pannier(node)
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault="F10 the node with the last copy is drained", outcome="the container goes on there",
    )  # fmt: skip
