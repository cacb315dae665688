"""What Swarm's tasks say of a service that is on its way to another node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pannier.core.swarm import SwarmTask


@dataclass(slots=True)
class ServiceArrival:
    """The old and the new container, as seen up to now; times are of our clock, in seconds.

    Attributes:
        known: tasks from before the service was tied to its target; none if an earlier move did that.
        target: Swarm's id of the node.
        failed: how many new tasks have failed.
        pending: Swarm has not found a place for the new task.
    """

    known: frozenset[str]
    target: str
    ended_at: float | None = None
    running: bool = False
    failed: int = 0
    pending: bool = False
    message: str = ""

    def look(self, tasks: Iterable[SwarmTask], *, now: float) -> None:
        """Take in how the service's tasks are now."""
        all_tasks = list(tasks)
        old = [task for task in all_tasks if self._is_old(task) and not task.ended]
        new = [task for task in all_tasks if not self._is_old(task)]
        wanted = [task for task in new if task.wanted and not task.ended]
        failed = [task for task in new if task.state in ("failed", "rejected")]
        if not old and self.ended_at is None:
            self.ended_at = now
        self.running = any(task.state == "running" for task in wanted)
        self.failed = len(failed)
        self.pending = any(not task.node for task in wanted)
        said = [task.message for task in (*wanted, *failed) if task.message]
        self.message = "; ".join(dict.fromkeys(said))

    def _is_old(self, task: SwarmTask) -> bool:
        return task.id in self.known or task.node not in ("", self.target)
