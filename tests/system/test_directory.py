"""The directory driver, for machines without btrfs: slower to move, and as true."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster_world import World
from demo import story
from laboratory import world_on

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def plain(directory_lab: Lab) -> Iterator[World]:
    """Two nodes whose volumes are plain directories."""
    with world_on(directory_lab) as world:
        yield world


def test_a_volume_goes_to_another_node_and_back_with_every_byte(plain: World) -> None:
    name = plain.filled("node1", mebibytes=8, files=200)
    before = plain.manifest("node1", name)
    assert plain.manifest("node2", name) == before
    plain.run("node2", *plain.docker_run(name, "--rm"), "sh", "-c", "echo more > /data/more")
    changed = plain.manifest("node2", name)
    assert len(changed) == len(before) + 1
    assert plain.manifest("node1", name) == changed
    assert plain.holder(name) == "node1"


def test_a_move_waits_for_the_end_of_use_and_copies_then(plain: World) -> None:
    name = plain.filled("node1")
    before = plain.manifest("node1", name)
    held = plain.run("node1", *plain.docker_run(name, "--detach"), "sleep", "1000").strip()
    move = plain.moving(name, "node2", at="node2")
    move.wait_for("waiting")
    plain.run("node1", "docker", "rm", "--force", held)
    assert move.outcome().status == 0
    story.wait_until("the new holder", lambda: plain.holder(name) == "node2")
    assert plain.manifest("node2", name) == before
