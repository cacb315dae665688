"""Power cuts: the disks forget what was not flushed, and no move may have relied on it."""

from __future__ import annotations

import pytest
from cluster_world import World, check_sequence
from demo import story

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

BULK = 64
MEBIBYTE = 2**20


def check_whole_after_boot(world: World, name: str, victim: str, before: list[str]) -> str:
    """The machine comes back by itself, and the volume is whole on its one holder; returns it."""
    world.lab.boot(victim)
    world.wait_until_all_up()
    holder = world.holder(name)
    assert world.manifest(holder, name) == before
    return holder


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["node1", "node2"], ids=["source", "target"])
def test_f70_a_machine_loses_power_during_the_copy(cuttable: World, victim: str) -> None:
    name = cuttable.filled("node1", mebibytes=BULK)
    before = cuttable.manifest("node1", name)
    cuttable.lab.flush()
    move = cuttable.moving(name, "node2", at="node3")
    move.wait_for("switching", sent=MEBIBYTE)
    cuttable.lab.crash(victim)
    assert move.outcome().status in (0, 6, 8), move.outcome().text
    holder = check_whole_after_boot(cuttable, name, victim, before)
    cuttable.move(name, "node2", at=holder)
    assert cuttable.manifest("node2", name) == before


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("node1", id="source", marks=pytest.mark.faults),
        pytest.param("node2", id="target"),
    ],
)
def test_f70_a_machine_loses_power_right_after_the_move(cuttable: World, victim: str) -> None:
    """What `done` has said holds: on the new holder everything is on disk."""
    name = cuttable.filled("node1", mebibytes=BULK)
    before = cuttable.manifest("node1", name)
    cuttable.move(name, "node2")
    cuttable.lab.crash(victim)
    assert check_whole_after_boot(cuttable, name, victim, before) == "node2"


@pytest.mark.faults
def test_f04_what_was_synced_outlasts_all_machines_losing_power(cuttable: World) -> None:
    """The container with restart=always goes on by itself, and has every acknowledged line."""
    name = cuttable.create("node1")
    writer = cuttable.writer("node1", name, "--restart", "always")
    cuttable.lab.flush()
    story.wait_until("some lines", lambda: cuttable.acknowledged("node1", writer) > 20)
    acknowledged = cuttable.acknowledged("node1", writer)
    for node in cuttable.nodes:
        cuttable.lab.crash(node)
    for node in cuttable.nodes:
        cuttable.lab.boot(node, wait=False)
    cuttable.wait_until_all_up()
    story.wait_until(
        "the container goes on",
        lambda: cuttable.acknowledged("node1", writer) > acknowledged + 20,
    )
    cuttable.stop("node1", writer)
    lines = cuttable.log("node1", name)
    assert len(lines) > acknowledged
    check_sequence(lines)
    assert cuttable.holder(name) == "node1"


@pytest.mark.faults  # the network's own time-outs, one after the other
def test_a_holder_without_power_is_named_and_its_volume_is_back_with_it(cuttable: World) -> None:
    name = cuttable.filled("node1", mebibytes=1)
    before = cuttable.manifest("node1", name)
    cuttable.lab.flush()
    cuttable.lab.crash("node1")
    command = cuttable.docker_run(name, "--rm")
    cuttable.refused(
        "node2", *command, "ls", "/data",
        says=[f"volume {name} is held by node node1", "does not answer", "start node node1"],
    )  # fmt: skip
    cuttable.refused(
        "node2", "pannier", "volume", "move", name, "node2",
        says=[f"volume {name} is held by node node1"], status=6,
    )  # fmt: skip
    cuttable.lab.boot("node1")
    cuttable.wait_until_all_up()
    assert cuttable.manifest("node2", name) == before
