"""From bare machines to a Jenkins that survived its node: what ``make demo`` plays.

Three hosts with nothing but ssh, two commands, and then what can happen to a Jenkins: a move to
another node, a power cut under a running build, an upgrade that goes wrong, and the loss of all machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demo import failover, jenkins_image, story, ways_back
from demo.jenkins import CONTROLLER, HOME, IMAGE, SLOW, WITH_A_COPY, Home, Stack
from demo.story import expect
from demo.timeline import Timeline, laboratory
from pannier.lab import Lab
from pannier.lab.inventory import inventory

MORAL = "From bare machines to a Jenkins that survived its node; every finished build is there."

_ROOT = Path(__file__).parents[1]
_ANSIBLE_SECONDS = 600.0
_LEADER = "node1"
"""Leads the Swarm; the story is shorter where it stays, since Swarm then need not elect another."""


def play(timeline: Timeline) -> None:
    """Play all of it.

    Raises:
        StoryError: something was not as it must be.
    """
    timeline.chapter("1. pannier lab up --bare: three machines with sshd, Debian 12 and 13 mixed")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as beside:
        folder = Path(name)
        wheels = beside.submit(_wheelhouse, folder / "wheelhouse")
        wish = {"nodes": 3, "release": "mixed", "disks": "cuttable", "bare": True}
        with laboratory("demo", timeline, **wish) as lab:
            deploy_cluster(lab, timeline, folder, wheels)
            scene = deploy_jenkins(lab, timeline)
            build_everywhere(scene, timeline)
            moved = move(scene, timeline)
            loss = lose_power(scene, timeline, moved)
            come_back(scene, timeline, loss)
            task = ways_back.undo_upgrade(scene.stack, timeline, loss.task)
            kept = ways_back.back_up(scene.stack, timeline, task, folder)
        ways_back.restore(kept, timeline)


# -- the two commands ------------------------------------------------------------------------------


def _wheelhouse(folder: Path) -> Path:
    """Pannier's wheel and all that it depends on: the machines reach no package index."""
    command = [str(_ROOT / "tools/wheelhouse"), str(folder)]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return folder


def deploy_cluster(lab: Lab, timeline: Timeline, folder: Path, wheels: Future[Path]) -> None:
    """``pannier deploy``, with Ansible over ssh, and the images that a registry would have."""
    hosts = folder / "hosts.yml"
    hosts.write_text(inventory(lab))
    timeline.chapter("2. pannier deploy -i hosts.yml --wheelhouse wheelhouse")
    options = ["-i", str(hosts), "--wheelhouse", str(wheels.result())]
    _stream([sys.executable, "-m", "pannier.cli", "deploy", *options], timeline)
    nodes = story.output(lab, _LEADER, "docker", "node", "ls", "-q").split()
    expect(len(nodes) == len(lab.nodes), "all are in the Swarm")
    timeline.done("Docker, a Swarm, etcd and Pannier on all three")
    timeline.say("  [dim]putting images into the engines: the machines reach no registry[/dim]")
    lab.build_busybox(IMAGE)
    jenkins_image.load(lab)


def _stream(command: Sequence[str], timeline: Timeline) -> None:
    """Run a command and quote what it prints, as it comes."""
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "110"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        limit = threading.Timer(_ANSIBLE_SECONDS, child.kill)
        limit.start()
        for line in child.stdout:
            if line.strip():
                timeline.quote(line.rstrip())
        limit.cancel()
    expect(child.returncode == 0, f"{' '.join(command[2:4])} ended with {child.returncode}")


@dataclass(slots=True)
class Scene:
    """A Jenkins at work."""

    lab: Lab
    stack: Stack
    nodes: tuple[str, ...]


def deploy_jenkins(lab: Lab, timeline: Timeline) -> Scene:
    """``pannier stack deploy jenkins``, twice: the second time changes nothing."""
    timeline.chapter(
        "3. pannier stack deploy jenkins   (Hudson 1.398: Jenkins, as of January 2011)"
    )
    nodes = tuple(node.name for node in lab.nodes)
    stack = Stack(lab, manager=_LEADER)
    said = stack.deploy(wait="5m")
    for service in said["services"]:
        timeline.quote(f"{service['name']:<10}  {service['running']} of {service['wanted']} run")
    timeline.quote(f"open        {said['address']}")
    made = [f"{each['name']}: in {each['kept']}" for each in said["secrets"] if each["made"]]
    for secret in made:
        timeline.quote(f"secret      {secret}")
    expect(len(made) == 2, "it made the two secrets")
    task = stack.task()
    stack.wait_for_agents(*nodes)
    timeline.done(f"the controller answers, on {task.node}; an agent on every node is online")
    again = stack.deploy(wait="1m")
    expect(not any(each["made"] for each in again["secrets"]), "the secrets are there")
    expect(stack.task() == task, "the same controller runs")
    timeline.done("the same command again changes nothing")
    return Scene(lab, stack, nodes)


# -- at work ---------------------------------------------------------------------------------------


