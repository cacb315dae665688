"""Containers that must stand still do, whoever pauses and unpauses them: with control groups of version 1,
where this host has them. All other labs have version 2, as Debian has; ``test_standing_still`` tries it there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_world import MOUNTS, World, check_sequence
from demo import failover, story
from laboratory import world_on

from pannier.lab import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

COUNT = "while :; do echo >>/data/count; usleep 20000; done"
FROZEN = "cat /run/pannier/frozen.json 2>/dev/null || echo '{}'"
UNSEEN_SECONDS = 2.0
"""So long is looked for a step: much longer than between two looks of the daemon."""


@pytest.fixture
def world(host_lab: Lab) -> Iterator[World]:
    """Two nodes with control groups as this host has them, Debian 12 and 13."""
    with world_on(host_lab) as world:
        yield world


@pytest.fixture(params=["node1", "node2"], ids=["docker20", "docker26"])
def counter(request: pytest.FixtureRequest, world: World) -> Counter:
    """On Debian 12 and on 13."""
    return Counter(world, request.param)


class Counter:
    """A container that counts in a volume that another node could take over."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self.node = node
        other = world.others(node)[0]
        self._volume = world.create(node, copies="2", nodes=f"{node},{other}")
        command = world.docker_run(self._volume, "-d", "--name", f"counter-{self._volume}")
        self.container = world.run(node, *command, "sh", "-c", COUNT).strip()
        failover.wait_for_copy(world.lab, self._volume, on=other, asked=node)
        story.wait_until("it counts", self.counts)

    def docker(self, *command: str) -> str:
        return self._world.run(self.node, "docker", *command)

    def unpauses(self) -> bool:
        """Whether Docker says that it has unpaused it.

        It says no where it looks only after the group was frozen again.
        """
        return self._world.attempt(self.node, "docker", "unpause", self.container).status == 0

    def counts(self, *, within: float = UNSEEN_SECONDS) -> bool:
        """Whether it makes a step in so many seconds."""
        size = f"stat -c %s {MOUNTS}/{self._volume}/count"
        before, until = self._world.sh(self.node, size), time.monotonic() + within
        while time.monotonic() < until:
            if self._world.sh(self.node, size) != before:
                return True
        return False

    def is_paused(self) -> bool:
        return "true" in self.docker("inspect", "-f", "{{.State.Paused}}", self.container)

    def is_held(self) -> bool:
        return self.container in self._world.sh(self.node, FROZEN)

    @contextmanager
    def in_doubt(self) -> Iterator[None]:
        """Nobody knows who holds the volume, since its node's lease has ended."""
        with cut_off(self._world, self.node):
            story.wait_until("it is held", self.is_held)
            yield


@contextmanager
def cut_off(world: World, node: str) -> Iterator[None]:
    """A node without network, and without what of etcd runs on it."""
    tell = ["systemctl", "kill", "--kill-who=main", "etcd", "-s"]
    world.attempt(node, *tell, "STOP")
    try:
        with world.cut(node):
            yield
    finally:
        world.attempt(node, *tell, "CONT")


def test_the_machines_have_what_was_asked_for(world: World) -> None:
    version = "1" if Path("/sys/fs/cgroup/freezer").exists() else "2"
    for node in world.nodes:
        assert world.run(node, "docker", "info", "-f", "{{.CgroupVersion}}").strip() == version


def test_what_is_unpaused_after_the_end_of_the_lease_makes_no_step(counter: Counter) -> None:
    counter.docker("pause", counter.container)
    with counter.in_doubt():
        unpaused = counter.unpauses()
        assert not counter.counts()
        assert counter.is_paused() != unpaused
    story.wait_until("it goes on", counter.counts)
    assert not counter.is_held()


def test_what_a_person_has_paused_stays_so_when_the_lease_is_back(counter: Counter) -> None:
    counter.docker("pause", counter.container)
    with counter.in_doubt():
        pass
    story.wait_until("it is let go", lambda: not counter.is_held())
    assert counter.is_paused()
    assert not counter.counts()
    counter.docker("unpause", counter.container)
    assert counter.counts()


def test_what_stands_still_can_be_killed_and_leaves_nothing(counter: Counter) -> None:
    with counter.in_doubt():
        began = time.monotonic()
        counter.docker("rm", "-f", counter.container)
        assert time.monotonic() - began < 10, "well before it would be ended anyhow"
    story.wait_until("it is forgotten", lambda: not counter.is_held())


def test_a_synced_line_is_there_after_the_node_was_cut_off(world: World) -> None:
    """The runtime gives the container its listener, and the barrier holds its calls."""
    name = world.create("node1", copies="2", nodes="node1,node2")
    failover.wait_for_copy(world.lab, name, on="node2", asked="node1")
    writer = world.writer("node1", name)
    container = world.run("node1", "docker", "inspect", "-f", "{{.Id}}", writer).strip()
    with cut_off(world, "node1"):
        story.wait_until("it stands still", lambda: container in world.sh("node1", FROZEN))
    before = world.acknowledged("node1", writer)
    story.wait_until("it goes on", lambda: world.acknowledged("node1", writer) > before)
    said = world.acknowledged("node1", writer)
    world.stop("node1", writer)
    world.wait_until_all_up()
    world.move(name, "node2")
    lines = world.log("node2", name)
    check_sequence(lines)
    assert len(lines) >= said
