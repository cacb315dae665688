"""Docker's service: with what command line it runs and will start, and how it takes settings in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pannier.core.errors import EngineUnavailable
from pannier.engine.base import Engine
from pannier.engine.command_line import (
    CommandLine,
    expand,
    read_assignments,
    read_variables,
    read_words,
)
from pannier.host.process import Failing, run

_UNIT = "docker.service"
_SYSTEMCTL_SECONDS = 30.0
"""For one call of systemctl: a busy manager may take some seconds."""
_CHECK_SECONDS = 30.0
"""For ``dockerd --validate``, and for a runtime that says its features."""
_LOOK_SECONDS = 0.1
"""Between two looks at whether the engine has taken its settings in."""
_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "ExecStart",
    "Environment",
    "EnvironmentFiles",
    "FragmentPath",
    "DropInPaths",
)
_NO_SUCH_FLAG = "unknown flag"
"""What a dockerd before 23.0 says to ``--validate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """Docker's service now.

    Attributes:
        next_start: the command line of its next start; None where this machine has no such service.
        running: the command line of the engine that runs; None where none does.
        sources: the files that make up the command line.
    """

    next_start: CommandLine | None
    running: CommandLine | None
    sources: tuple[Path, ...] = ()

    def lines(self) -> tuple[CommandLine, ...]:
        """Both command lines, as far as they are there."""
        return tuple(line for line in (self.next_start, self.running) if line is not None)


class EngineService(Protocol):
    """Docker as a service of this machine."""

    async def state(self) -> ServiceState:
        """How it runs and will start.

        Raises:
            ProgramFailed: systemd does not answer.
        """
        ...

    async def objection(self, line: CommandLine, file: Path) -> str:
        """What a dockerd with this command line would say against ``file`` as its configuration; empty where it
        would start, or is too old to say.

        Raises:
            ProgramFailed: it does not answer in time.
        """
        ...

    async def reload(self) -> None:
        """Have the running engine read its configuration file again; it keeps its containers.

        Raises:
            ProgramFailed: systemd refuses.
        """
        ...

    async def takes(self, default: str, *, seconds: float) -> str:
        """Wait until the running engine's default runtime is ``default``. Returns what it is in the end; empty
        where the engine does not answer. Raises nothing."""
        ...

    async def features(self, program: str) -> str:
        """What a runtime says to ``features``; empty where it does not know that.

        Raises:
            ProgramFailed: it is not there, or does not answer in time.
        """
        ...


class DockerService:
    """Docker as systemd runs it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def state(self) -> ServiceState:
        """See :class:`EngineService`. Drop-ins that systemd has not read yet count: the next boot reads them."""
        await self._systemctl("daemon-reload")
        shown = await self._systemctl(
            "show", _UNIT, *(f"--property={name}" for name in _PROPERTIES)
        )
        lists: dict[str, list[str]] = {}
        for line in shown.splitlines():
            name, _, value = line.partition("=")
            lists.setdefault(name, []).append(value)
        found = {name: values[0] for name, values in lists.items()}
        if found.get("LoadState") != "loaded":
            return ServiceState(next_start=None, running=None)
        files = [Path(value.split(" (")[0]) for value in lists.get("EnvironmentFiles", []) if value]
        variables = read_assignments(found.get("Environment", ""))
        for file in files:
            variables |= read_variables(_text(file))
        command = found.get("ExecStart", "").partition("argv[]=")[2].partition(" ; ")[0]
        units = [found.get("FragmentPath", ""), *found.get("DropInPaths", "").split()]
        return ServiceState(
            next_start=read_words(expand(command, variables)),
            running=_running(found) if found.get("ActiveState") == "active" else None,
            sources=(*(Path(unit) for unit in units if unit), *files),
        )

    async def objection(self, line: CommandLine, file: Path) -> str:
        """See :class:`EngineService`."""
        words = [*line.words, "--config-file", str(file), "--validate"]
        done = await run(words, timeout_s=_CHECK_SECONDS, check=False)
        if done.status == 0 or _NO_SUCH_FLAG in done.stderr:
            return ""
        return done.last_words

    async def reload(self) -> None:
        """See :class:`EngineService`."""
        await self._systemctl("try-reload-or-restart", _UNIT)

    async def takes(self, default: str, *, seconds: float) -> str:
        """See :class:`EngineService`."""
        found = ""
        try:
            async with asyncio.timeout(seconds):
                while found != default:
                    try:
                        found = (await self._engine.facts()).default_runtime
                    except EngineUnavailable:
                        found = ""
                    if found != default:
                        await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            pass
        return found

    async def features(self, program: str) -> str:
        """See :class:`EngineService`."""
        done = await run([program, "features"], timeout_s=_CHECK_SECONDS, check=False)
        return done.stdout if done.status == 0 else ""

    async def _systemctl(self, *words: str) -> str:
        failing = Failing(
            remedy="see what `journalctl -b` says of it, then do the same again",
            slow="see `systemctl list-jobs`, then do the same again",
            install="a node needs systemd",
        )
        done = await run(["systemctl", *words], timeout_s=_SYSTEMCTL_SECONDS, failing=failing)
        return done.stdout


def _running(shown: dict[str, str]) -> CommandLine | None:
    text = _text(Path("/proc") / shown.get("MainPID", "0") / "cmdline")
    return read_words(text.rstrip("\0").split("\0")) if text else None


def _text(file: Path) -> str:
    """A file's text; empty where it cannot be read, as systemd leaves out an optional one."""
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return ""
