"""Cables that are pulled, and networks of which only a part is left, while a container writes."""

from __future__ import annotations

import time

import pytest
from fault_world import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    PROMISE_SECONDS,
    STORE_PORTS,
    TAKEOVER_SECONDS,
    Faults,
    uptime,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STORE = f"-p tcp -m multiport --dports {STORE_PORTS}"
FROM_STORE = f"-p tcp -m multiport --sports {STORE_PORTS}"


@pytest.mark.exclusive
def test_f20_f24_f26_the_holder_is_isolated_longer_than_its_lease(faults: Faults) -> None:
    """Nothing is acknowledged on its side once another node may go on; what was written there is kept."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    cut_at = uptime()
    with world.cut("node1"):
        new = log.write(replica)
        new.goes_on()
        wait_until("the old container is ended", lambda: not faults.is_running(old))
        alone = len(old.acknowledged())
        new.goes_on()
        assert len(old.acknowledged()) == alone
    world.wait_until_all_up()
    log.wait_in_sync(["node1"], at=replica)
    log.stop(new)
    world.run("node1", "docker", "rm", old.container)
    faults.finish(
        log, at="node1", since=cut_at, allowed=TAKEOVER_SECONDS + LEASE_SECONDS + 2,
        fault="F20 F24 F26 the holder is isolated, longer than its lease",
        outcome="a copy takes over; the old container is ended and acknowledges nothing",
    )  # fmt: skip


@pytest.mark.exclusive
def test_f20_the_holder_is_isolated_for_less_than_its_lease(faults: Faults) -> None:
    """Its container goes on as if nothing had been; nobody takes over."""
    log, writer = faults.writing()
    cut_at = uptime()
    with faults.world.cut("node1"):
        time.sleep(LEASE_SECONDS / 4)  # the length of the fault, not a wait for anything
    writer.goes_on()
    faults.world.wait_until_all_up()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    assert faults.world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    faults.finish(
        log, at=log.replica, since=cut_at, allowed=PATIENCE_SECONDS,
        fault="F20 the holder is isolated, shorter than its lease", outcome="sync calls wait for it",
    )  # fmt: skip


def test_f20_the_holder_is_isolated_and_nobody_wants_its_volume(faults: Faults) -> None:
    """Its container stands still when the lease is over, and goes on when the cable is back."""
    log, writer = faults.writing()
    world = faults.world
    which = ["docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", writer.container]
    process = world.run("node1", *which)
    cut_at = uptime()
    with world.cut("node1"):
        faults.wait_until_down("node1", seen_by=log.replica)
        time.sleep(LEASE_SECONDS)  # the length of the fault, not a wait for anything
        assert all(record.at < cut_at + LEASE_SECONDS for record in writer.acknowledged())
    mended_at = uptime()
    writer.goes_on()
    assert world.run("node1", *which) == process
    world.wait_until_all_up()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    told = log.check(log.read(log.replica))
    faults.note(
        "F20 the holder is isolated, longer than its lease, and nobody wants the volume",
        outcome="the container stands still, and goes on when the cable is back",
        pause=log.pause_after(cut_at) - (mended_at - cut_at), allowed=None, told=told,
    )  # fmt: skip


def test_f21_the_holder_reaches_the_store_but_not_its_copy(faults: Faults) -> None:
    """The copy leaves what counts, and nobody takes over; it joins again by itself."""
    log, writer = faults.writing()
    cut_at = uptime()
    # Its own store member is enough for the holder: with it, the third node has a majority.
    with faults.dropping("node1", *faults.between("node1", log.replica)):
        writer.goes_on(records=20)
        log.wait_in_sync([], at="node1")
        assert faults.world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=cut_at, allowed=PATIENCE_SECONDS + 2 * LEASE_SECONDS,
        fault="F21 only the way between holder and copy is cut",
        outcome="sync calls go on without the copy; it joins again",
    )  # fmt: skip


@pytest.mark.exclusive
def test_f22_the_holder_reaches_its_copy_but_not_the_store(faults: Faults) -> None:
    """It goes on by the copy's promise, and a container that is started there waits in vain."""
    log, writer = faults.writing()
    replica = log.replica
    cut_at = uptime()
    rules = [f"{chain} {ports}" for chain in ("INPUT", "OUTPUT") for ports in (STORE, FROM_STORE)]
    with faults.dropping("node1", *rules):
        faults.wait_until_down("node1", seen_by=replica)
        rival = log.begin(replica)
        time.sleep(PROMISE_SECONDS)  # as long as the first promise lasts: another must follow
        writer.goes_on()
        assert not rival.acknowledged()
    log.stop(writer)
    rival.goes_on(records=5)
    log.stop(rival)
    faults.finish(
        log, at="node1", since=cut_at, allowed=PROMISE_SECONDS,
        fault="F22 only the way between holder and store is cut",
        outcome="it writes on; a container elsewhere waits until it has ended",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
def test_f23_packets_are_lost_in_one_direction(faults: Faults, chain: str) -> None:
    """What the holder gets, or what it sends: as if it was isolated."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    cut_at = uptime()
    others = [f"{chain} {'-s' if chain == 'INPUT' else '-d'} {faults.address(n)}"
              for n in world.others("node1")]  # fmt: skip
    with faults.dropping("node1", *others):
        new = log.write(replica)
        wait_until("the old container is ended", lambda: not faults.is_running(old))
        new.goes_on()
    world.wait_until_all_up()
    log.wait_in_sync(["node1"], at=replica)
    log.stop(new)
    world.run("node1", "docker", "rm", old.container)
    faults.finish(
        log, at="node1", since=cut_at, allowed=TAKEOVER_SECONDS + LEASE_SECONDS + 2,
        fault=f"F23 all that node1 {'is sent' if chain == 'INPUT' else 'sends'} is lost",
        outcome="a copy takes over; the old container is ended",
    )  # fmt: skip


@pytest.mark.faults
def test_f23_a_link_that_loses_packets_at_random(faults: Faults) -> None:
    log, writer = faults.writing()
    began = uptime()
    every_twentieth = "-m statistic --mode random --probability 0.05"
    with faults.dropping("node1", f"INPUT {every_twentieth}", f"OUTPUT {every_twentieth}"):
        writer.goes_on(records=40)
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault="F23 every twentieth packet of the holder's is lost", outcome="sync calls are slower",
    )  # fmt: skip


@pytest.mark.faults
def test_f28_a_link_that_flaps(faults: Faults) -> None:
    """Down for 2 s of every 5, for a minute: either side may hold, nothing acknowledged is lost."""
    log, writer = faults.writing("--restart", "always")
    began = uptime()
    for _ in range(12):
        with faults.world.cut("node1"):
            time.sleep(2)
        time.sleep(3)
    faults.world.wait_until_all_up()
    if not faults.is_running(writer):
        faults.world.attempt("node1", "docker", "start", writer.container)
    writer.goes_on()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=None,
        fault="F28 the holder's link is down for 2 s of every 5", outcome="sync calls wait",
    )  # fmt: skip
