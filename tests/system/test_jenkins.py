"""The Jenkins stack: its home follows the controller, and outlasts the loss of a node.

The controller is Hudson 1.398, which became Jenkins: the same home of XML files and builds. It
never calls fsync, so for it the bound of the loss counts, not its absence.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_world import IMAGE, World
from demo import jenkins_image, story
from demo.jenkins import CONTROLLER, HOME, SLOW, Stack, deploy
from laboratory import world_on

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

MANAGER = "node1"  # leads the Swarm, and stays
FIRST, SECOND = "node2", "node3"
NODES = (MANAGER, FIRST, SECOND)
PUSHED = "localhost:5000/pushed:1"
PUSH = ("docker", "push", PUSHED)
SHOW = ("docker", "run", "--rm", "--network", "none", PUSHED, "cat", "/made")
WITH_A_COPY = f"node.labels.pannier.volume.{HOME} == copy"


def pin(node: str) -> str:
    return f"node.hostname == {node}"


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long something took; ``pytest -s`` shows it."""
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:5.1f} s  {what}")


@pytest.fixture(scope="module")
def world(jenkins_lab: Lab) -> Iterator[World]:
    with world_on(jenkins_lab) as world:
        world.volumes.append(HOME)
        yield world


@pytest.fixture(scope="module")
def stack(world: World) -> Stack:
    """The stack, deployed for the first time; each node has a job that proves its agent."""
    world.run(MANAGER, "docker", "swarm", "update", "--dispatcher-heartbeat", "2s")
    # One secret is a person's own, with what a shell could stumble over; the other one is made.
    world.sh(MANAGER, "printf 'say \"friend\"' | docker secret create jenkins_agent_password -")
    stack = Stack(world.lab, manager=MANAGER)
    with timed("from pannier stack deploy until all agents are online"):
        said = stack.deploy(wait="5m", JENKINS_CONSTRAINT=pin(FIRST))
        assert [each["made"] for each in said["secrets"]] == [True, False]
        stack.task()
        stack.wait_for_agents(*NODES)
    for node in NODES:
        stack.create_job(f"proof-{node}", node=node)
    return stack


def test_the_first_start_fills_the_home_and_every_node_has_a_door(stack: Stack) -> None:
    assert stack.task().node == FIRST
    lines = story.manifest(stack.lab, FIRST, HOME).splitlines()
    assert {line.split()[1] for line in lines} == {"1000:1000"}
    assert any(line.endswith(" 'config.xml'") for line in lines), "the image's own file"
    for node in NODES:
        assert "proof-node1" in stack.get("api/json", node=node)


def test_the_same_deployment_again_changes_nothing_and_a_second_one_is_refused(
    stack: Stack, world: World
) -> None:
    task, agents = stack.task(), stack.agents()
    said = stack.deploy(wait="1m", JENKINS_CONSTRAINT=pin(FIRST))
    assert not any(each["made"] for each in said["secrets"])
    assert (stack.task(), stack.agents()) == (task, agents)
    second = ("pannier", "stack", "deploy", "jenkins", "--name", "ci")
    world.refused(MANAGER, *second, says=["8080/tcp is published by service jenkins_door"])


def test_a_node_that_would_not_hold_sync_calls_is_refused(world: World) -> None:
    def reload(change: str, runtime: str) -> None:
        until = f"until docker info -f '{{{{.DefaultRuntime}}}}' | grep -x {runtime}; do sleep 0.1; done"
        world.sh(SECOND, f"{change}; systemctl reload docker; {until}", timeout=20)

    there = ("pannier", "stack", "deploy", "jenkins", "-e", f"JENKINS_CONSTRAINT={pin(SECOND)}")
    # An engine takes another default runtime from a file that names one, not from one that does not.
    name_runc = 'sed -i \'1s/{/{"default-runtime": "runc",/\' /etc/docker/daemon.json'
    reload(f"pannier runtime unregister; {name_runc}", "runc")
    try:
        world.refused(MANAGER, *there, says=[f"{SECOND} may get service controller", "register"])
    finally:
        reload("pannier runtime register", "pannier")


def test_each_node_builds_an_image_runs_it_and_its_result_is_kept(stack: Stack) -> None:
    for node in NODES:
        number = stack.build(f"proof-{node}")
        result = stack.get(f"job/proof-{node}/{number}/artifact/result")
        assert result == f"build {number} on {node}\n"


