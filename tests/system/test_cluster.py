"""Nodes come, are emptied, go and come back; and everything can be read by programs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cluster_world import IMAGE, World
from demo import looks, story

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def find(items: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    """The one item that has these values."""
    found = [item for item in items if all(item[key] == wanted[key] for key in wanted)]
    assert len(found) == 1, f"{wanted} in {items}"
    return found[0]


def test_status_shows_the_cluster_at_a_glance(three: World) -> None:
    for node in three.nodes:
        status = three.printed(node, "status")
        assert status["node"] == node
        assert status["store_ok"] is True
        assert [each["name"] for each in status["nodes"]] == three.nodes
        assert status["problems"] == []
    shown = three.run("node1", "pannier", "status")
    assert all(node in shown for node in three.nodes)


def test_everything_can_be_read_as_json(three: World) -> None:
    name = three.create("node1")
    three.move(name, "node2")
    for command in (
        ["status"], ["doctor"], ["node", "ls"], ["node", "show", "node2"], ["volume", "ls"],
        ["volume", "show", name], ["volume", "history", name], ["volume", "trash"],
        ["token", "create", "--ttl", "1m"],
    ):  # fmt: skip
        assert three.printed("node1", *command) is not None, command
    events = three.run("node1", "pannier", "events", "-o", "json").splitlines()
    assert [e["kind"] for e in map(json.loads, events) if e["subject"] == name] == [
        "volume.created",
        "volume.moved",
    ]
    done = three.run("node1", "pannier", "volume", "move", name, "node1", "-o", "json")
    assert json.loads(done.splitlines()[-1])["phase"] == "done"
    made = three.run("node1", "pannier", "volume", "create", three.name(), "--format", "json")
    assert json.loads(made)["holder"] == "node1"
    failed = three.attempt("node1", "pannier", "volume", "show", "nothing-such", "-o", "json")
    assert json.loads(failed.err)["code"] == "volume-not-found"
    removed = three.printed("node1", "volume", "rm", name)
    assert removed["name"] == name
    assert three.printed("node1", "volume", "restore", name)["holder"] == "node1"


def test_a_volume_tells_its_history(three: World) -> None:
    name = three.create("node1")
    three.move(name, "node2")
    three.run("node2", "pannier", "volume", "rm", name)
    three.run("node3", "pannier", "volume", "restore", name)
    told = three.printed("node3", "volume", "history", name)
    assert [(entry["kind"], entry["node"]) for entry in told] == [
        ("volume.created", "node1"),
        ("volume.moved", "node2"),
        ("volume.removed", "node2"),
        ("volume.restored", "node2"),
    ]


def test_a_service_that_asks_for_a_second_copy_gets_it(three: World) -> None:
    """Docker asks nobody: the volume is there. What cannot be had is told."""
    name = three.create("node2")
    mount = f"type=volume,source={name},target=/data,volume-driver=pannier,volume-opt=copies=2,volume-opt=mode=0700"
    three.run(
        "node1", "docker", "service", "create", "--detach", "--no-resolve-image", "--name", name,
        "--stop-grace-period", "1s", "--mount", mount, IMAGE, "sh", "-c", "while :; do sleep 1; done",
    )  # fmt: skip
    try:
        story.wait_until("it runs", lambda: story.running_task(three.lab, name))
        story.wait_until(
            "the second copy is in sync",
            lambda: (
                [c["in_sync"] for c in three.json("node1", "volume", "show", name)["copies"]]
                == [True]
            ),
        )
        history = three.printed("node1", "volume", "history", name)
        changed = find(history, kind="volume.options changed")
        assert changed["detail"].startswith(f"by service {name}: copies is 2, was 1")
        told = find(history, kind="volume.asked for otherwise")["detail"]
        assert told == f"by service {name}: mode is 0755, not 0700 (it stays as it was created)"
        doctor = three.json("node1", "doctor")
        assert any("mode is 0755, not 0700" in finding["what"] for finding in doctor)
    finally:
        three.run("node1", "docker", "service", "rm", name)


def test_events_are_shown_as_they_happen(three: World) -> None:
    log = "/run/events.ndjson"
    three.sh(
        "node3",
        f"setsid pannier events -f -o json >{log} 2>&1 </dev/null & echo $! >/run/events.pid",
    )
    connected = ("sh", "-c", "ls -l /proc/$(cat /run/events.pid)/fd | grep socket")
    story.wait_until("it listens", lambda: three.attempt("node3", *connected).out)
    seen: list[str] = []

    def heard(name: str, kind: str) -> bool:
        lines = looks.text(looks.root(three.lab, "node3") / log.lstrip("/")).splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        seen[:] = [event["kind"] for event in events if event["subject"] == name]
        return kind in seen

    try:
        name = three.create("node1")
        story.wait_until("the creation is told", lambda: heard(name, "volume.created"))
        three.move(name, "node2")
        story.wait_until("the move is told", lambda: heard(name, "volume.moved"))
        assert seen == ["volume.created", "volume.moved"]
    finally:
        three.sh("node3", "kill $(cat /run/events.pid)")


def test_f87_doctor_names_a_node_that_is_down_and_what_it_holds(three: World) -> None:
    name = three.create("node3")
    three.stop_pannier("node3")
    story.wait_until(
        "it is seen",
        lambda: find(three.json("node1", "node", "ls"), name="node3")["state"] == "down",
    )
    outcome = three.refused("node1", "pannier", "doctor", "-o", "json", says=[], status=10)
    finding = find(json.loads(outcome.out), subject="node node3")
    assert finding["level"] == "problem"
    assert name in finding["what"]
    assert "start it" in finding["remedy"]
    assert "node3" in " ".join(three.printed("node1", "status")["problems"])
    says = [f"volume {name} is held by node node3", "does not answer", "start node node3"]
    three.refused("node1", "pannier", "volume", "move", name, "node1", says=says, status=6)
    three.refused("node1", "pannier", "volume", "rm", name, says=says, status=6)
    other = three.create("node1")
    three.refused(
        "node1", "pannier", "volume", "move", other, "node3",
        says=["node node3 is down", f"volume {other} stays on node1"], status=4,
    )  # fmt: skip


def test_f06_volumes_leave_a_drained_node(three: World) -> None:
    idle = three.filled("node3", mebibytes=1)
    used = three.create("node3")
    before = three.manifest("node3", idle)
    sleeper = three.sleeper("node3", used)
    three.run("node1", "pannier", "node", "drain", "node3")
    try:
        assert three.printed("node1", "node", "show", "node3")["state"] == "drained"
        story.wait_until("the idle one leaves", lambda: three.holder(idle) != "node3", seconds=100)
        assert three.manifest(three.holder(idle), idle) == before
        assert three.holder(used) == "node3"
        three.stop("node3", sleeper)
        story.wait_until("the other follows", lambda: three.holder(used) != "node3", seconds=130)
    finally:
        three.run("node1", "pannier", "node", "drain", "node3", "--undo")
    assert three.printed("node1", "node", "show", "node3")["state"] == "up"


def test_a_node_that_holds_something_is_not_removed(three: World) -> None:
    name = three.create("node2")
    three.refused(
        "node1", "pannier", "node", "rm", "node2",
        says=["node node2 holds", name, "pannier node drain node2"], status=4,
    )  # fmt: skip
    assert find(three.json("node1", "node", "ls"), name="node2")["state"] == "up"
