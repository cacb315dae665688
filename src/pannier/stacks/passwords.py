"""Secrets that a stack needs and that nobody has made: made at random, and kept for a person to read.

Docker gives a secret to containers only, so what is made here is also kept in a file for root. The
file comes first: a secret that nobody can read would have to be made again. The secret's label names
the file, so that later runs on other managers know where it is.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import Conflict
from pannier.host.files import write_file
from pannier.stacks.compose import OURS
from pannier.stacks.docker import Docker, DockerRefused

DIRECTORY = Path("/etc/pannier/secrets")
LABEL = "pannier.kept"
_RANDOM_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A secret of the Swarm.

    Attributes:
        made: whether this run made it.
        where: ``HOST:FILE`` that has it too; empty for one that a person made.
    """

    name: str
    made: bool
    where: str

    @property
    def file(self) -> Path | None:
        """The file, where it is on this machine and still there."""
        host, _, path = self.where.partition(":")
        here = host == socket.gethostname() and Path(path).is_file()
        return Path(path) if here else None


def provide(
    docker: Docker, names: Sequence[str], *, passwords: Container[str], directory: Path
) -> list[Kept]:
    """Make those secrets that the Swarm does not have yet; the others stay as they are.

    Args:
        passwords: those that may be any text; others, such as a key, only a person can make.
        directory: where they are kept, normally :data:`DIRECTORY`.

    Raises:
        Conflict: one is missing that is no password; none was made.
        DockerRefused, Unavailable, OutcomeUnknown: see :class:`Docker`.
        OSError: the file cannot be written.
    """
    there = _labels(docker, names)
    made = [name for name in names if name not in there]
    if others := [name for name in made if name not in passwords]:
        raise Conflict(
            f"the Swarm has no secret {', '.join(others)}, which the stack needs",
            remedy=f"docker secret create {others[0]} FILE; or, where any text will do, name it under "
            f"passwords in the compose file's section {OURS}",
        )
    for name in made:
        _make(docker, name, directory)
    there |= _labels(docker, made)
    return [Kept(name=name, made=name in made, where=there.get(name, "")) for name in names]


def _labels(docker: Docker, names: Sequence[str]) -> dict[str, str]:
    """Those of the secrets that exist, by name, with the place where each is kept."""
    found = docker.inspect("secret", names)
    return {one["Spec"]["Name"]: (one["Spec"].get("Labels") or {}).get(LABEL, "") for one in found}


def _make(docker: Docker, name: str, directory: Path) -> None:
    file = directory / name
    where = f"{socket.gethostname()}:{file}"
    value = _kept_value(file)
    try:
        docker.text("secret", "create", "--label", f"{LABEL}={where}", name, "-", input=value)
    except DockerRefused as error:
        if "already exists" not in error.message and "AlreadyExists" not in error.message:
            raise
        if _labels(docker, [name]).get(name) != where:  # somebody else made it just now
            file.unlink(missing_ok=True)


def _kept_value(file: Path) -> str:
    """The file's content, which an interrupted run may have left; else a new password is put into it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.is_file():
        return file.read_text("utf-8")
    with suppress(FileExistsError):  # another run was first: its value counts
        write_file(file, secrets.token_urlsafe(_RANDOM_BYTES).encode(), replace=False)
    return file.read_text("utf-8")