def build_everywhere(scene: Scene, timeline: Timeline) -> None:
    """A job for each node, made by REST: builds an image, runs it, keeps what it said."""
    stack = scene.stack
    timeline.chapter("4. A job for each node: docker build, docker run, archive the result")
    for node in scene.nodes:
        stack.create_job(f"proof-{node}", node=node)
    started = {node: stack.start_build(f"proof-{node}") for node in scene.nodes}
    for node, number in started.items():
        found = stack.finished(f"proof-{node}", number)
        expect(found["result"] == "SUCCESS", stack.get(f"job/proof-{node}/{number}/consoleText"))
        kept = stack.get(f"job/proof-{node}/{number}/artifact/result")
        expect(kept == f"build {number} on {node}\n", f"the artifact is {kept!r}")
        timeline.done(f"{node}: its image said, and the archive has: {kept.strip()!r}")


def move(scene: Scene, timeline: Timeline) -> story.Task:
    """The controller to another node, by one command."""
    lab, stack = scene.lab, scene.stack
    here = stack.task()
    target = next(node for node in scene.nodes if node not in (here.node, _LEADER))
    timeline.chapter(f"5. pannier service move {CONTROLLER} {target}")
    stack.deploy(wait="2m", JENKINS_CONSTRAINT=WITH_A_COPY)
    expect(stack.task() == here, "a constraint that is met moves nothing")
    before, agents = stack.home(here.node), stack.agents()
    command = ["pannier", "service", "move", CONTROLLER, target]
    for line in lab.run(_LEADER, command, timeout=200).stdout.splitlines():
        timeline.quote(line)
    task = stack.task(not_on=here.node)
    expect(task.node == target, f"it runs on {task.node}")
    expect(stack.home(target) == before, "the home differs after the move")
    timeline.done(f"{len(before.builds)} entries of its builds, each with the same SHA-256")
    stack.wait_for_agents(*scene.nodes)
    expect(stack.agents() == agents, "the agents are the same containers")
    number = stack.build(f"proof-{here.node}")
    timeline.done(f"the same agents are back; build {number} on {here.node} runs through")
    return task


# -- the power cut ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """A node lost its power: what was there before, and where the controller is now."""

    victim: str
    before: Home
    task: story.Task


def lose_power(scene: Scene, timeline: Timeline, task: story.Task) -> Loss:
    """Cut the power of the controller's node while a build is under way."""
    lab, stack, victim = scene.lab, scene.stack, task.node
    timeline.chapter(
        f"6. {victim} loses power under a running build; its disks forget what was not flushed"
    )
    others = tuple(node for node in scene.nodes if node != victim)
    stack.build(f"proof-{others[0]}")
    stack.create_job("slow", node=others[0], script=SLOW)
    under_way = stack.start_build("slow")
    before = stack.home(victim, without="slow")
    stack.wait_for_generation()
    timeline.done(
        f"build {under_way} of slow runs on {others[0]}; a copy has what was built before"
    )
    at = time.time()
    expect(lab.crash(victim), "its disks keep what was not flushed")
    after = stack.task(not_on=victim)
    answers = time.time()
    events = [*_events(lab, others, after, at=at), (answers - at, "it answers")]
    for seconds, what in sorted(events):
        timeline.say(f"  {seconds:+6.1f} s  {what}")
    now = stack.home(after.node, without="slow")
    lost = set(before.builds) - set(now.builds)
    expect(not lost, f"{len(lost)} entries of finished builds are lost: {sorted(lost)[:2]}")
    expect(now.jobs == before.jobs, f"the next numbers were {before.jobs}, and are {now.jobs}")
    timeline.done(
        f"[bold]all {len(before.builds)} entries of finished builds are there[/bold], by their "
        "SHA-256; no number is given twice"
    )
    stack.wait_for_agents(*others)
    timeline.say(f"  {time.time() - at:+6.1f} s  the agents that are left are back")
    number = stack.build(f"proof-{others[0]}")
    timeline.done(f"the next build runs through: {number} on {others[0]}")
    return Loss(victim, before, after)


def _events(
    lab: Lab, nodes: Sequence[str], task: story.Task, *, at: float
) -> list[tuple[float, str]]:
    """Seconds since the loss, and what happened, by the machines' own logs."""
    found = [
        (when - at, f"{node} takes {volume} over")
        for when, node, volume in failover.taken_over(lab, nodes, since=at)
    ]
    return [*found, (failover.started_at(lab, task) - at, f"its container runs on {task.node}")]


def come_back(scene: Scene, timeline: Timeline, loss: Loss) -> None:
    """Give the node its power again: it becomes a copy, and builds."""
    lab, stack, victim = scene.lab, scene.stack, loss.victim
    timeline.chapter(f"7. {victim} has power again")
    began = time.monotonic()
    lab.boot(victim, wait=False)
    failover.wait_for_copy(lab, HOME, on=victim, asked=_LEADER)
    timeline.done(f"it is a copy in sync again after {time.monotonic() - began:.1f} s, by itself")
    stack.wait_for_agents(*scene.nodes)
    number = stack.build(f"proof-{victim}")
    expect(stack.task() == loss.task, "the controller stays where it is")
    timeline.done(f"its agent is back, and build {number} on it runs through")