@pytest.mark.faults
def test_a_drain_moves_the_controller_to_a_copy(stack: Stack) -> None:
    stack.build(f"proof-{MANAGER}")
    stack.deploy(JENKINS_CONSTRAINT=WITH_A_COPY)
    here = stack.task().node
    before, jobs = stack.builds(here), stack.jobs()
    copies = story.volume(stack.lab, HOME)["in_sync"]
    with timed("from a drain until the controller answers elsewhere"):
        story.set_availability(stack.lab, here, "drain", asked=MANAGER)
        task = stack.task(not_on=here)
    assert task.node in copies
    assert stack.builds(task.node) == before
    assert stack.jobs() == jobs
    story.set_availability(stack.lab, here, "active", asked=MANAGER)
    stack.wait_for_agents(*NODES)


def test_a_move_waits_for_the_running_build_and_keeps_jobs_and_numbers(
    stack: Stack, world: World
) -> None:
    stack.deploy(JENKINS_CONSTRAINT=WITH_A_COPY)
    here = stack.task().node
    target = SECOND if here != SECOND else FIRST
    stack.create_job("counts", node=MANAGER, script="sleep 15; echo counted")
    before, agents = stack.builds(here), stack.agents()
    number = stack.start_build("counts")
    jobs = stack.jobs()
    with timed("from the command's begin to its end, a build of 15 s included"):
        said = world.run(MANAGER, "pannier", "service", "move", CONTROLLER, target)
    print(said)
    assert stack.task(not_on=here).node == target
    assert stack.finished("counts", number)["result"] == "SUCCESS", "the move has waited for it"
    assert stack.jobs() == jobs
    assert set(before) <= set(stack.builds(target))
    with timed("until all agents are online again"):
        stack.wait_for_agents(*NODES)
    assert stack.agents() == agents, "they connect again; nobody has to start them"
    assert stack.build(f"proof-{here}") == jobs[f"proof-{here}"], "it takes builds again"


@pytest.mark.faults
def test_an_agent_whose_node_lost_power_takes_its_place_again(stack: Stack, world: World) -> None:
    """Its controller believes that it is there, for nobody has closed the connection."""
    (victim,) = {FIRST, SECOND} - {stack.task().node}
    before, number = stack.agents()[victim], stack.jobs()[f"proof-{victim}"]
    assert world.lab.crash(victim)
    world.lab.boot(victim, wait=False)
    with timed("from the boot of an agent's node until it is connected"):
        stack.wait_for_new_agent(victim, before)
        stack.wait_for_agents(*NODES)
    assert stack.build(f"proof-{victim}") == number


# -- power cuts under builds: what is under way at that moment, besides a build whose log grows -------

FILES = "rm -rf out; mkdir out; n=0; while [ $n -lt 400 ]; do n=$((n+1)); head -c 50000 /dev/urandom >out/$n; done"
JOBS = {
    "slow": (SLOW, ""),
    "files": (FILES, "out/*"),
    "quick": ("echo quick", ""),
    "edited": ("echo 0", ""),
}


def nothing_else(stack: Stack) -> None:
    pass


def a_build_begins(stack: Stack) -> None:
    stack.ask_for_build("quick")


def a_build_ends(stack: Stack) -> None:
    stack.build("quick")


def files_are_archived(stack: Stack) -> None:
    number = stack.start_build("files")

    def archiving() -> bool:
        return "Archiving" in stack.get(f"job/files/{number}/consoleText")

    story.wait_until("its files are archived", archiving, seconds=60)


def a_job_is_changed(stack: Stack) -> None:
    for version in range(1, 20):
        stack.change_job("edited", node=MANAGER, script=f"echo {version}")


def taken_over(world: World, victim: str) -> int:
    """How often the home was taken over from this node, as its history tells."""
    history = world.json(MANAGER, "volume", "history", HOME)
    return sum(f"from {victim}, whose lease ran out" in each["detail"] for each in history)


