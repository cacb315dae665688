"""dockerd's command line: the settings on it that matter here, and how systemd puts it together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DAEMON_JSON = Path("/etc/docker/daemon.json")
"""Docker's configuration file where its command line names no other."""

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a dockerd was, or will be, started with.

    Attributes:
        words: the program and its arguments.
        default_runtime: as a flag says; None where none does. Docker does not start if its configuration
            file says it, too.
        runtimes: path of each runtime that a flag adds.
        file: the configuration file.
    """

    words: tuple[str, ...]
    default_runtime: str | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)
    file: Path = DAEMON_JSON


def read_words(words: Sequence[str]) -> CommandLine:
    """Read a command line whose variables are expanded. Of a flag that is there twice, the last one counts."""
    default, file, runtimes = None, DAEMON_JSON, {}
    for flag, value in _flags(words):
        match flag:
            case "--default-runtime":
                default = value
            case "--config-file":
                file = Path(value)
            case "--add-runtime":
                name, _, path = value.partition("=")
                runtimes[name] = path
    return CommandLine(tuple(words), default, runtimes, file)


def _flags(words: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            found.append((flag, value if equals else following))
    return found


def expand(words: str, variables: Mapping[str, str]) -> list[str]:
    """Words of an ExecStart as systemd expands them (systemd.service(5), "Command lines").

    A word that is ``$NAME`` becomes as many words as the value has; ``${NAME}`` stays one.
    """
    found: list[str] = []
    for word in words.split():
        whole = _VARIABLE.fullmatch(word)
        if whole is not None and whole[2]:
            found += _split(variables.get(whole[2], ""))
        else:
            found.append(_VARIABLE.sub(lambda name: variables.get(name[1] or name[2], ""), word))
    return found


def read_assignments(text: str) -> dict[str, str]:
    """The variables that ``systemctl show`` prints for Environment=: quoted words with assignments."""
    return dict(word.partition("=")[::2] for word in _split(text))


def read_variables(text: str) -> dict[str, str]:
    """The assignments of an environment file (systemd.exec(5), "EnvironmentFile="); others are left out."""
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    return " ".join(_split(value)) if value[:1] in ("'", '"') else value


def _split(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:  # an unbalanced quotation mark
        return value.split()
