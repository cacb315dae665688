"""The Jenkins stack: its home follows the controller, and outlasts the loss of a node.

The controller is Hudson 1.398, which became Jenkins: the same home of XML files and builds. It
never calls fsync, so for it the bound of the loss counts, not its absence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import IMAGE, World
from demo import failover, jenkins_image, story
from jenkins_world import HOME, SLOW, Stack, deploy, install
from laboratory import laboratory, world_on

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
def jenkins_lab() -> Iterator[Lab]:
    """Three nodes that can lose power, with images; for development PANNIER_JENKINS_LAB names one."""
    name = os.environ.get("PANNIER_JENKINS_LAB")
    if name:
        yield Lab(name)
        return
    with laboratory("j", nodes=3, release="mixed", disks="cuttable") as lab:
        lab.build_busybox(IMAGE)
        jenkins_image.load(lab)
        yield lab


@pytest.fixture(scope="module")
def world(jenkins_lab: Lab) -> Iterator[World]:
    with world_on(jenkins_lab) as world:
        world.volumes.append(HOME)
        yield world


@pytest.fixture(scope="module")
def stack(world: World) -> Stack:
    """The stack, deployed for the first time; each node has a job that proves its agent."""
    world.run(MANAGER, "docker", "swarm", "update", "--dispatcher-heartbeat", "2s")
    stack = Stack(world.lab, manager=MANAGER)
    stack.install()
    with timed("from docker stack deploy until all agents are online"):
        stack.deploy(JENKINS_CONSTRAINT=pin(FIRST))
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
        failover.make(stack.lab, here, "drain", asked=MANAGER)
        task = stack.task(not_on=here)
    assert task.node in copies
    assert stack.builds(task.node) == before
    assert stack.jobs() == jobs
    failover.make(stack.lab, here, "active", asked=MANAGER)
    stack.wait_for_agents(*NODES)


def test_a_move_keeps_jobs_builds_and_numbers_and_agents_find_it(
    stack: Stack, world: World
) -> None:
    here = stack.task().node
    target = SECOND if here != SECOND else FIRST
    before, jobs, agents = stack.builds(here), stack.jobs(), stack.agents()
    move = world.moving(HOME, target, at=MANAGER, wait="90s")
    move.wait_for("waiting")
    with timed("from the change of the constraint until the controller answers elsewhere"):
        stack.deploy(JENKINS_CONSTRAINT=pin(target))
        outcome = move.outcome()
        assert outcome.status == 0, outcome.text
        assert stack.task(not_on=here).node == target
    assert stack.builds(target) == before
    assert stack.jobs() == jobs
    with timed("until all agents are online again"):
        stack.wait_for_agents(*NODES)
    assert stack.agents() == agents, "they connect again; nobody has to start them"
    assert stack.build(f"proof-{here}") == jobs[f"proof-{here}"]


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


def test_a_node_loses_power_under_a_build_and_finished_builds_are_there(
    stack: Stack, world: World
) -> None:
    stack.deploy(JENKINS_CONSTRAINT=WITH_A_COPY)
    victim = stack.task().node
    (other,) = {FIRST, SECOND} - {victim}
    stack.build(f"proof-{MANAGER}")
    stack.create_job("slow", node=MANAGER, script=SLOW)
    stack.start_build("slow")
    before, jobs = stack.builds(victim, without="slow"), stack.jobs()
    stack.wait_for_generation()
    assert world.lab.crash(victim), "its disks keep what was not flushed"

    with timed("from the loss of the node until the controller answers elsewhere"):
        task = stack.task(not_on=victim)
    assert story.volume(world.lab, HOME, node=MANAGER)["holder"] == task.node
    assert set(before) <= set(stack.builds(task.node, without="slow"))
    assert stack.jobs() == jobs, "the number of the build that was under way is not given again"
    with timed("until the agents that are left are online again"):
        stack.wait_for_agents(MANAGER, other)
    assert stack.build(f"proof-{MANAGER}") == jobs[f"proof-{MANAGER}"]

    world.lab.boot(victim, wait=False)
    with timed("from the lost node's boot until its agent is online"):
        stack.wait_for_agents(*NODES)
    assert stack.build(f"proof-{victim}") == jobs[f"proof-{victim}"]
    assert stack.task() == task, "the controller stays where it is"


@pytest.mark.faults
def test_an_image_that_was_pushed_follows_its_registry(world: World) -> None:
    """No node but the first has ever had it."""
    lab = world.lab
    world.volumes.append("registry_images")
    install(lab, MANAGER, "registry")
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
