"""Docker Swarm changes or stands still while a container writes: volumes are not Swarm's."""

from __future__ import annotations

import pytest
from fault_world import LEASE_SECONDS, PATIENCE_SECONDS, Faults, uptime, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.faults
def test_f05_the_holder_is_removed_from_the_swarm(faults: Faults) -> None:
    """Its container goes on, and the node may join again."""
    log, writer = faults.writing()
    world, asked = faults.world, log.replica
    began = uptime()
    world.run(asked, "docker", "node", "demote", "node1")
    role = ["docker", "info", "-f", "{{.Swarm.ControlAvailable}}"]
    wait_until("node1 is no manager", lambda: world.run("node1", *role).strip() == "false")
    world.run(asked, "docker", "node", "rm", "--force", "node1")
    try:
        writer.goes_on(records=100)
        assert world.json(asked, "volume", "show", log.volume)["epoch"] == 1
    finally:
        world.run("node1", "docker", "swarm", "leave", "--force")
        token = world.run(asked, "docker", "swarm", "join-token", "--quiet", "manager").strip()
        own = ["--advertise-addr", faults.address("node1")]
        world.run(
            "node1", "docker", "swarm", "join", *own, "--token", token,
            f"{faults.address(asked)}:2377",
        )  # fmt: skip
    world.wait_until_all_up()
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS,
        fault="F05 the holder is removed from the Swarm", outcome="the container goes on",
    )  # fmt: skip


@pytest.mark.faults
def test_f42_the_swarm_loses_its_majority(faults: Faults) -> None:
    """Engines of two managers are away: what runs goes on, and what needs no Swarm can be started."""
    log, writer = faults.writing()
    world = faults.world
    began = uptime()
    engine = ["docker.socket", "docker.service"]
    others = world.others("node1")
    world.on_all(lambda node: world.run(node, "systemctl", "stop", *engine), others)
    try:
        wait_until(
            "the Swarm has no leader",
            lambda: world.attempt("node1", "docker", "node", "ls").status != 0,
        )
        writer.goes_on(records=100)
        other = world.create("node1", copies="2")
        assert world.container("node1", other, "echo", "runs") == "runs\n"
    finally:
        world.on_all(lambda node: world.run(node, "systemctl", "start", *engine), others)
    world.wait_until_all_up()
    log.wait_in_sync(log.replicas, at="node1")
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=PATIENCE_SECONDS + LEASE_SECONDS,
        fault="F42 the Swarm loses its majority", outcome="the container goes on",
    )  # fmt: skip


@pytest.mark.faults
def test_f45_a_container_crashes_again_and_again(faults: Faults) -> None:
    """Each time it goes on with what was acknowledged; in the end the volume is free to leave."""
    log, writer = faults.writing()
    world, began = faults.world, uptime()
    for _ in range(40):
        world.run("node1", "docker", "kill", writer.container)
        world.run("node1", "docker", "start", writer.container)
        writer.goes_on(records=2)
    assert world.json("node1", "volume", "show", log.volume)["epoch"] == 1
    log.stop(writer)
    faults.finish(
        log, at=log.replica, since=began, allowed=None,
        fault="F45 a container crashes 40 times", outcome="it goes on each time",
    )  # fmt: skip
