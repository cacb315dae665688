"""Docker's own command line, which deploys stacks. It is called only from here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from pannier.core.errors import (
    Conflict,
    EngineUnavailable,
    OutcomeUnknown,
    PannierError,
    Unavailable,
)

ANSWER_SECONDS = 30.0
"""Time for an ordinary command: managers answer from memory, but not while they elect a leader."""


_NO_AGREEMENT = ("code = DeadlineExceeded", "code = Unavailable", "does not have a leader")
"""What the Swarm's managers say when they could not agree in time."""


class DockerRefused(Conflict):
    """Docker's command line ended with an error; the message is what it said."""


class NoAgreement(OutcomeUnknown):
    """The Swarm's managers did not agree in time, such as while they elect a leader."""


class Docker:
    """The command ``docker`` of this machine. Calls block; they are made by a person's command.

    All methods may raise DockerRefused (the command ended with an error), Unavailable (there is no such
    command), EngineUnavailable (it cannot reach the engine), OutcomeUnknown (it took too long) and NoAgreement.
    """

    def text(
        self,
        *words: str,
        input: str | None = None,
        variables: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> str:
        """What the command prints.

        Args:
            input: text for its standard input.
            variables: set in its environment, besides ours.
            seconds: after which it is ended.

        Raises:
            OutcomeUnknown: it was ended; what it had asked for may have been done.
        """
        program = shutil.which("docker")
        if program is None:
            raise Unavailable(
                "there is no command docker on this machine",
                remedy="install Docker's own: docker.io and docker-cli (Debian), or docker-ce-cli",
            )
        try:
            done = subprocess.run(
                [program, *words],
                input=input,
                stdin=subprocess.DEVNULL if input is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, **(variables or {})},
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OutcomeUnknown(
                f"docker {' '.join(words[:2])} did not end within {seconds:g} s",
                remedy="see systemctl status docker; then do the same again: it changes nothing twice",
            ) from error
        if done.returncode:
            raise _error(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def json(self, *words: str) -> Any:
        """What the command prints, as the JSON that it is; with ``docker inspect`` a list."""
        return json.loads(self.text(*words))

    def json_lines(self, *words: str) -> list[Any]:
        """The same for a listing: one value for each line."""
        lines = self.text(*words, "--format", "{{json .}}").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def inspect(self, kind: str, names: Sequence[str]) -> list[Any]:
        """``docker KIND inspect``; those that are gone meanwhile are left out."""
        found = []
        for name in names:
            try:
                found += self.json(kind, "inspect", name)
            except DockerRefused as error:
                if "no such" not in error.message.lower():
                    raise
        return found


def _error(said: str) -> PannierError:
    last = " ".join(said.splitlines()[-3:]).removeprefix("Error response from daemon: ")
    if "Cannot connect to the Docker daemon" in last:
        return EngineUnavailable(last, remedy="see systemctl status docker")
    if any(sign in last for sign in _NO_AGREEMENT):
        return NoAgreement(
            f"the Swarm's managers did not agree in time: {last}",
            remedy="see docker node ls; then do the same again: it changes nothing twice",
        )
    return DockerRefused(last or "docker ended with an error and without a word")