@pytest.mark.parametrize(
    "moment",
    [
        nothing_else,
        *(
            pytest.param(each, marks=pytest.mark.faults)
            for each in (a_build_begins, a_build_ends, files_are_archived, a_job_is_changed)
        ),
    ],
)
def test_a_node_loses_power_under_a_build_and_finished_builds_are_there(
    stack: Stack, world: World, moment: Callable[[Stack], None]
) -> None:
    world.wait_until_all_up()
    stack.wait_for_agents(*NODES)
    stack.deploy(JENKINS_CONSTRAINT=WITH_A_COPY)
    if stack.task().node == MANAGER:
        world.run(MANAGER, "pannier", "service", "move", CONTROLLER, FIRST, "--now")
    victim = stack.task().node
    (other,) = {FIRST, SECOND} - {victim}
    for name, (script, archive) in JOBS.items():
        if name not in stack.jobs():
            stack.create_job(name, node=MANAGER, script=script, archive=archive)
    stack.build(f"proof-{MANAGER}")
    stack.start_build("slow")
    before, jobs = stack.builds(victim, without="slow"), stack.jobs()
    earlier = taken_over(world, victim)
    stack.wait_for_generation()
    moment(stack)
    assert world.lab.crash(victim), "its disks keep what was not flushed"

    with timed("from the loss of the node until the controller answers elsewhere"):
        task = stack.task(not_on=victim)
    assert story.volume(world.lab, HOME, node=MANAGER)["holder"] == task.node
    assert set(before) <= set(stack.builds(task.node, without="slow"))
    found = stack.jobs()
    assert found.keys() == jobs.keys()
    assert all(found[name] >= jobs[name] for name in jobs), "no number is given a second time"
    assert "SEVERE" not in stack.log(task), "the home loads without an error"
    changed = re.search("<command>echo (\\d+)</command>", stack.get("job/edited/config.xml"))
    assert changed, "a job is as it was before a change or after it"
    assert taken_over(world, victim) == earlier + 1
    with timed("until the agents that are left are online again"):
        stack.wait_for_agents(MANAGER, other)
    assert stack.build(f"proof-{MANAGER}") == jobs[f"proof-{MANAGER}"]
    world.lab.boot(victim, wait=False)


@pytest.mark.faults
def test_a_lost_node_is_back_with_its_agent_and_the_controller_stays(
    stack: Stack, world: World
) -> None:
    """After the last power cut of those before. A Swarm can be without a leader for two minutes then."""
    world.wait_until_all_up()
    task, jobs = stack.task(), stack.jobs()
    with timed("from the lost node's boot until its agent is online"):
        stack.wait_for_agents(*NODES)
    for node in (FIRST, SECOND):
        assert stack.build(f"proof-{node}") == jobs[f"proof-{node}"]
    assert stack.task() == task


@pytest.mark.faults
def test_an_image_that_was_pushed_follows_its_registry(world: World, tmp_path: Path) -> None:
    """No node but the first has ever had it. The lab, too, hands images to its nodes by it."""
    world.wait_until_all_take_tasks()
    lab = world.lab
    world.volumes.append("registry_images")
    images = {
        "REGISTRY_IMAGE": jenkins_image.REGISTRY,
        "REGISTRY_DOOR_IMAGE": jenkins_image.DOOR,
    }
    deploy(lab, MANAGER, "registry", **images, REGISTRY_CONSTRAINT=pin(FIRST))
    world.sh(MANAGER, f"printf 'FROM {IMAGE}\nRUN date >/made' | docker build --tag {PUSHED} -")
    made = world.run(MANAGER, *SHOW)
    story.wait_until("it is pushed", lambda: world.attempt(MANAGER, *PUSH).status == 0)

    deploy(lab, MANAGER, "registry", **images, REGISTRY_CONSTRAINT=pin(SECOND))
    task = story.wait_until(
        "the registry runs elsewhere",
        lambda: story.running_task(lab, "registry_registry", not_on=FIRST),
    )
    assert task.node == SECOND

    def shown(node: str) -> str:
        return story.wait_until(f"{node} gets it", lambda: world.attempt(node, *SHOW).out)

    assert shown(FIRST) == shown(SECOND) == made

    root = tmp_path / "root/bin"
    root.mkdir(parents=True)
    (root / "hello").write_text("handed out\n")
    lab.load_image(root.parent, tag="localhost:5000/handed:1")
    (address,) = (node.address for node in lab.nodes if node.name == SECOND)
    with urllib.request.urlopen(f"http://{address}:5000/v2/_catalog", timeout=20) as answer:
        assert "handed" in json.load(answer)["repositories"], "the lab has pushed it"
    for node in NODES:
        ids = ["docker", "image", "inspect", "-f", "{{.Id}}", "localhost:5000/handed:1"]
        assert world.run(node, *ids) == world.run(MANAGER, *ids), "and the others have pulled it"

    saved, named = tmp_path / "saved.tar", "localhost:5000/saved:1"
    world.run(MANAGER, "docker", "tag", PUSHED, named)
    with saved.open("wb") as out:
        lab.run(MANAGER, ["docker", "save", named], stdout=out)
    world.run(MANAGER, "docker", "rmi", named)
    lab.load_image(saved)
    for node in NODES:
        assert world.run(node, "docker", "run", "--rm", named, "cat", "/made") == made
