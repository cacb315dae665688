"""Hooks in this node's containers: one runs, and which containers still need their second hook.

The first hook of a pair makes a container quiet, and the second ends that. So the ids of containers whose first hook was
begun are kept in a file on tmpfs until the second has ended: a running container does not outlast a boot either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from pannier.core.errors import PannierError
from pannier.core.hooks import Hook
from pannier.core.record import Record
from pannier.engine.base import Container, Engine, Executed
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)

OUTPUT_LINES = 20
"""So much of the end of what a hook prints is told: a person looks for the reason in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunHooks(Record):
    """The file of :class:`HookNotes`: ids of containers whose first hook was begun."""

    containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HookEnd:
    """How a hook ended.

    Attributes:
        failure: why it failed; empty where it did not.
        output: the last lines that it printed.
    """

    failure: str
    output: tuple[str, ...]


async def run_hook(engine: Engine, container: Container, hook: Hook) -> HookEnd:
    """Run a hook to its end, or until its time is over.

    Raises:
        EngineUnavailable, OutcomeUnknown: as :meth:`~pannier.engine.base.Engine.execute`.
    """
    done = await engine.execute(container.id, hook.command, timeout_seconds=hook.timeout_seconds)
    failure = _failure(hook, done)
    log.info("hook.ended", hook=str(hook.moment), container=container.name, failure=failure)
    return HookEnd(failure, tuple(done.output.splitlines()[-OUTPUT_LINES:]))


def _failure(hook: Hook, done: Executed) -> str:
    if done.status is None:
        return f"it was ended after its {hook.timeout_seconds:g} s"
    return f"exit status {done.status}" if done.status else ""


class HookNotes:
    """The containers whose first hook was begun.

    Args:
        file: outlasts the daemon. One that cannot be read counts as empty.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._saved = self._load()
        self._begun = set(self._saved.containers)

    def __contains__(self, container: str) -> bool:
        return container in self._begun

    def all(self) -> tuple[str, ...]:
        """All of them, by id."""
        return tuple(sorted(self._begun))

    def begin(self, container: str) -> None:
        """Its first hook is about to begin."""
        self._begun.add(container)
        self._save()

    def end(self, container: str) -> None:
        """Its second hook has ended, or there is none."""
        self._begun.discard(container)
        self._save()

    def _save(self) -> None:
        try:
            self._file.write(encode(replace(self._saved, containers=self.all())))
        except OSError as error:
            log.warning("hooks.not-noted", path=str(self._file.path), error=str(error))

    def _load(self) -> BegunHooks:
        remedy = "a container that was made quiet may need the second of its hooks by hand"
        try:
            saved = read_file(self._file, BegunHooks, remedy=remedy)
        except PannierError as error:
            log.warning("hooks.not-readable", error=str(error))
            saved = None
        return saved or BegunHooks()
