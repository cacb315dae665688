"""`pannier stack`: ready stacks for Docker Swarm."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.command import Command, CommandGroup, output_options
from pannier.cli.move import Line
from pannier.cli.parameters import read_duration, read_pairs
from pannier.cli.session import Session, pass_session
from pannier.contract.views import NodeView
from pannier.contract.words import NodeState
from pannier.core.errors import StorageError
from pannier.stacks import checks, passwords, shipped, survey
from pannier.stacks.compose import Compose, read
from pannier.stacks.deployment import Deployment, deploy, wait
from pannier.stacks.docker import Docker
from pannier.stacks.passwords import Kept
from pannier.stacks.progress import Progress

if TYPE_CHECKING:
    from pannier.contract.operations import Operations


@dataclass(frozen=True, slots=True, kw_only=True)
class StackView:
    """``pannier stack ls``. ``variables`` have their defaults; None where there is none."""

    name: str
    about: str
    variables: dict[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretView:
    """A secret that the stack uses: ``kept`` is ``HOST:FILE``, ``value`` only if it was asked for."""

    name: str
    made: bool
    kept: str
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackServiceView:
    """A service of the stack and how many of its tasks run."""

    name: str
    running: int
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedView:
    """``pannier stack deploy``. ``services`` are as of the end of the wait."""

    stack: str
    services: list[StackServiceView]
    address: str
    secrets: list[SecretView]
    next: list[str]


@click.group(cls=CommandGroup)
def stack() -> None:
    """Ready stacks for Docker Swarm: Jenkins, a registry, Postgres."""


@stack.command("ls", cls=Command, examples=("pannier stack ls",))
@output_options()
@pass_session
def list_stacks(session: Session) -> None:
    """List the stacks that come with Pannier."""
    found = []
    for name in shipped.names():
        compose = read(shipped.compose_file(name).read_text("utf-8"), environment={}, given={})
        found.append(StackView(name=name, about=compose.about, variables=dict(compose.variables)))
    table = output.Table(("NAME", "ABOUT"), [(each.name, each.about) for each in found])
    session.show(found, table=table)


@stack.command(
    "show",
    cls=Command,
    examples=("pannier stack show jenkins", "pannier stack show jenkins --to ./jenkins"),
)
@click.argument("name")
@click.option(
    "--to",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Write the stack's whole folder there, to be kept and changed.",
)
@output_options()
@pass_session
def show_stack(session: Session, name: str, to: Path | None) -> None:
    """Print a stack's compose file, or write all its files into a new folder.

    Its README explains every part and variable.
    """
    if to is not None:
        try:
            file = shipped.write_to(to, name)
        except OSError as error:
            raise StorageError(f"cannot write {to}: {error.strerror}") from error
        session.show({"stack": name, "file": str(file)}, line=f"written: {file}")
        session.hint(f"deploy it with: pannier stack deploy {name} --file {file}")
        return
    text = shipped.compose_file(name).read_text("utf-8")
    if session.json:
        output.print_json({"stack": name, "compose": text})
    else:
        click.echo(text, nl=False)


@stack.command(
    "deploy",
    cls=Command,
    examples=(
        "pannier stack deploy jenkins",
        "pannier stack deploy jenkins --name ci -e JENKINS_EXECUTORS=4",
        "pannier stack show jenkins --to ./jenkins",
        "pannier stack deploy jenkins --file ./jenkins/compose.yml",
    ),
)
@click.argument("name")
@click.option("--name", "stack_name", metavar="STACK", help="Its name in the Swarm, if not NAME.")
@click.option(
    "-e",
    "--variable",
    "variables",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A variable of the compose file; may be repeated. Variables of the environment count, too.",
)
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A compose file of your own, instead of the one that comes with Pannier.",
)
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="changed",
    show_default=True,
    help="When to ask the registry what an image's tag stands for: 'always' also takes in a newer "
    "image of the same tag.",
)
@click.option(
    "--wait",
    "wait_seconds",
    metavar="DURATION",
    default="15m",
    show_default=True,
    callback=read_duration,
    help="How long to wait until all services run; 0 does not wait.",
)
@click.option(
    "--show-secrets", is_flag=True, help="Print the secrets that are kept on this machine."
)
@output_options()
@pass_session
def deploy_stack(
    session: Session,
    name: str,
    stack_name: str | None,
    variables: dict[str, str],
    file: Path | None,
    resolve_image: str,
    wait_seconds: float,
    show_secrets: bool,
) -> None:
    """Deploy a stack to this machine's Swarm, and wait until it runs.

    As `docker stack deploy --compose-file` does, with the same file and variables. What is in the way is
    told before anything is touched, and secrets that nobody has made are made. It may be repeated, and
    changes what is different now: give it the same variables again.
    """
    docker, wanted = Docker(), stack_name or name
    compose_file = file.resolve() if file else shipped.compose_file(name)
    compose = read(compose_file.read_text("utf-8"), environment=dict(os.environ), given=variables)
    survey.require_manager(docker)
    places = survey.places(docker, _pannier_nodes(session) if compose.fsync else [])
    taken = survey.published(docker)
    if found := checks.problems(compose, stack=wanted, places=places, taken=taken):
        raise checks.refusal(wanted, found)
    kept = _secrets(docker, compose)
    for each in kept:
        if each.made:
            session.hint(f"made the secret {each.name}")
    wish = Deployment(stack=wanted, file=compose_file, variables=variables, resolve=resolve_image)
    deploy(docker, wish)
    services = _wait(session, docker, wanted, wait_seconds) if wait_seconds else []
    view = DeployedView(
        stack=wanted,
        services=[
            StackServiceView(name=each.name, running=each.running, wanted=each.wanted)
            for each in services
        ],
        address=checks.open_at(compose, places),
        secrets=[_secret_view(each, show=show_secrets) for each in kept],
        next=[step.replace("STACK", wanted) for step in compose.next_steps],
    )
    if session.json:
        output.print_json(view)
    else:
        _tell(view)


def _pannier_nodes(session: Session) -> list[NodeView]:
    """Pannier's nodes with what each can do, as far as they answer."""
    import asyncio

    async def ask(client: Operations) -> list[NodeView]:
        known = await client.nodes()
        return await asyncio.gather(
            *(client.node(each.name) for each in known if each.state is not NodeState.DOWN)
        )

    return session.ask(ask)


