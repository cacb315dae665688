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


def test_a_schedule_makes_one_and_files_come_back_out_of_it(three: World) -> None:
    """With two copies: the third node has none, and says who has."""
    name = three.create("node1", copies="2", snapshots="hourly:24,daily:7")
    three.write("node1", name, mebibytes=1, files=3)
    story.wait_until("a snapshot", lambda: names(three, "node1", name), seconds=70)
    shown = three.printed("node3", "volume", "show", name)
    (first,) = names(three, "node2", name)
    assert first.startswith("hourly-")
    assert (shown["schedule"], shown["last_scheduled"]) == ("hourly:24,daily:7", first)
    three.run("node1", "pannier", "volume", "snapshot", "create", name, "early")
    found = three.printed("node1", "volume", "snapshot", "show", name, "early")
    (copy,) = set(found["on"]) - {"node1"}
    (other,) = set(three.nodes) - {"node1", copy}
    three.container("node1", name, "sh", "-c", "echo new >/data/tree/1; sync")
    to = f"/run/back-{name}"
    three.on_all(lambda node: three.run(node, "mkdir", to))
    cp = ("pannier", "volume", "cp")
    three.refused(other, *cp, f"{name}@early:tree", to, says=["does not have", f"node1 or {copy}"])
    three.refused(other, *cp, f"{name}:tree", to, says=["held by node node1"])
    three.run(copy, *cp, f"{name}@early:tree", to)
    assert three.run(copy, "cat", f"{to}/tree/1").startswith("content 1 ")
    assert three.run(copy, "stat", "-c", "%u:%g %a", f"{to}/tree").split() == ["1000:1000", "2750"]
    three.refused(copy, *cp, f"{name}@early:tree", to, says=["nothing is overwritten"])
    three.refused(copy, *cp, f"{name}@early:link/x", to, says=["symbolic link"])
    three.run("node1", *cp, f"{name}:tree/1", to)
    assert three.run("node1", "cat", f"{to}/1") == "new\n"
    assert three.former(copy, name, "tree/2", tree="early").startswith("content 2 ")
    three.on_all(lambda node: three.run(node, "rm", "-r", to))
    three.run("node1", "pannier", "volume", "set", name, "-o", "snapshots=none")
    three.refused("node1", "pannier", "volume", "set", name, "-o", "snapshots=hourly:-1",
                  says=["cannot be a schedule"])  # fmt: skip
