"""Lost nodes on a real Swarm: where services run again, and what becomes of the nodes.

Swarm itself says when it has noticed a loss: the node's state becomes ``down``. A service that runs elsewhere
before that was moved by us.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from cluster_world import IMAGE, World
from demo import looks, story
from laboratory import world_on

from pannier.lab import Lab, LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

WORKER = "node4"


@dataclass(frozen=True, slots=True)
class SwarmView:
    """A Swarm node as a manager sees it."""

    id: str
    state: str
    availability: str
    labels: dict[str, str]
    leader: bool


@pytest.fixture
def swarm(swarm_lab: Lab) -> Iterator[World]:
    """The four nodes for one test; no earlier evacuation counts."""
    with world_on(swarm_lab) as world:
        story.wait_until("every engine's place is known", lambda: places_known(world))
        world.wait_until_all_take_tasks()  # no record says who was drained by an earlier test
        yield world
    forget_evacuations(swarm_lab)


def places_known(world: World) -> bool:
    """Whether the cluster knows which Swarm node each of its nodes is."""
    asked = etcdctl(world.lab, "get", "--prefix", "/pannier/v1/nodes/", "--print-value-only")
    records = [json.loads(line) for line in asked.splitlines() if line.startswith("{")]
    return len(records) == 4 and all(record["swarm"] for record in records)


def forget_evacuations(lab: Lab) -> None:
    """As fifteen quiet minutes would: the next test's node is given back after the shortest time."""
    etcdctl(lab, "del", "--prefix", "/pannier/v1/evacuated/")


def etcdctl(lab: Lab, *words: str) -> str:
    pki = "/etc/etcd/pki"
    options = ["--cacert", f"{pki}/ca.crt", "--cert", f"{pki}/tls.crt", "--key", f"{pki}/tls.key"]
    running = next(node for node in lab.nodes if node.state == "running")
    endpoint = ["--endpoints", f"https://{running.address}:2379"]
    command = ["env", "ETCDCTL_API=3", "etcdctl", *options, *endpoint, *words]
    return str(lab.run(running.name, command, timeout=30).stdout)


def view(world: World, node: str, *, at: str) -> SwarmView:
    """A Swarm node; LabError while the Swarm has no leader."""
    found = looks.engine(world.lab, at).get(f"/nodes/{node}")
    return SwarmView(
        id=found["ID"],
        state=found["Status"]["State"],
        availability=found["Spec"]["Availability"],
        labels=found["Spec"]["Labels"] or {},
        leader=bool(found.get("ManagerStatus", {}).get("Leader")),
    )


def leader(world: World) -> str:
    for node in world.nodes[:3]:
        if view(world, node, at="node1").leader:
            return node
    raise AssertionError("the Swarm has no leader")


def manager_beside(victim: str) -> str:
    return "node1" if victim != "node1" else "node2"


def wait_until_back(world: World, node: str, *, at: str) -> None:
    """Wait until a node is up and gets tasks again."""
    seen = ""

    def is_back() -> bool:
        nonlocal seen
        try:
            found = view(world, node, at=at)
        except LabError as error:
            seen = str(error)
            return False
        seen = f"{found.state}, {found.availability}"
        return seen == "ready, active"

    try:
        story.wait_until(f"{node} is given back", is_back)
    except story.StoryError as error:
        raise story.StoryError(f"{error}: {seen}; {world.engine_says(node)}") from None


def service_on(world: World, node: str, *flags: str) -> str:
    """A service of one task, which starts on ``node`` and may run anywhere."""
    name = world.name("svc")
    manager = manager_beside(node)
    with only(world, node, at=manager):
        world.run(
            manager, "docker", "service", "create", "--detach", "--name", name, "--no-resolve-image",
            "--endpoint-mode", "dnsrr", "--stop-grace-period", "1s", *flags, IMAGE, "sleep", "10000",
        )  # fmt: skip
        story.wait_until("the service runs", lambda: story.running_task(world.lab, name))
    task = story.running_task(world.lab, name)
    assert task is not None
    assert task.node == node
    return name


@contextmanager
def only(world: World, node: str, *, at: str) -> Iterator[None]:
    """Swarm gives tasks to this node alone, and takes none away from others."""
    others = world.others(node)
    for other in others:
        story.set_availability(world.lab, other, "pause", asked=at)
    try:
        yield
    finally:
        for other in others:
            story.set_availability(world.lab, other, "active", asked=at)


def labelled(world: World, volume: str, *, at: str = "node1") -> set[str]:
    """The nodes that have the volume's label."""
    label = f"pannier.volume.{volume}"
    return {
        node["Description"]["Hostname"]
        for node in looks.engine(world.lab, at).get("/nodes")
        if (node["Spec"]["Labels"] or {}).get(label) == "copy"
    }


def volume_with_copies(world: World, node: str) -> str:
    """A volume with three copies, whose labels are all there."""
    name = world.create(node, copies="3")
    story.wait_until("three nodes are labelled", lambda: len(labelled(world, name)) == 3)
    assert node in labelled(world, name)
    return name


def crash_and_wait(world: World, victim: str, service: str) -> str:
    """Cut the victim's power and wait until the service runs elsewhere.

    Returns Swarm's state of the victim at that moment.
    """
    began = time.monotonic()
    world.lab.crash(victim)
    elsewhere = lambda: story.running_task(world.lab, service, not_on=victim)  # noqa: E731
    story.wait_until("the service runs elsewhere", elsewhere)
    seconds = time.monotonic() - began
    state = view(world, victim, at=manager_beside(victim)).state
    print(f"it ran elsewhere {seconds:.1f} s after the power cut; Swarm called the node {state}")
    return state


