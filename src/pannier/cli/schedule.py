"""`pannier schedule`: policies, the schedules of all volumes that have some labels."""

from __future__ import annotations

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.parameters import read_pairs
from pannier.cli.session import Session, pass_session


@click.group(cls=CommandGroup)
def schedule() -> None:
    """Policies: snapshots by schedule of all volumes that have some labels.

    A single volume has its schedule as an option: -o snapshots=hourly:24,daily:7. Then no policy counts for it.
    """


@schedule.command("ls", examples=("pannier schedule ls",))
@output_options()
@pass_session
def list_policies(session: Session) -> None:
    """List all policies, with the volumes that they are for."""
    found = session.ask(lambda client: client.policies())
    rows = [
        (each.name, each.schedule, _labels(each.labels), output.show_names(each.volumes))
        for each in found
    ]
    table = output.Table(("NAME", "SCHEDULE", "LABELS", "VOLUMES"), rows, empty="no policies")
    session.show(found, table=table)


@schedule.command(
    "set",
    examples=(
        "pannier schedule set nightly daily:7,weekly:5 --label backup=yes",
        "pannier schedule set ci hourly:24 --label team=ci --label stage=prod",
    ),
)
@click.argument("name")
@click.argument("schedule")
@click.option(
    "--label",
    "labels",
    multiple=True,
    required=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A label that a volume has to have; may be repeated.",
)
@output_options()
@pass_session
def set_policy(session: Session, name: str, schedule: str, labels: dict[str, str]) -> None:
    """Add a policy NAME, or change it: SCHEDULE says of how many hours, days, weeks and months a snapshot is kept.

    It is for all volumes that have the labels, also those that are created later. If there are several for a volume, each
    number is the largest of theirs.
    """
    made = session.ask(lambda client: client.set_policy(name, schedule=schedule, labels=labels))
    volumes = output.show_names(made.volumes)
    session.show(made, line=f"schedule: {made.name} {made.schedule} of {volumes}")


@schedule.command("rm", examples=("pannier schedule rm nightly",))
@click.argument("name")
@output_options()
@pass_session
def remove_policy(session: Session, name: str) -> None:
    """Remove a policy. Snapshots that were made by it stay until you remove them, or until the volume has another schedule."""
    gone = session.ask(lambda client: client.remove_policy(name))
    session.show(gone, line=f"removed: {gone.name}")
    session.hint("the snapshots that it made stay")


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in labels.items())
