"""Deploys a stack, and waits until its services run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pannier.core.errors import Conflict, DeadlineExceeded, NotFound
from pannier.stacks.docker import Docker, DockerRefused, NoAgreement
from pannier.stacks.progress import Progress, read_progress

DEPLOY_SECONDS = 300.0
"""Time for ``docker stack deploy``, which may ask registries for the images' digests."""
_TRIES = 5
_PAUSE_SECONDS = 2.0
"""A stack is deployed so many times, with this pause, while the Swarm's managers do not agree: they elect a leader within some
seconds after one was lost, and each try waits some seconds by itself."""
_LOOK_SECONDS = 1.0
_STEADY_LOOKS = 3
"""How many checks in a row must find all running: a task that ends at once also runs for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One ``docker stack deploy``.

    Attributes:
        stack: the name it gets.
        file: the compose file.
        variables: for that file, besides those of the environment.
        resolve: when registries are asked what an image's tag stands for now: always, changed, never.
    """

    stack: str
    file: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    resolve: str = "changed"


def deploy(
    docker: Docker, wish: Deployment, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Have Swarm bring the stack's services in line; what is as it should be stays.

    Raises:
        Conflict: Docker refuses.
        OutcomeUnknown: it did not end in time; a repetition does the rest.
        Unavailable: there is no command docker, or its engine does not answer.
    """
    for _ in range(_TRIES - 1):
        try:
            return _deploy(docker, wish)
        except NoAgreement:
            time.sleep(_PAUSE_SECONDS)
    return _deploy(docker, wish)


def _deploy(docker: Docker, wish: Deployment) -> None:
    try:
        docker.text(
            "stack",
            "deploy",
            "--resolve-image",
            wish.resolve,
            "--compose-file",
            str(wish.file),
            wish.stack,
            variables=wish.variables,
            seconds=DEPLOY_SECONDS,
        )
    except DockerRefused as error:
        remedy = "what was deployed before stays; mend it, then do the same again"
        if "only updates to Labels are allowed" in error.message:
            remedy = (
                "Docker's configs cannot change: raise the variable that counts their versions, such as "
                "-e JENKINS_CONFIG_VERSION=2"
            )
        raise Conflict(
            f"Docker did not deploy {wish.stack}: {error.message}", remedy=remedy
        ) from error


def look(docker: Docker, stack: str) -> list[Progress]:
    """How far the services have come.

    Raises:
        NotFound: no stack of this name.
    """
    try:
        services = docker.json_lines("stack", "services", stack)
        tasks = docker.json_lines("stack", "ps", "--no-trunc", stack)
    except DockerRefused as error:
        if "nothing found in stack" not in error.message.lower():
            raise
        services, tasks = [], []
    if not services:
        raise NotFound(f"there is no stack {stack} any more", remedy="somebody removed it")
    inspected = docker.inspect("service", [each["Name"] for each in services])
    updates = {
        each["Spec"]["Name"]: (each.get("UpdateStatus") or {}).get("State", "")
        for each in inspected
    }
    return read_progress(stack, services=services, tasks=tasks, updates=updates)


def wait(
    docker: Docker,
    stack: str,
    *,
    seconds: float,
    report: Callable[[list[Progress]], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Progress]:
    """Wait until all services run, and go on running.

    Args:
        report: told after each look.

    Raises:
        Conflict: Swarm has given up replacing a service's tasks.
        DeadlineExceeded: not all run within ``seconds``; says which do not, and why.
    """
    deadline = clock() + seconds
    steady = 0
    while True:
        services = look(docker, stack)
        report(services)
        if stuck := [each for each in services if each.stuck]:
            raise Conflict(
                f"Swarm has stopped the update of {_shown(stuck)}",
                remedy=f"mend it and deploy again, or: docker service rollback {stack}_{stuck[0].name}",
            )
        steady = steady + 1 if all(each.ready for each in services) else 0
        if steady >= _STEADY_LOOKS:
            return services
        if clock() > deadline:
            raise _late(stack, services, seconds)
        sleep(_LOOK_SECONDS)


def _late(stack: str, services: list[Progress], seconds: float) -> DeadlineExceeded:
    late = [each for each in services if not each.ready] or services
    return DeadlineExceeded(
        f"not all of stack {stack} runs after {seconds:g} s: {_shown(late)}",
        remedy=f"it goes on starting; docker service ps --no-trunc {stack}_{late[0].name} shows every try",
    )


def _shown(services: list[Progress]) -> str:
    return ", ".join(map(str, services))