@contextmanager
def patient_swarm(world: World, *, at: str) -> Iterator[None]:
    """Swarm itself notices a loss only after a minute, instead of ten to fifteen seconds."""

    def heartbeat(period: str) -> None:
        update = ["docker", "swarm", "update", "--dispatcher-heartbeat", period]
        story.wait_until("it is set", lambda: world.attempt(at, *update).status == 0)

    heartbeat("20s")
    time.sleep(6)  # each node hears of it with its next heartbeat
    try:
        yield
    finally:
        heartbeat("5s")


def availability(world: World, node: str) -> str:
    return view(world, node, at=manager_beside(node)).availability


@pytest.mark.parametrize("role", ["worker", pytest.param("leader", marks=pytest.mark.faults)])
def test_a_service_that_is_bound_to_copies_does_not_wait_for_swarm(swarm: World, role: str) -> None:
    """The node gets tasks again when it is steadily back, and its label with them."""
    victim = WORKER if role == "worker" else leader(swarm)
    at = manager_beside(victim)
    volume = volume_with_copies(swarm, victim)
    bound = ["--constraint", f"node.labels.pannier.volume.{volume}==copy"]
    service = service_on(swarm, victim, *bound)
    with patient_swarm(swarm, at=at):
        assert crash_and_wait(swarm, victim, service) != "down"
    story.wait_until("it is drained", lambda: availability(swarm, victim) == "drain")
    assert victim not in labelled(swarm, volume, at=at)
    swarm.lab.boot(victim)
    wait_until_back(swarm, victim, at=at)
    story.wait_until("it is labelled", lambda: victim in labelled(swarm, volume, at=at))


@pytest.mark.faults
def test_any_other_service_is_spared_the_restart_delay(swarm: World) -> None:
    """Swarm starts it when it believes that the node is down; by then the node is drained."""
    service = service_on(swarm, WORKER, "--restart-delay", "120s")
    crash_and_wait(swarm, WORKER, service)
    assert availability(swarm, WORKER) == "drain"
    swarm.lab.boot(WORKER)
    wait_until_back(swarm, WORKER, at="node1")


@pytest.mark.faults
def test_what_a_person_drained_is_not_given_back(swarm: World) -> None:
    story.set_availability(swarm.lab, WORKER, "drain", asked="node1")
    try:
        swarm.lab.crash(WORKER)
        story.wait_until("Swarm notices", lambda: view(swarm, WORKER, at="node1").state == "down")
        assert etcdctl(swarm.lab, "get", "--prefix", "/pannier/v1/evacuated/") == ""
        swarm.lab.boot(WORKER)
        swarm.wait_until_all_up()
        time.sleep(20)  # beyond the time after which one of ours would be given back
        assert availability(swarm, WORKER) == "drain"
    finally:
        story.set_availability(swarm.lab, WORKER, "active", asked="node1")


def test_a_stop_of_the_daemon_in_good_order_moves_nothing(swarm: World) -> None:
    """Nor does one that is killed, which systemd starts again."""
    service = service_on(swarm, WORKER)
    swarm.kill(WORKER, "pannierd")
    swarm.wait_for_pannier(WORKER)
    swarm.stop_pannier(WORKER)
    time.sleep(15)  # well beyond the lease
    assert availability(swarm, WORKER) == "active"
    swarm.start_pannier(WORKER)
    task = story.running_task(swarm.lab, service)
    assert task is not None
    assert task.node == WORKER


def test_restarted_managers_give_back_what_was_drained_before(swarm: World) -> None:
    swarm.lab.crash(WORKER)
    story.wait_until("it is drained", lambda: availability(swarm, WORKER) == "drain")
    swarm.on_all(lambda node: swarm.run(node, "systemctl", "restart", "pannierd"), swarm.nodes[:3])
    swarm.lab.boot(WORKER)
    wait_until_back(swarm, WORKER, at="node1")


@pytest.mark.faults
def test_f28_a_link_that_comes_and_goes_moves_tasks_once(swarm: World) -> None:
    seen = [availability(swarm, WORKER)]
    for _ in range(5):
        with swarm.cut(WORKER):
            time.sleep(7)
        seen.append(availability(swarm, WORKER))
        time.sleep(5)
        seen.append(availability(swarm, WORKER))
    assert "".join(word[0] for word in seen).strip("a") == "d" * seen.count("drain")
    assert "drain" in seen
    wait_until_back(swarm, WORKER, at="node1")
    records = etcdctl(swarm.lab, "get", "--prefix", "/pannier/v1/evacuated/", "--print-value-only")
    assert json.loads(records)["times"] == 1


def test_a_service_that_may_run_on_no_copy_is_told(swarm: World) -> None:
    volume = swarm.create("node1", copies="2")
    story.wait_until("two are labelled", lambda: len(labelled(swarm, volume)) == 2)
    (apart, *_) = sorted(set(swarm.nodes) - labelled(swarm, volume))
    name = swarm.name("svc")
    swarm.run(
        "node1", "docker", "service", "create", "--detach", "--name", name, "--no-resolve-image",
        "--replicas", "0", "--constraint", f"node.hostname=={apart}",
        "--mount", f"type=volume,source={volume},target=/data,volume-driver=pannier",
        IMAGE, "sleep", "10000",
    )  # fmt: skip
    findings = swarm.json("node2", "doctor")
    (warning,) = (one for one in findings if one["subject"] == f"service {name}")
    assert warning["level"] == "warning"
    assert volume in warning["what"]
