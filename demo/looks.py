"""Looks at a lab's machines through their sockets and files: no process is started for a question.

Whoever waits looks many times a second, and a program in a machine costs a hundred times as much as
a question to its server. What is asked here is what ``pannier ... -o json`` and ``docker ...`` show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pannier.lab import Lab, LabError
from pannier.lab.engine import MachineEngine
from pannier.lab.machine import Machine

API_SOCKET = "run/pannier/api.sock"
PLUGIN_SOCKET = "run/docker/plugins/pannier.sock"
DOCKER_SOCKET = "run/docker.sock"
_FRAME_HEAD = 8
"""Bytes before each piece of a container's output: the stream, three zeros, the piece's length."""


def root(lab: Lab, node: str) -> Path:
    """A running machine's root directory, as the host sees it.

    Raises:
        LabError: the machine is off or stands still.
    """
    return _root(lab.machine(node))


def _root(machine: Machine) -> Path:
    leader = machine.leader()
    if leader is None or machine.group.frozen():
        raise LabError(f"{machine.node.name} of lab {machine.names.lab} is off or paused")
    return Path(f"/proc/{leader}/root")


def daemon(lab: Lab, node: str) -> MachineEngine:
    """The API of a machine's ``pannierd``, on the socket that is root's."""
    return MachineEngine(root(lab, node) / API_SOCKET, what=f"pannierd on {node}")


def plugin(lab: Lab, node: str) -> MachineEngine:
    """The volume plugin of a machine's ``pannierd``, as its engine sees it."""
    return MachineEngine(root(lab, node) / PLUGIN_SOCKET, what=f"the plugin on {node}")


def engine(lab: Lab, node: str) -> MachineEngine:
    """A running machine's Docker engine."""
    machine = lab.machine(node)
    top = _root(machine)
    if machine.state.bare:  # whoever installed this engine knows nothing of the lab's socket
        return MachineEngine(top / DOCKER_SOCKET, what=f"Docker on {node}")
    return machine.engine


def container(lab: Lab, node: str, name: str) -> dict[str, Any]:
    """What ``docker inspect`` shows of a container."""
    found: dict[str, Any] = engine(lab, node).get(f"/containers/{quote(name)}/json")
    return found


def containers_of(lab: Lab, node: str, service: str) -> list[str]:
    """The ids of a service's running containers on one machine."""
    label = [f"com.docker.swarm.service.name={service}"]
    filters = quote(json.dumps({"label": label, "status": ["running"]}))
    found = engine(lab, node).get(f"/containers/json?filters={filters}")
    return [each["Id"] for each in found]


def is_running(lab: Lab, node: str, name: str) -> bool:
    """Whether a container runs; False also while there is none, or nobody can say."""
    try:
        return bool(container(lab, node, name)["State"]["Running"])
    except LabError:
        return False


def inside(lab: Lab, node: str, name: str, path: str) -> Path:
    """A path of a running container, as the host sees it; its links may lead elsewhere."""
    pid = container(lab, node, name)["State"]["Pid"]
    if not pid:
        raise LabError(f"container {name} on {node} does not run")
    return root(lab, node) / f"proc/{pid}/root" / path.lstrip("/")


def text(path: Path) -> str:
    """What a file contains; empty while there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def last_line(lab: Lab, node: str, name: str) -> str:
    """The last line that a container has printed."""
    output = engine(lab, node).read(f"/containers/{quote(name)}/logs?stdout=1&tail=1")
    said = b""
    while len(output) > _FRAME_HEAD:
        length = int.from_bytes(output[4:_FRAME_HEAD], "big")
        said += output[_FRAME_HEAD : _FRAME_HEAD + length]
        output = output[_FRAME_HEAD + length :]
    return said.decode(errors="replace").strip()


def question(words: tuple[str, ...]) -> str:
    """The path of the API that answers as ``pannier WORDS... -o json`` does."""
    match words:
        case ("status",):
            return "/v1/status"
        case ("doctor",):
            return "/v1/doctor"
        case ("doctor", name):
            return f"/v1/volumes/{quote(name, safe='')}/doctor"
        case ("node" | "volume" | "service" as kind, "ls"):
            return f"/v1/{kind}s"
        case ("node" | "volume" as kind, "show", name):
            return f"/v1/{kind}s/{quote(name, safe='')}"
        case ("volume", "history", name):
            return f"/v1/volumes/{quote(name, safe='')}/history"
        case ("volume", "trash"):
            return "/v1/trash"
        case ("backup", "drills"):
            return "/v1/backup/drills"
    raise ValueError(f"nothing in the API answers as pannier {' '.join(words)}")


def ask(lab: Lab, node: str, *words: str, timeout: float = 30) -> Any:
    """What ``pannier WORDS... -o json`` would print on a machine.

    Raises:
        LabError: the machine is off, or its daemon does not answer or says no.
    """
    return daemon(lab, node).get(question(words), timeout=timeout)
