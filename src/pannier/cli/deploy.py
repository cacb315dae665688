"""`pannier deploy`: from fresh hosts to a cluster, with Ansible."""

from __future__ import annotations

from pathlib import Path

import click

from pannier.cli.command import INTERRUPTED, Command, output_options
from pannier.cli.parameters import read_pairs
from pannier.cli.session import Session, pass_session
from pannier.deploy.run import PlaybookRun, run

FAILED = 1
_ANSIBLES_INTERRUPTED = 99


@click.command(
    cls=Command,
    examples=(
        "pannier deploy -i hosts.yml --check",
        "pannier deploy -i hosts.yml",
        "pannier deploy -i hosts.yml --wheelhouse ./wheelhouse",
        "pannier deploy -i hosts.yml --playbook remove_node -e node=node3",
    ),
)
@click.option(
    "-i",
    "--inventory",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The hosts, as Ansible takes them.",
)
@click.option("--check", is_flag=True, help="Change nothing; say what would be changed.")
@click.option("--diff", is_flag=True, help="Show how files and settings change.")
@click.option("--limit", metavar="PATTERN", help="Work on these hosts only.")
@click.option(
    "--playbook",
    type=click.Choice(["site", "remove_node", "uninstall"]),
    default="site",
    show_default=True,
    help="What to do.",
)
@click.option(
    "--wheelhouse",
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Install Pannier from the wheels in it, for hosts without an index.",
)
@click.option(
    "-e",
    "--variable",
    "variables",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A variable that has precedence over the inventory; may be repeated.",
)
@click.option("-K", "--ask-become-pass", is_flag=True, help="Ask for the hosts' sudo password.")
@click.option("-v", "--verbose", count=True, help="Ansible's own output; -vvv shows most.")
@output_options()
@pass_session
@click.pass_context
def deploy(
    context: click.Context,
    session: Session,
    inventory: Path,
    check: bool,
    diff: bool,
    limit: str | None,
    playbook: str,
    wheelhouse: str | None,
    variables: dict[str, str],
    ask_become_pass: bool,
    verbose: int,
) -> None:
    """Make a Docker Swarm with Pannier of fresh Debian hosts, or bring one up to date.

    All hosts are looked at before any is touched. It may be repeated, also after it was cut short:
    what is as it should be stays as it is, and hosts that the inventory gained are added.
    """
    if wheelhouse:
        variables = {"pannier_wheelhouse": wheelhouse, **variables}
    status = run(
        PlaybookRun(
            inventory=inventory,
            playbook=playbook,
            limit=limit,
            check=check,
            diff=diff,
            variables=variables,
            ask_become_pass=ask_become_pass,
            json=session.json,
            verbosity=verbose,
        )
    )
    if status:
        context.exit(INTERRUPTED if status == _ANSIBLES_INTERRUPTED else FAILED)
