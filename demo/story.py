"""The steps of the main job. Each does what a user does, and checks what a user would see.

The system tests play the same steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from demo import looks
from pannier.lab import Lab, LabError

HERE = Path(__file__).parent
MOUNTS = "/var/lib/pannier/mounts"
SERVICE = "story_keeper"
HOME = "story_home"
T = TypeVar("T")


class StoryError(Exception):
    """Something was not as it must be."""


def expect(condition: object, what: str) -> None:
    """Stop the story where ``condition`` does not hold."""
    if not condition:
        raise StoryError(what)


def wait_until(what: str, look: Callable[[], T | None], *, seconds: float = 90.0) -> T:
    """Look again and again until there is something to see."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise StoryError(f"{what}: not within {seconds:.0f} s")


@dataclass(frozen=True, slots=True)
class Task:
    """The running task of a service."""

    node: str
    container: str


def output(lab: Lab, node: str, *command: str) -> str:
    """What a command prints on a machine."""
    return str(lab.run(node, command, timeout=150).stdout)


def running_task(lab: Lab, service: str, *, not_on: str | None = None) -> Task | None:
    """The container of a service with one replica, seen by asking each engine."""
    for node in lab.nodes:
        if node.name == not_on or node.state != "running":
            continue
        if found := looks.containers_of(lab, node.name, service):
            return Task(node.name, found[0])
    return None


def manifest(lab: Lab, node: str, volume: str) -> str:
    """One line for each entry of the volume's tree, as that machine shows it."""
    script = (HERE / "manifest.py").read_text()
    command = ["python3", "-", f"{MOUNTS}/{volume}"]
    return str(lab.run(node, command, input=script, timeout=60).stdout)


def without(lines: str, *names: str) -> list[str]:
    """A manifest without what the application goes on writing."""
    endings = tuple(repr(name) for name in (*names, "."))
    return [line for line in lines.splitlines() if not line.endswith(endings)]


def volume(lab: Lab, name: str, *, node: str | None = None) -> dict[str, Any]:
    """What ``pannier volume show`` says."""
    shown: dict[str, Any] = looks.ask(lab, node or lab.nodes[0].name, "volume", "show", name)
    return shown


def deploy_stack(lab: Lab) -> Task:
    """`docker stack deploy`, and the application fills its home."""
    first = lab.nodes[0].name
    lab.run(first, ["sh", "-c", "cat > /root/stack.yml"], input=(HERE / "stack.yml").read_text())
    output(
        lab, first, "docker", "stack", "deploy", "--resolve-image", "never", "-c", "/root/stack.yml",
        "story",
    )  # fmt: skip
    task = wait_until("the service runs", lambda: running_task(lab, SERVICE))
    wait_until("the home is filled", lambda: _is_filled(lab, task))
    return task


def _is_filled(lab: Lab, task: Task) -> bool:
    try:
        log = looks.inside(lab, task.node, task.container, "/home/keeper/log")
    except LabError:
        return False
    return bool(looks.text(log))


def check_seed(lab: Lab, task: Task) -> list[str]:
    """The image's files are there, as Docker's own volumes would have them."""
    readme_path = f"{MOUNTS}/{HOME}/README"  # images keep no user attributes: this one is ours
    output(lab, task.node, "setfattr", "-n", "user.origin", "-v", "demo", readme_path)
    lines = manifest(lab, task.node, HOME).splitlines()
    root = next(line for line in lines if line.endswith(" '.'"))
    expect(root.split()[:2] == ["42750", "1000:1000"], f"the root is {root}")
    readme = next(line for line in lines if line.endswith(" 'README'"))
    expect("100640 1000:1000 20 1234567890000000000" in readme, f"README is {readme}")
    expect("user.origin" in readme, "the extended attribute is shown")
    expect(len(lines) > 3000, f"only {len(lines)} entries")
    return without("\n".join(lines), "log")


def drain(lab: Lab, task: Task) -> tuple[Task, float]:
    """`docker node drain`; returns the new task and the seconds until it ran."""
    manager = next(node.name for node in lab.nodes if node.name != task.node)
    began = time.monotonic()
    set_availability(lab, task.node, "drain", asked=manager)
    moved = wait_until(
        "the service runs elsewhere", lambda: running_task(lab, SERVICE, not_on=task.node)
    )
    seconds = time.monotonic() - began
    wait_until("the application goes on", lambda: _has_started_on(lab, moved))
    set_availability(lab, task.node, "active", asked=manager)
    return moved, seconds