def _secrets(docker: Docker, compose: Compose) -> list[Kept]:
    try:
        return passwords.provide(
            docker,
            compose.secrets,
            passwords=compose.passwords,
            directory=passwords.DIRECTORY,
        )
    except OSError as error:
        raise StorageError(
            f"cannot keep a secret in {error.filename}: {error.strerror}",
            remedy="make it yourself: openssl rand -base64 24 | docker secret create NAME -",
        ) from error


def _wait(session: Session, docker: Docker, name: str, seconds: float) -> list[Progress]:
    with Line(live=not session.json and sys.stderr.isatty()) as line:

        def report(services: list[Progress]) -> None:
            text = ", ".join(map(str, services))
            if not session.json:
                line.show(text, key=("waiting", text))

        return wait(docker, name, seconds=seconds, report=report)


def _secret_view(kept: Kept, *, show: bool) -> SecretView:
    value = kept.file.read_text("utf-8") if show and kept.file else None
    return SecretView(name=kept.name, made=kept.made, kept=kept.where, value=value)


def _tell(view: DeployedView) -> None:
    running = ", ".join(f"{each.name} {each.running}/{each.wanted}" for each in view.services)
    output.print_line(f"deployed: {view.stack}" + (f" ({running})" if running else ""))
    if view.address:
        output.print_line(f"open      {view.address}")
    for secret in view.secrets:
        if secret.value is not None:
            output.print_line(f"secret    {secret.name}: {secret.value}")
        elif secret.kept:
            output.print_line(f"secret    {secret.name}: in {secret.kept}")
    for step in view.next:
        output.print_line(f"next      {step}")
