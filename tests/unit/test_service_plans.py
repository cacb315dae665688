"""Moving a service: what is in the way, what changes in Swarm, hooks, and what Swarm's tasks say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pannier.core.constraints import matches
from pannier.core.errors import Conflict, InvalidInput, NodeNotFound, NotFound, PoolFull
from pannier.core.hooks import Hook, Moment, read_hooks
from pannier.core.node import Node
from pannier.core.service_arrival import ServiceArrival
from pannier.core.service_move import (
    ASIDE,
    TIED,
    Place,
    check_capacity,
    check_kind,
    check_room,
    check_volumes,
    find_service,
    find_target,
    is_tied,
    tied,
    untied,
)
from pannier.core.swarm import (
    Availability,
    Resources,
    ServiceMount,
    SwarmNode,
    SwarmService,
    SwarmTask,
)
from pannier.core.volume import Grant, Volume, VolumeSpec


def swarm_node(name: str, **facts: Any) -> SwarmNode:
    given: dict[str, Any] = {
        "state": "ready",
        "availability": Availability.ACTIVE,
        "role": "worker",
        "version": 1,
        "os": "linux",
    }
    return SwarmNode(id=f"id-{name}", hostname=name, **(given | facts))


def node(name: str, **facts: Any) -> Node:
    given: dict[str, Any] = {
        "address": "127.0.0.1",
        "drivers": ("btrfs",),
        "version": "0",
        "joined_at": 0.0,
        "certificate": name,
        "swarm": f"id-{name}",
    }
    return Node(name=name, **(given | facts))


def service(**facts: Any) -> SwarmService:
    given: dict[str, Any] = {
        "id": "id-ci",
        "name": "ci",
        "mounts": (ServiceMount(source="home"), ServiceMount(source="cache")),
        "constraints": ("node.platform.os == linux",),
        "labels": {"com.docker.stack.namespace": "ci"},
    }
    return SwarmService(**(given | facts))


A, B = swarm_node("a"), swarm_node("b")
CI = service()
VOLUMES = ("home", "cache")


# -- finding ----------------------------------------------------------------------------------------


def test_a_service_is_found_by_name_or_id_and_a_near_miss_is_told() -> None:
    others = [CI, service(id="id-web", name="shop_web")]
    assert find_service("ci", others) is CI
    assert find_service("id-ci", others) is CI
    for near in ("web", "shop_wep"):
        with pytest.raises(NotFound) as caught:
            find_service(near, others)
        assert "did you mean shop_web?" in caught.value.remedy


UP = lambda name: True  # noqa: E731


def test_a_node_is_found_by_either_of_its_names() -> None:
    nodes = [node("a"), node("pannier-b", swarm="id-b")]
    for name in ("b", "pannier-b", "id-b"):
        assert find_target(name, nodes, [A, B], is_up=UP).swarm is B
    unheard = [node("a"), node("b", swarm=None)]
    assert find_target("b", unheard, [A, B], is_up=UP).node is unheard[1]


@pytest.mark.parametrize(
    ("nodes", "swarm", "up", "kind", "words"),
    [
        ([node("a")], [A], True, NodeNotFound, "there is no node b"),
        ([node("a")], [A, B], True, Conflict, "node b has no Pannier"),
        ([node("b")], [A], True, Conflict, "node b is not in this Swarm"),
        ([node("b", swarm=None)], [A], True, Conflict, "node b is not in this Swarm"),
        ([node("b", swarm="id-old")], [A, B], True, Conflict, "node b is not in this Swarm"),
        ([node("b")], [swarm_node("b", state="down")], True, Conflict, "node b is down"),
        (
            [node("b")],
            [swarm_node("b", availability=Availability.DRAIN)],
            True,
            Conflict,
            "node b is drained in the Swarm",
        ),
        (
            [node("b")],
            [swarm_node("b", availability=Availability.PAUSE)],
            True,
            Conflict,
            "node b is paused in the Swarm",
        ),
        ([node("b")], [B], False, Conflict, "Pannier on node b is down"),
        ([node("b", drained=True)], [B], True, Conflict, "node b is drained"),
    ],
)
def test_a_node_that_can_take_no_service_is_refused_with_a_remedy(
    nodes: list[Node], swarm: list[SwarmNode], up: bool, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        find_target("b", nodes, swarm, is_up=lambda name: up)
    assert caught.value.remedy  # type: ignore[attr-defined]


# -- what is in the way -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words", "remedy"),
    [
        ({"mode": "global"}, "is global", "pannier volume move"),
        ({"mode": "replicated job"}, "is replicated job", "pannier volume move"),
        ({"replicas": 3}, "has 3 replicas", "docker service scale ci=1"),
        ({"replicas": 0}, "has 0 replicas", "docker service scale ci=1"),
        ({"order": "start-first"}, "start-first", "--update-order stop-first ci"),
    ],
)
def test_services_of_other_kinds_are_refused(
    changes: dict[str, Any], words: str, remedy: str
) -> None:
    check_kind(CI)
    with pytest.raises(Conflict, match=words) as caught:
        check_kind(replace(CI, **changes))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ("node.hostname==b", True),
        ("node.hostname == a", False),
        ("node.role==manager", False),
        ("node.labels.rack!=r1", True),
        ("node.labels.pannier.volume.home == copy", True),
        ("node.labels.pannier.volume.other == copy", False),
    ],
)
def test_a_service_s_own_constraints_are_kept_but_for_those_that_follow_its_volumes(
    constraint: str, allowed: bool
) -> None:
    asked = replace(CI, constraints=(constraint,))
    if allowed:
        check_volumes(asked, VOLUMES, B)
        return
    with pytest.raises(Conflict, match="excludes it") as caught:
        check_volumes(asked, VOLUMES, B)
    assert f"--constraint-rm '{constraint}' ci" in caught.value.remedy


def test_a_service_without_volumes_of_ours_brings_nothing_along() -> None:
    with pytest.raises(Conflict, match="nothing to bring along") as caught:
        check_volumes(CI, (), B)
    assert "--constraint-add node.hostname==b ci" in caught.value.remedy


def test_the_constraint_of_an_earlier_move_is_not_in_the_way() -> None:
    moved = tied(CI, A, [A, B])
    check_volumes(replace(CI, constraints=moved.constraints, labels=moved.labels), VOLUMES, B)


def volume(name: str, holder: str, *replicas: str, driver: str = "btrfs") -> Volume:
    return Volume(
        name=name,
        id=name,
        spec=VolumeSpec(driver=driver),
        grant=Grant(holder, 1),
        replicas=replicas,
        created_at=0.0,
    )


def test_room_is_needed_for_what_the_node_has_no_copy_of() -> None:
    there = Place(node=node("b"), swarm=B)
    volumes = [(volume("home", "a"), 600), (volume("cache", "a", "b"), 5000)]
    check_room(there, volumes, free_bytes=600)
    check_room(there, volumes, free_bytes=None)
    with pytest.raises(PoolFull, match="node b has 599 free"):
        check_room(there, volumes, free_bytes=599)
    with pytest.raises(Conflict, match="has no directory driver, which volume home needs"):
        check_room(there, [(volume("home", "a", driver="directory"), 0)], free_bytes=1)


def test_a_node_with_too_little_left_to_reserve_is_refused() -> None:
    big = replace(CI, reserved=Resources(1_500_000_000, 3 * 2**30))
    target = replace(B, resources=Resources(2_000_000_000, 4 * 2**30))
    task = SwarmTask(
        id="t", service="id-web", node="id-b", state="running", wanted=True,
        reserved=Resources(500_000_000, 2**30),
    )  # fmt: skip
    check_capacity(big, target, [(task, None)])
    check_capacity(big, replace(target, resources=None), [(task, None)] * 9)
    with pytest.raises(
        Conflict, match=r"reserves 1.5 CPUs, and 1 are left and 3G of memory, and 2G"
    ):
        check_capacity(big, target, [(task, None), (task, None)])
    with pytest.raises(Conflict, match=r"1.5 CPUs, and 0 are left"):
        check_capacity(big, target, [(task, None)] * 9)
    check_capacity(CI, target, [(task, None)] * 9)  # it reserves nothing


def test_a_node_on_which_the_services_port_is_taken_is_refused() -> None:
    web = service(id="id-web", name="web", host_ports=("80/tcp", "53/udp"))
    task = SwarmTask(id="t", service="id-web", node="id-b", state="running", wanted=True)
    for free in ((), ("53/tcp",), ("8080/tcp",)):
        check_capacity(replace(CI, host_ports=free), B, [(task, web)])
    with pytest.raises(Conflict, match="publishes 53/udp on its node, and on b service web does"):
        check_capacity(replace(CI, host_ports=("53/udp", "99/tcp")), B, [(task, web)])


# -- what changes in Swarm --------------------------------------------------------------------------


def moved(before: SwarmService, target: SwarmNode, nodes: list[SwarmNode]) -> SwarmService:
    change = tied(before, target, nodes)
    return replace(before, constraints=change.constraints, labels=change.labels)


def test_a_move_ties_the_service_and_takes_that_back() -> None:
    there = moved(CI, B, [A, B])
    assert there.constraints == ("node.platform.os == linux", "node.hostname==b")
    assert there.labels[TIED] == "node.hostname==b"
    assert is_tied(there)
    back = untied(there)
    assert (back.constraints, back.labels) == (CI.constraints, CI.labels)
    assert not is_tied(CI)


def test_constraints_that_the_volumes_labels_do_not_meet_yet_are_set_aside() -> None:
    label = "node.labels.pannier.volume.home == copy"
    asked = service(constraints=(label, "node.role==worker"))
    there = moved(asked, B, [A, B])
    assert there.constraints == ("node.role==worker", "node.hostname==b")
    assert json.loads(there.labels[ASIDE]) == [label]
    assert sorted(untied(there).constraints) == sorted(asked.constraints)
    with_copy = swarm_node("b", labels={"pannier.volume.home": "copy"})
    assert moved(asked, with_copy, [A, with_copy]).constraints == (
        label,
        "node.role==worker",
        "node.hostname==b",
    )


def test_one_move_replaces_another_and_repeating_it_changes_nothing() -> None:
    label = "node.labels.pannier.volume.home == copy"
    asked = service(constraints=(label,))
    first = moved(asked, B, [A, B])
    assert moved(first, B, [A, B]) == first
    second = moved(first, A, [A, B])
    assert second.constraints == ("node.hostname==a",)
    assert untied(second).constraints == (label,)
    assert untied(second).labels == asked.labels


def test_nodes_of_one_name_are_told_apart_by_id() -> None:
    twin = replace(A, id="id-twin")
    assert tied(CI, twin, [A, twin, B]).constraints[-1] == "node.id==id-twin"
    assert not matches(A, tied(CI, twin, [A, twin, B]).constraints)


def test_what_a_person_has_changed_meanwhile_stays() -> None:
    there = moved(CI, B, [A, B])
    by_hand = replace(there, constraints=("node.role==worker",), labels={**there.labels, "x": "y"})
    assert untied(by_hand).constraints == ("node.role==worker",)
    assert untied(by_hand).labels == {**CI.labels, "x": "y"}
    broken = replace(there, labels={**there.labels, ASIDE: "{not json"})
    assert untied(broken).constraints == CI.constraints


# -- hooks ------------------------------------------------------------------------------------------


def test_hooks_are_read_from_labels() -> None:
    labels = {
        "other": "label",
        "pannier.hook.pre-move": "sleep 1",
        "pannier.hook.pre-move.timeout": "30m",
        "pannier.hook.post-move": "true",
        "pannier.hook.post-move.on-failure": "abort",
    }
    before = Hook(moment=Moment.BEFORE, command="sleep 1", timeout_seconds=1800.0, abort=True)
    after = Hook(moment=Moment.AFTER, command="true", timeout_seconds=600.0, abort=True)
    assert read_hooks(labels) == {Moment.BEFORE: before, Moment.AFTER: after}
    assert not read_hooks({"pannier.hook.post-move": "true"})[Moment.AFTER].abort
    assert read_hooks({}) == {}


@pytest.mark.parametrize(
    "labels",
    [
        {"pannier.hook.before": "true"},
        {"pannier.hook.pre-move.timeout": "1m"},
        {"pannier.hook.pre-move": "true", "pannier.hook.pre-move.timeout": "soon"},
        {"pannier.hook.pre-move": "true", "pannier.hook.pre-move.on-failure": "retry"},
        {"pannier.hook.pre-move": "true", "pannier.hook.pre-move.time": "1m"},
        {"pannier.hook.pre-move": " "},
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match=r"label pannier\.hook\.") as caught:
        read_hooks(labels)
    assert caught.value.remedy


# -- what Swarm's tasks say -------------------------------------------------------------------------


def task(name: str, on: str, state: str, *, wanted: bool = True, message: str = "") -> SwarmTask:
    where = f"id-{on}" if on else ""
    return SwarmTask(
        id=name, service="id-ci", node=where, state=state, wanted=wanted, message=message
    )


def test_an_arrival_from_the_old_container_s_end_to_the_new_one_s_run() -> None:
    arrival = ServiceArrival(known=frozenset({"old", "older"}), target="id-b")
    older, old = task("older", "b", "failed"), task("old", "a", "running", wanted=False)
    arrival.look([older, old, task("new", "b", "preparing")], now=1.0)
    assert (arrival.ended_at, arrival.running) == (None, False)
    assert (arrival.failed, arrival.pending) == (0, False), "what failed before is not counted"
    over = task("old", "a", "shutdown", wanted=False)
    arrival.look([older, over, task("new", "b", "preparing")], now=2.0)
    arrival.look([older, over, task("new", "b", "starting")], now=3.0)
    assert not arrival.running, "its volumes may still be on their way, or it is not healthy yet"
    arrival.look([older, over, task("new", "b", "running")], now=4.0)
    assert (arrival.ended_at, arrival.running) == (2.0, True)


def test_an_arrival_that_an_earlier_move_has_begun() -> None:
    arrival = ServiceArrival(known=frozenset(), target="id-b")
    arrival.look([task("old", "a", "running", wanted=False), task("n", "b", "ready")], now=1.0)
    assert arrival.ended_at is None
    arrival.look([task("old", "a", "complete", wanted=False), task("n", "b", "running")], now=2.0)
    assert (arrival.ended_at, arrival.running) == (2.0, True)


def test_tasks_that_fail_or_find_no_node_are_told() -> None:
    arrival = ServiceArrival(known=frozenset({"old"}), target="id-b")
    arrival.look([task("n", "", "pending", message="no suitable node")], now=1.0)
    assert (arrival.pending, arrival.message) == (True, "no suitable node")
    failed = [task(f"n{i}", "b", "rejected", wanted=False, message="no image") for i in range(3)]
    arrival.look([*failed, task("n4", "b", "ready", message="")], now=2.0)
    assert (arrival.failed, arrival.running, arrival.pending) == (3, False, False)
    assert arrival.message == "no image"