def set_availability(lab: Lab, node: str, availability: str, *, asked: str) -> None:
    """Set what Swarm may do with a node; it refuses while somebody else changes the node."""
    update = ["docker", "node", "update", "--availability", availability, node]
    wait_until(
        f"{node} is {availability}",
        lambda: lab.run(asked, update, check=False).returncode == 0,
        seconds=20,
    )


def _has_started_on(lab: Lab, task: Task) -> bool:
    log = looks.text(looks.root(lab, task.node) / MOUNTS.lstrip("/") / HOME / "log")
    return any("started on" in line for line in log.splitlines()[-5:])


def move_pinned(lab: Lab, task: Task, target: str) -> tuple[Task, dict[str, Any]]:
    """`pannier volume move` for a service that is pinned to its node.

    The bulk is copied while the container runs; then the pin is changed, and the rest follows.
    """
    hosts = {node.name: node.name for node in lab.nodes}
    pin = f"node.hostname=={hosts[task.node]}"
    # As in a stack file that names its node: the service stays where it is.
    output(lab, target, "docker", "service", "update", "--detach", "--constraint-add", pin, SERVICE)
    task = wait_until("the pinned service runs", lambda: _settled(lab, task.node))
    log = "/run/story-move.ndjson"
    move = f"pannier volume move {HOME} {target} --wait 90s -o json >{log} 2>&1"
    # setsid: the move goes on while we change the pin.
    output(
        lab, target, "sh", "-c", f"rm -f {log}; setsid sh -c '{move}' </dev/null >/dev/null 2>&1 &"
    )
    wait_until("the bulk is copied", lambda: _phase(lab, target, log, "waiting"))
    expect(_is_filled(lab, task), "the container still runs while the bulk is copied")
    output(
        lab, target, "docker", "service", "update", "--detach", "--constraint-rm", pin,
        "--constraint-add", f"node.hostname=={hosts[target]}", SERVICE,
    )  # fmt: skip
    done = wait_until("the move is done", lambda: _phase(lab, target, log, "done"))
    moved = wait_until("the service runs there", lambda: _settled(lab, target))
    wait_until("the application goes on", lambda: _has_started_on(lab, moved))
    return moved, done


def _settled(lab: Lab, node: str) -> Task | None:
    task = running_task(lab, SERVICE)
    return task if task and task.node == node and _is_filled(lab, task) else None


def _phase(lab: Lab, node: str, log: str, phase: str) -> dict[str, Any] | None:
    lines = looks.text(looks.root(lab, node) / log.lstrip("/")).splitlines(keepends=True)
    steps = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
    for step in steps:
        expect("message" not in step, f"the move failed: {step}")
    return next((step for step in reversed(steps) if step.get("phase") == phase), None)


def compose_everywhere(lab: Lab) -> list[str]:
    """Up, stop, rm on one node after the other: the way of the first users. Returns who visited.

    Each node uses the compose of its release: version 1 on Debian 12, version 2 on Debian 13.
    """
    visits: list[str] = []
    for node in (view.name for view in lab.nodes):
        install = "mkdir -p /root/notes && cat > /root/notes/compose.yml"
        lab.run(node, ["sh", "-c", install], input=(HERE / "compose.yml").read_text())
        compose = [*_compose(lab, node), "-f", "/root/notes/compose.yml", "-p", "notes"]
        output(lab, node, *compose, "up", "-d")
        known = list(visits)
        visits = wait_until("it wrote its note", partial(_more_visits, lab, node, known))
        expect(visits[: len(known)] == known, f"notes are gone: {known} became {visits}")
        output(lab, node, *compose, "stop")
        output(lab, node, *compose, "rm", "-f")
    return visits


def _compose(lab: Lab, node: str) -> list[str]:
    second = ["docker", "compose"]
    has_second = lab.run(node, [*second, "version"], check=False).returncode == 0
    return second if has_second else ["docker-compose"]


def _more_visits(lab: Lab, node: str, known: list[str]) -> list[str] | None:
    visits = looks.text(looks.root(lab, node) / MOUNTS.lstrip("/") / "notes/visits").split()
    return visits if len(visits) > len(known) else None


def one_node(lab: Lab) -> None:
    """`docker run` twice on a cluster of one node without etcd."""
    node = lab.nodes[0].name
    run = ["docker", "run", "--rm", "--network", "none", "-v", "notes:/data",
           "--volume-driver", "pannier", "localhost:5000/busybox:1"]  # fmt: skip
    output(lab, node, *run, "sh", "-c", "echo kept > /data/note")
    expect(output(lab, node, *run, "cat", "/data/note") == "kept\n", "the note is not there")
