"""How far a stack's services have come, by what ``docker`` says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STUCK_UPDATES = ("paused", "rollback_paused")
_UPDATING = ("updating", "rollback_started")
_GOING_ON = ("Pending", "Assigned", "Accepted", "Preparing", "Ready", "Starting", "New")
_DOING = {
    "Pending": "waits for a node",
    "Preparing": "gets image and volumes",
    "Starting": "starts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One service.

    Attributes:
        name: without the stack's name before it.
        running, wanted: how many tasks; one with a health check runs only once it is healthy.
        begun: whether Swarm has decided how many are wanted; at first it is none for a global service.
        doing: in a few words, what those of its tasks do that do not run yet.
        trouble: the last error of a task that did not get to run; empty if there was none.
        updating: Swarm still replaces its tasks.
        stuck: Swarm has given up replacing them.
    """

    name: str
    running: int
    wanted: int
    begun: bool = True
    doing: str = ""
    trouble: str = ""
    updating: bool = False
    stuck: bool = False

    @property
    def ready(self) -> bool:
        """Whether all of it runs."""
        return self.begun and self.running >= self.wanted and not self.updating

    def __str__(self) -> str:
        text = f"{self.name} {self.running}/{self.wanted}"
        if self.ready:
            return text
        said = self.trouble or self.doing or ("is updated" if self.updating else "")
        return f"{text} ({said})" if said else text


def read_progress(
    stack: str,
    *,
    services: Iterable[Mapping[str, Any]],
    tasks: Iterable[Mapping[str, Any]],
    updates: Mapping[str, str],
) -> list[Progress]:
    """One value per service, by name.

    Args:
        services, tasks: the lines of ``docker stack services`` and ``docker stack ps --no-trunc``,
            a task's newest attempt first.
        updates: state of the last update, by the service's whole name.
    """
    lines = list(tasks)
    found = []
    for service in services:
        whole = service["Name"]
        running, _, wanted = str(service["Replicas"]).split()[0].partition("/")
        update = updates.get(whole, "")
        own = [task for task in lines if _service_of(task) == whole]
        ready = running == wanted
        found.append(
            Progress(
                name=whole.removeprefix(f"{stack}_"),
                running=int(running),
                wanted=int(wanted),
                begun=int(wanted) > 0 or service.get("Mode") != "global",
                doing="" if ready else _doing(own),
                trouble="" if ready else _trouble(own),
                updating=update in _UPDATING,
                stuck=update in _STUCK_UPDATES,
            )
        )
    return sorted(found, key=lambda each: each.name)


def _service_of(task: Mapping[str, Any]) -> str:
    """``ci_agent`` of ``ci_agent.1``, or of ``ci_agent.x7k2...``, where a global one's node is named.

    Docker draws a branch before a task's earlier attempts.
    """
    return str(task["Name"]).strip().removeprefix("\\_ ").rpartition(".")[0]


def _doing(tasks: Sequence[Mapping[str, Any]]) -> str:
    """What the tasks do that are about to run: each activity once, with the nodes."""
    where: dict[str, list[str]] = {}
    for task in tasks:
        state = str(task["CurrentState"]).split(" ")[0]
        if task["DesiredState"] in ("Running", "Ready") and state in _GOING_ON:
            where.setdefault(_DOING.get(state, "is about to start"), []).append(task["Node"])
    return "; ".join(
        what + (f" on {', '.join(sorted(set(nodes)))}" if any(nodes) else "")
        for what, nodes in where.items()
    )


def _trouble(tasks: Sequence[Mapping[str, Any]]) -> str:
    for task in tasks:
        if task.get("Error"):
            node = f"{task['Node']}: " if task.get("Node") else ""
            return node + " ".join(str(task["Error"]).strip('"').split())
    return ""
