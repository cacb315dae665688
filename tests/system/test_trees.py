"""Volumes as trees of files in btrfs: what made the foundation still holds for those that exist."""

from __future__ import annotations

import pytest
from cluster_world import World, check_sequence
from demo import story

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_a_tree_moves_fails_over_and_comes_back(cuttable: World) -> None:
    """Every line that was acknowledged is there after a move, a power cut and the way back."""
    world = cuttable
    name = world.create("node1", layout="tree", copies="2")
    assert world.json("node1", "volume", "show", name)["options"]["layout"] == "tree"
    first = world.writer("node1", name)
    story.wait_until("lines", lambda: world.acknowledged("node1", first) > 10)
    world.stop("node1", first)
    world.move(name, "node2")
    second = world.writer("node2", name)
    in_sync = lambda: world.json("node2", "volume", "show", name)["in_sync"]  # noqa: E731
    (copy,) = story.wait_until("a copy is in sync", in_sync)
    story.wait_until("more lines", lambda: world.acknowledged("node2", second) > 10)
    last = world.acknowledged("node2", second)
    assert world.lab.crash("node2")
    lines = world.log(copy, name)
    check_sequence(lines)
    assert lines[-1][0] == "node2"
    assert lines[-1][1] >= last
    world.lab.boot("node2")
    world.wait_until_all_up()
    story.wait_until(
        "it is a copy again",
        lambda: world.json(copy, "volume", "show", name)["in_sync"] == ["node2"],
    )
    checks = world.printed(copy, "volume", "verify", name)
    assert {check["state"] for check in checks} == {"whole"}
    world.move(name, "node2", at=copy)
    assert world.log("node2", name)[: len(lines)] == lines
