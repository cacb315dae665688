"""Making pannier-runtime Docker's default runtime, and taking that back.

The order is: look at what counts (the command lines and the file), have it checked, note what was there, write,
reload, look whether the engine has it. What the engine does not take in is undone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pannier.core.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PannierError,
    ProgramFailed,
)
from pannier.core.record import Record
from pannier.engine.command_line import DAEMON_JSON, CommandLine
from pannier.engine.configuration import (
    PLAIN,
    RUNTIME,
    Configuration,
    NextRuntime,
    default_of,
    is_registered,
    naming,
    next_runtime,
    parse,
    registered,
    render,
    unregistered,
)
from pannier.engine.file import read_text, write_text
from pannier.engine.service import EngineService, ServiceState
from pannier.host.files import sync_directory
from pannier.host.records import encode, read_file
from pannier.host.state_files import DurableFile

TAKES_SECONDS = 15.0
"""How long an engine may take to read its settings again. It does that at once, unless it is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredRuntime(Record):
    """What the registration found and wrote, so that it can be taken back exactly.

    Attributes:
        file: Docker's configuration file.
        before: its text before; None where there was none.
        after: its text after.
    """

    known_format: ClassVar[int] = 1

    file: str
    before: str | None
    after: str


class Registration:
    """pannier-runtime in Docker's configuration. Its methods may be repeated, also after a crash.

    Args:
        note: where it is kept what was there before.
        install: puts the program of pannier-runtime there that goes before a runtime: called with where it
            goes and the absolute path of what it becomes, None for runc.
    """

    def __init__(
        self, service: EngineService, *, note: Path, install: Callable[[Path, str | None], None]
    ) -> None:
        self._service = service
        self._note = DurableFile(note)
        self._install = install

    async def register(self, *, before: str | None = None) -> bool:
        """Make pannier-runtime the default runtime. Returns whether the file was changed.

        Args:
            before: the runtime before which it goes; None keeps what is registered, else it is runc.

        Raises:
            Conflict: dockerd's command line, or a person, made another runtime the default.
            NotFound: there is no Docker here, or no such runtime.
            InvalidInput: the file cannot be read as JSON; the runtime cannot be chained to, or does not hold
                sync calls; dockerd would not accept the file.
            ProgramFailed: the engine did not take it in, and it was undone.
            StorageError: the note of what was there cannot be read.
            OSError: a file cannot be written.
        """
        state = await self._service.state()
        if state.next_start is None:
            raise NotFound(
                "this machine has no docker.service",
                remedy="install Docker, then repeat; a node without it: --no-runtime",
            )
        file = _file_of(state)
        _check_flags(state, file)
        text = read_text(file)
        settings = parse(text, file)
        following = next_runtime(settings, flagged=state.next_start.runtimes, before=before)
        self._install(following.program, await self._checked(following))
        by_flag = state.next_start.default_runtime == RUNTIME
        wanted = registered(settings, following, by_flag=by_flag)
        if wanted == settings:
            await self._bring(file, text, wanted_text=text, state=state)
            return False
        wanted_text = render(wanted)
        await self._validate(state.next_start, wanted_text, file)
        noted = self._noted()
        exact, original = _original(noted, text, file)
        if exact or not is_registered(settings):
            self._write_note(RegisteredRuntime(file=str(file), before=original, after=wanted_text))
        try:
            await self._bring(file, text, wanted_text=wanted_text, state=state)
        except ProgramFailed:
            self._write_note(noted)
            raise
        return True

    async def refresh(self) -> None:
        """Renew the program of a registration that is there; without one nothing is changed.

        Raises:
            As :meth:`register`.
        """
        state = await self._service.state()
        file = _file_of(state)
        if state.next_start is not None and is_registered(parse(read_text(file), file)):
            await self.register()

    async def unregister(self) -> bool:
        """Bring back what was there before :meth:`register`. Returns whether the file was changed.

        Where nobody has changed the file since, it has its old text again. Else only what is ours goes.
        Running containers keep the runtime that they were started with.

        Raises:
            Conflict: dockerd's command line makes pannier-runtime the default, so that it must stay.
            InvalidInput: the file cannot be read as JSON; nothing was changed.
            ProgramFailed: the engine did not take it in, and it was undone.
            StorageError: the note of what was there cannot be read.
            OSError: the file cannot be written.
        """
        state = await self._service.state()
        file = _file_of(state)
        if any(line.default_runtime == RUNTIME for line in state.lines()):
            raise Conflict(
                f"dockerd's command line says --default-runtime {RUNTIME}{_where(state)}: without that runtime "
                "it would not start",
                remedy="remove the flag there and restart Docker, then repeat",
            )
        text = read_text(file)
        settings = parse(text, file)
        noted = self._noted()
        wanted_text = _text_without(noted, settings, text, file)
        if wanted_text != text:
            await self._bring(file, text, wanted_text=wanted_text, state=state)
        self._write_note(None)
        return wanted_text != text

    async def _checked(self, following: NextRuntime) -> str | None:
        """The absolute path of the next runtime's program; None for runc, whose version is checked at each Mount.

        Raises:
            NotFound: it is not there. InvalidInput: it does not hold sync calls.
        """
        if following.path is None:
            return None
        program = shutil.which(following.path)
        if program is None:
            raise NotFound(
                f"the program of Docker's runtime {following.name}, {following.path}, is not there",
                remedy="install it, or remove the runtime from Docker's configuration",
            )
        program = os.path.abspath(program)
        if not _can_notify(await self._service.features(program)):
            raise InvalidInput(
                f"the runtime {following.name} ({program}) does not say that it can hand sync calls over "
                "(its `features` have no SCMP_ACT_NOTIFY), so they would not be held",
                remedy="use runc 1.1 or later, a runtime that starts it, or crun 1.8.6 or later",
            )
        return program

    async def _validate(self, line: CommandLine, text: str, file: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as draft:
            draft.write(text)
            draft.flush()
            objection = await self._service.objection(line, Path(draft.name))
        if objection:
            raise InvalidInput(
                f"dockerd would not start with pannier-runtime in {file}: {objection}",
                remedy="mend Docker's configuration, then repeat; nothing was changed",
            )

    async def _bring(
        self, file: Path, text: str | None, *, wanted_text: str | None, state: ServiceState
    ) -> None:
        """Write the file and have a running engine take it in, or leave all as it was.

        Raises:
            ProgramFailed: it was not taken in, and was undone.
        """
        failure = await self._try(file, wanted_text, state)
        if failure is None:
            return
        if wanted_text != text:
            await self._try(file, text, state)
        raise ProgramFailed(
            f"Docker has not taken its settings in: {failure}"
            + ("; they were put back" if wanted_text != text else ""),
            remedy="see journalctl -u docker, then repeat",
        )

    async def _try(self, file: Path, text: str | None, state: ServiceState) -> str | None:
        """Write the file and look at what the engine makes of it. Returns what went wrong."""
        settings = parse(text, file)
        if state.running is None:
            write_text(file, text)
            return None
        flag = state.running.default_runtime
        default = flag or default_of(settings)
        # Named for the moment of the reload: the engine keeps its default where the file names none.
        named = settings if flag else naming(settings, default)
        write_text(file, text if named == settings else render(named))
        try:
            await self._service.reload()
            found = await self._service.takes(default, seconds=TAKES_SECONDS)
        except PannierError as error:
            return error.message
        finally:
            write_text(file, text)
        if found != default:
            return f"its default runtime is {found}" if found else "it does not answer"
        return None

    def _noted(self) -> RegisteredRuntime | None:
        path = self._note.path
        remedy = (
            f"move {path} away; what it says of Docker's configuration is then not brought back"
        )
        return read_file(self._note, RegisteredRuntime, remedy=remedy)

    def _write_note(self, note: RegisteredRuntime | None) -> None:
        path = self._note.path
        if note is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._note.write(encode(note))
        elif path.exists():
            path.unlink()
            sync_directory(path.parent)


def _original(
    noted: RegisteredRuntime | None, text: str | None, file: Path
) -> tuple[bool, str | None]:
    """Whether the text is one that we wrote, and the text that was there before."""
    if noted is None or noted.file != str(file):
        return False, text
    before = parse(noted.before, file)
    cut_short = render(naming(before, default_of(before)))  # by an unregister that did not end
    return (True, noted.before) if text in (noted.after, cut_short) else (False, text)


def _text_without(
    noted: RegisteredRuntime | None, settings: Configuration, text: str | None, file: Path
) -> str | None:
    """What the file is to say without us."""
    exact, original = _original(noted, text, file)
    if exact or not is_registered(settings):
        return original
    known = noted is not None and noted.file == str(file)
    default = parse(noted.before, file).get("default-runtime") if noted and known else None
    return render(unregistered(settings, default=None if default is None else str(default)))


def _file_of(state: ServiceState) -> Path:
    """Docker's configuration file.

    Raises:
        Conflict: the running engine has another one than the next will have.
    """
    files = {line.file for line in state.lines()} or {DAEMON_JSON}
    if len(files) > 1:
        raise Conflict(
            "the running Docker has another configuration file than the next start will have: "
            + ", ".join(sorted(map(str, files))),
            remedy="restart Docker, then repeat",
        )
    return files.pop().resolve()  # a link stays one


def _check_flags(state: ServiceState, file: Path) -> None:
    """Refuse where a flag makes another runtime the default: Docker does not start if the file does so, too.

    Raises:
        Conflict: that is so.
    """
    if state.running is not None and state.next_start is not None:
        now, later = state.running.default_runtime, state.next_start.default_runtime
        if now != later:
            raise Conflict(
                f"the running Docker was started with {_flag(now)}, and its next start has {_flag(later)}",
                remedy="restart Docker, then repeat",
            )
    for line in state.lines():
        default = line.default_runtime
        if default not in (None, RUNTIME):
            kept = "" if default == PLAIN else f" --before {default}"
            added = "" if default not in line.runtimes else " (its --add-runtime may stay)"
            raise Conflict(
                f"dockerd's command line says --default-runtime {default}{_where(state)}; with another default "
                f"in {file}, Docker would not start",
                remedy=f"remove that flag there{added} and restart Docker, then: pannier runtime register{kept}; "
                "or go on without it: --no-runtime",
            )


def _flag(default: str | None) -> str:
    return "no --default-runtime" if default is None else f"--default-runtime {default}"


def _where(state: ServiceState) -> str:
    files = [str(file) for file in state.sources if "--default-runtime" in (read_text(file) or "")]
    return f" (in {', '.join(files)})" if files else ""


def _can_notify(features: str) -> bool:
    try:
        seccomp = json.loads(features)["linux"]["seccomp"]
        return bool(seccomp["enabled"]) and "SCMP_ACT_NOTIFY" in seccomp["actions"]
    except (ValueError, LookupError, TypeError):
        return False
