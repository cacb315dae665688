"""Programs that are killed under a container whose sync calls wait for copies."""

from __future__ import annotations

import pytest
from demo import looks
from fault_world import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    STOOD_STILL_SECONDS,
    TAKEOVER_SECONDS,
    Faults,
    uptime,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize("where", ["holder", "replica"])
def test_f30_pannierd_is_killed_under_a_writer(faults: Faults, where: str) -> None:
    """Sync calls wait for its return, none fails, and nobody takes over."""
    log, writer = faults.writing()
    killed_at = uptime()
    for _ in range(2):
        node = log.holder if where == "holder" else log.replica
        faults.world.kill(node, "pannierd")
        writer.goes_on()
        faults.world.wait_for_pannier(node)
    log.wait_in_sync(log.replicas, at="node1")
    assert faults.world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=killed_at, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault=f"F30 pannierd is killed on the {where}",
        outcome="sync calls wait and go on; the container sees nothing",
    )  # fmt: skip


def test_f31_pannierd_is_away_while_the_container_dies(faults: Faults) -> None:
    """Its Unmount is lost; the volume is taken over or moves, with all that was acknowledged."""
    log, writer = faults.writing()
    stopped_at = uptime()
    faults.world.stop_pannier("node1")
    # Docker waits for the Unmount, and may say that the container did not end in time.
    faults.world.attempt("node1", "docker", "kill", writer.container)
    new = log.write(log.replica)
    new.goes_on()
    faults.world.start_pannier("node1")
    log.wait_in_sync(["node1"], at=log.replica)
    log.stop(new)
    faults.finish(
        log, at="node1", since=stopped_at, allowed=None,
        fault="F31 pannierd is away while the container ends", outcome="a copy takes over",
    )  # fmt: skip


@pytest.mark.faults
def test_f34_dockerd_is_killed_under_a_writer(faults: Faults) -> None:
    """The engine ends the container when it is back, and starts it again: on the same volume."""
    log, writer = faults.writing("--restart", "always")
    killed_at = uptime()
    faults.world.kill("node1", "docker")
    wait_until("Docker answers", looks.engine(faults.world.lab, "node1").answers)
    writer.goes_on()
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=killed_at, allowed=None,
        fault="F34 dockerd is killed", outcome="the container is started again",
    )  # fmt: skip


@pytest.mark.exclusive
def test_f36_pannierd_stands_still_longer_than_its_lease(faults: Faults) -> None:
    """As if the node had died: a copy takes over, and the old container is ended afterwards."""
    log, old = faults.writing()
    stopped_at = uptime()
    world = faults.world
    world.run("node1", "systemctl", "kill", "--kill-who=main", "-s", "STOP", "pannierd")
    assert world.attempt("node1", "docker", "ps").status == 0
    new = log.write(log.replica)
    new.goes_on()
    world.run("node1", "systemctl", "kill", "--kill-who=main", "-s", "CONT", "pannierd")
    wait_until("the old container is ended", lambda: not faults.is_running(old))
    log.wait_in_sync(["node1"], at=log.replica)
    log.stop(new)
    world.run("node1", "docker", "rm", old.container)
    faults.finish(
        log, at="node1", since=stopped_at, allowed=STOOD_STILL_SECONDS + TAKEOVER_SECONDS,
        fault="F36 pannierd stands still, and goes on after a takeover",
        outcome="a copy takes over; the old container is ended",
    )  # fmt: skip


def test_f44_a_second_container_elsewhere_waits_for_the_first(faults: Faults) -> None:
    """Start-first: never two writers; the second begins with all that the first was told."""
    log, first = faults.writing()
    began = uptime()
    second = log.begin(log.replica)
    first.goes_on(records=30)
    assert not second.acknowledged()
    log.stop(first)
    second.goes_on()
    log.stop(second)
    faults.finish(
        log, at="node1", since=began, allowed=2.0 + 5.0,
        fault="F44 F67 a second container elsewhere", outcome="it waits for the end of the first",
    )  # fmt: skip


@pytest.mark.faults
def test_f38_the_daemons_are_restarted_one_after_the_other(faults: Faults) -> None:
    """As by an update: sync calls wait, none fails, and nothing moves."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    for node in [*world.nodes, *world.nodes]:
        world.run(node, "systemctl", "restart", "pannierd")
        world.wait_for_pannier(node)
        writer.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault="F38 the daemons are restarted one after the other",
        outcome="sync calls wait and go on; the container sees nothing",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("how", ["killed", "stopped for a while"])
def test_f40_f39_each_member_of_the_store(faults: Faults, how: str) -> None:
    """Its leader among them: the container goes on, and nobody takes over."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    for node in world.nodes:
        if how == "killed":
            world.kill(node, "etcd")
            writer.goes_on(records=40)
        else:
            world.run(node, "systemctl", "kill", "--kill-who=main", "-s", "STOP", "etcd")
            writer.goes_on(records=40)
            world.run(node, "systemctl", "kill", "--kill-who=main", "-s", "CONT", "etcd")
        world.wait_until_all_up()
    log.wait_in_sync(log.replicas, at="node1")
    assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault=f"F40 F39 each member of etcd is {how}", outcome="the container goes on",
    )  # fmt: skip


@pytest.mark.faults
def test_f85_a_machine_without_time_for_anything(faults: Faults) -> None:
    """Eight busy loops on two cores: slower, and otherwise as ever; a move is possible, too."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    busy = "for i in 1 2 3 4 5 6 7 8; do timeout 60 sh -c 'while :; do :; done' & done"
    world.run("node1", "systemd-run", "--quiet", "--unit", "busy", "sh", "-c", f"{busy}; wait")
    try:
        other = world.filled("node1", mebibytes=20, copies="1")
        whole = world.manifest("node1", other)
        writer.goes_on(records=20)
        world.move(other, log.replica)
        assert world.manifest(log.replica, other) == whole
        writer.goes_on(records=20)
    finally:
        world.attempt("node1", "systemctl", "stop", "busy")  # it may have ended by itself
    world.wait_until_all_up()
    log.wait_in_sync(log.replicas, at="node1")
    assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=None,
        fault="F85 the holder's processors are busy", outcome="the container goes on",
    )  # fmt: skip
