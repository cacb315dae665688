"""Clones of a volume that is written to: at once, with copies that are made of what is there, or refused without a trace."""

from __future__ import annotations

import json

import pytest
from cluster_world import IMAGES, World, check_sequence
from demo import story
from test_copies import received

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BULK_MIB = 64


def leftovers(world: World, name: str) -> list[str]:
    """What any node's disk has of a volume of that name."""
    said = world.on_all(lambda node: world.sh(node, f"ls {IMAGES}"))
    return [each for lines in said for each in lines.split() if each.startswith(f"{name}.")]


def test_a_clone_of_a_volume_in_use_is_there_at_once_and_so_are_its_copies(three: World) -> None:
    """Asked of a node that holds nothing of it. The database that is cloned goes on, and so does its test."""
    name, new = three.filled("node1", mebibytes=BULK_MIB, copies="2"), three.name("clone")
    writer = three.writer("node1", name)
    story.wait_until("lines", lambda: three.acknowledged("node1", writer) > 10)
    shown = story.wait_until(
        "its copy is in sync", lambda: three.json("node1", "volume", "show", name)["in_sync"]
    )
    replica = str(shown[0])
    before = three.acknowledged("node1", writer)
    made = json.loads(
        three.run("node3", "pannier", "volume", "clone", name, new, "--format", "json")
    )
    assert (made["holder"], made["cloned_from"]) == ("node1", name)
    after = three.acknowledged("node1", writer)

    def in_sync() -> bool:
        return bool(three.json("node1", "volume", "show", new)["in_sync"] == [replica])

    story.wait_until("its copy is in sync", in_sync)
    sent = sum(int(each["bytes"]) for each in received(three, replica, new))
    assert sent < BULK_MIB << 17, "an eighth of it"
    (line,) = three.printed("node2", "volume", "history", new)[:1]
    assert f"as a clone of {name}, generation" in line["detail"]
    cloned = three.log("node1", new)
    check_sequence(cloned)
    assert before <= len(cloned) <= after + 1
    own = three.writer("node1", new)
    story.wait_until("own lines", lambda: three.acknowledged("node1", own) > len(cloned) + 5)
    assert three.has_more("node1", writer, after)
    three.stop("node1", own)
    three.stop("node1", writer)
    three.run("node1", "docker", "volume", "rm", name)
    three.move(new, replica)
    check_sequence(three.log(replica, new))


def test_a_test_database_by_docker_and_what_cannot_be(three: World) -> None:
    name, new = three.filled("node1", copies="2", size="200M"), three.name("test")
    three.run("node2", "pannier", "volume", "snapshot", "create", name, "nightly")
    source = f"from={name}@nightly"
    docker = ["docker", "volume", "create", "-d", "pannier"]
    for words, says in (
        ([f"from={name}@never"], "has no snapshot never"),
        (["from=nothing"], "there is no volume nothing"),
        ([source, "size=100M"], "a file system is not made smaller"),
        ([source, "copies=4"], "the cluster has 3"),
        ([source, "nodes=node9"], "no node of this cluster"),
        ([source, "layout=tree"], "layout of a clone"),
    ):
        options = [word for each in words for word in ("-o", each)]
        three.refused("node1", *docker, *options, new, says=[says])
    assert leftovers(three, new) == []
    assert new not in three.volumes_known()
    for node in ("node1", "node2"):
        three.run(node, *docker, "-o", source, "-o", "size=400M", "-o", "copies=1", new)
    larger = three.container("node1", new, "sh", "-c", "df -m /data | tail -n 1").split()
    assert int(larger[1]) >= 400
    assert three.manifest("node1", new) == three.manifest("node1", name)
    pannier = ["pannier", "volume", "create", "-o"]
    three.refused("node3", *pannier, f"from={name}", new, says=[f"from is {name}@nightly, not"])
    three.run("node3", *pannier, source, new)
    three.run("node3", "pannier", "volume", "snapshot", "rm", name, "nightly")
    three.refused(
        "node3", "pannier", "volume", "clone", f"{name}@nightly", three.name(), says=["no snapshot"]
    )
