"""Snapshots of a volume that moves, the way back to one, and volumes that nobody may remove."""

from __future__ import annotations

import pytest
from cluster_world import World, check_sequence
from demo import story

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def names(world: World, node: str, volume: str) -> list[str]:
    return [each["name"] for each in world.printed(node, "volume", "snapshot", "ls", volume)]


def test_a_snapshot_goes_along_and_the_volume_goes_back_to_it_and_forth_again(three: World) -> None:
    """Made under a writer; asked of nodes that do not hold the volume."""
    name = three.create("node1", copies="2")
    writer = three.writer("node1", name)
    story.wait_until("lines", lambda: three.acknowledged("node1", writer) > 10)
    before = three.acknowledged("node1", writer)
    made = three.printed("node3", "volume", "snapshot", "create", name, "early", "--label", "by=me")
    assert (made["labels"], len(made["on"])) == ({"by": "me"}, 2)
    story.wait_until("more lines", lambda: three.acknowledged("node1", writer) > before + 50)
    three.refused("node1", "pannier", "volume", "rollback", name, "early", says=["in use"])
    last = three.acknowledged("node1", writer)
    three.stop("node1", writer)
    three.move(name, "node2")
    assert names(three, "node1", name) == ["early"]
    three.run("node3", "pannier", "volume", "rollback", name, "early")
    early = three.log("node2", name)
    check_sequence(early)
    assert before <= len(early) < last
    (kept,) = set(names(three, "node2", name)) - {"early"}
    three.move(name, "node1")
    three.run("node1", "pannier", "volume", "rollback", name, kept)
    everything = three.log("node1", name)
    check_sequence(everything)
    assert len(everything) >= last
    three.run("node2", "pannier", "volume", "snapshot", "rm", name, "early")
    assert "early" not in names(three, "node1", name)


def test_nobody_removes_a_protected_volume(three: World) -> None:
    name = three.create("node1", protected="true")
    for command in (("docker", "volume", "rm", name), ("pannier", "volume", "rm", name)):
        three.refused("node1", *command, says=["protected"])
    three.run("node2", "pannier", "volume", "set", name, "-o", "protected=false")
    three.run("node1", "docker", "volume", "rm", name)
    assert name not in three.volumes_known()
