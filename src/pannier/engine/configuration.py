"""Docker's own configuration file: what it says, and what it is to say. Decisions only, on its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pannier.core.errors import Conflict, InvalidInput, NotFound

RUNTIME = "pannier"
"""What pannier-runtime is called in Docker's configuration."""
PLAIN = "runc"
PROGRAM = Path("/usr/local/bin/pannier-runtime")
_CHAINED = f"{PROGRAM}-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Configuration = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NextRuntime:
    """The runtime that pannier-runtime becomes.

    Attributes:
        name: what Docker calls it.
        path: its program, as Docker is told: a path, or a name that is looked up in PATH. None for runc,
            which pannier-runtime finds by itself.
    """

    name: str = PLAIN
    path: str | None = None

    @property
    def program(self) -> Path:
        """Where the pannier-runtime that goes before it is.

        Each has a file of its own: a running container is ended by the program that made it, and two
        runtimes do not know each other's containers.
        """
        return PROGRAM if self.path is None else Path(_CHAINED + self.name)


def parse(text: str | None, file: Path) -> Configuration:
    """The settings in the file's text; none where there is no file.

    Raises:
        InvalidInput: it is not a JSON object that can be changed.
    """
    try:
        settings = json.loads(text) if text and text.strip() else {}
    except ValueError as error:
        raise InvalidInput(f"{file} is not JSON: {error}", remedy="mend it, then repeat") from error
    if not isinstance(settings, dict):
        raise InvalidInput(f"{file} is not a JSON object", remedy="mend it, then repeat")
    runtimes = settings.get("runtimes")
    if not (runtimes is None or _is_table(runtimes)):
        raise InvalidInput(
            f'"runtimes" in {file} is not an object of objects', remedy="mend it, then repeat"
        )
    return settings


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def render(settings: Configuration) -> str:
    """The text of a file with these settings."""
    return f"{json.dumps(settings, indent=2)}\n"


def default_of(settings: Configuration) -> str:
    """The default runtime of an engine that starts with this file, and no flag that names one."""
    return str(settings.get("default-runtime", PLAIN))


def is_registered(settings: Configuration) -> bool:
    """Whether there is anything of ours in it."""
    return RUNTIME in (settings.get("runtimes") or {}) or default_of(settings) == RUNTIME


def next_runtime(
    settings: Configuration, *, flagged: Mapping[str, str], before: str | None
) -> NextRuntime:
    """Before which runtime pannier-runtime goes.

    Args:
        flagged: path of each runtime that is on dockerd's command line.
        before: the runtime that was asked for; None keeps what is registered, else it is runc.

    Raises:
        Conflict: a person made another runtime the default, and did not say that pannier-runtime is to go
            before it. NotFound: Docker has no such runtime. InvalidInput: it cannot be chained to.
    """
    default = default_of(settings)
    chosen = before if before is not None else _registered_next(settings)
    if default not in (PLAIN, RUNTIME, chosen):
        raise Conflict(
            f"Docker's default runtime is {default}, and pannier-runtime would take its place",
            remedy=f"let it go before {default} (pannier runtime register --before {default}), or go on without "
            "it: --no-runtime",
        )
    if chosen == PLAIN:
        return NextRuntime()
    if chosen == RUNTIME or not _NAME.fullmatch(chosen):
        raise InvalidInput(
            f"pannier-runtime cannot go before {chosen!r}",
            remedy="see docker info for the runtimes",
        )
    return NextRuntime(chosen, _path_of(chosen, settings, flagged))


def _registered_next(settings: Configuration) -> str:
    ours = (settings.get("runtimes") or {}).get(RUNTIME) or {}
    program = str(ours.get("path", ""))
    return program.removeprefix(_CHAINED) if program.startswith(_CHAINED) else PLAIN


def _path_of(name: str, settings: Configuration, flagged: Mapping[str, str]) -> str:
    how = (settings.get("runtimes") or {}).get(name)
    if how is None and name in flagged:
        return flagged[name]
    if how is None:
        raise NotFound(
            f"Docker has no runtime {name}",
            remedy='add it to "runtimes" in its configuration file, then repeat',
        )
    if not how.get("path") or how.get("runtimeArgs"):
        raise InvalidInput(
            f"Docker's runtime {name} is not a program alone (it has arguments, or is a containerd shim), so "
            "pannier-runtime cannot go before it",
            remedy="register a program that starts it as a runtime with a path, and name that one",
        )
    return str(how["path"])


def registered(settings: Configuration, following: NextRuntime, *, by_flag: bool) -> Configuration:
    """The settings with pannier-runtime as the default runtime; all others stay.

    Args:
        by_flag: dockerd's command line makes it the default, so that the file must not.
    """
    runtimes = settings.get("runtimes") or {}
    wanted = {**settings, "runtimes": {**runtimes, RUNTIME: {"path": str(following.program)}}}
    return _with_default(wanted, None if by_flag else RUNTIME)


def unregistered(settings: Configuration, *, default: str | None) -> Configuration:
    """The settings without pannier-runtime; all others stay.

    Args:
        default: what the file named as the default before; None where it named none. It comes back if
            pannier-runtime is still the default, and if the engine still has it.
    """
    others = {n: how for n, how in (settings.get("runtimes") or {}).items() if n != RUNTIME}
    wanted = {**settings, "runtimes": others}
    if not others:
        del wanted["runtimes"]
    if default_of(settings) != RUNTIME:
        return wanted
    return _with_default(wanted, default if default in (PLAIN, *others) else None)


def naming(settings: Configuration, default: str) -> Configuration:
    """The same settings with the default runtime named.

    A running engine takes another default from a file that names one, and not from one that names none.
    """
    return {**settings, "default-runtime": default}


def _with_default(settings: Configuration, default: str | None) -> Configuration:
    if default is not None:
        return {**settings, "default-runtime": default}
    return {name: value for name, value in settings.items() if name != "default-runtime"}
