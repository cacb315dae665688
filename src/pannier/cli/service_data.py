"""`pannier service clone` and `backup`: all volumes of a Swarm service, as of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.backup_progress import follow_work, result_of
from pannier.cli.command import Command, output_options
from pannier.cli.parameters import read_pairs
from pannier.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pannier.contract.views import BackupView


@click.command(
    "clone",
    cls=Command,
    examples=(
        "pannier service clone shop_db --name-as '{}-test'",
        "pannier service clone shop_db --name-as 'test_{}' -o copies=1 --format json",
    ),
)
@click.argument("service_name", metavar="SERVICE")
@click.option(
    "--name-as",
    required=True,
    metavar="PATTERN",
    help="What the clones are called: {} in it stands for the volume's name.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="An option that shall be other than the volume's, for all clones; may be repeated.",
)
@output_options("--output")
@pass_session
def clone_service(
    session: Session, service_name: str, name_as: str, options: dict[str, str]
) -> None:
    """Make a clone of each volume of a Swarm service, all as of one moment. On a Swarm manager.

    The service is not cloned: give the clones to one of your own. All clones are made, or none. Each is on the node that holds its
    volume, with the volume's options, but for labels, protected, snapshots, backup and drill. The snapshots of that moment go by
    themselves after a day. Here -o gives a volume option; use --format json for JSON.
    """
    made = session.ask(
        lambda client: client.clone_service(service_name, name_as=name_as, options=options)
    )
    rows = [(each.name, each.holder) for each in made]
    session.show(made, table=output.Table(("CLONE", "HOLDER"), rows, empty="no volumes"))
    session.hint(
        f"service {service_name} itself is not cloned; mount a clone in another one: "
        f"--mount type=volume,volume-driver=pannier,source={made[0].name},target=..."
        if made
        else "nothing was cloned"
    )


@click.command(
    "backup",
    cls=Command,
    examples=("pannier service backup shop_db", "pannier service backup shop_db --target offsite"),
)
@click.argument("service_name", metavar="SERVICE")
@click.option("--target", "name", metavar="NAME", help="Where to; without it the only target.")
@output_options()
@pass_session
def backup_service(session: Session, service_name: str, name: str | None) -> None:
    """Back all volumes of a Swarm service up, as of one moment. On a Swarm manager.

    Snapshots are made as by `pannier service snapshot`, and put at the target one after the other. A volume that fails keeps no
    other from being backed up.
    """
    done = follow_work(
        session, service_name, lambda client: client.back_up_service(service_name, target=name)
    )
    made = result_of(done.backups)
    session.show(made, table=_backups_table(made))


def _backups_table(made: list[BackupView]) -> output.Table:
    return output.Table(
        ("VOLUME", "BACKUP", "TARGET", "SNAPSHOT", "READ ON", "NEW"),
        [
            (
                each.volume,
                each.id,
                each.target,
                each.snapshot,
                each.node or output.NOTHING,
                output.show_size(each.added_bytes or 0),
            )
            for each in made
        ],
        empty="no volumes",
    )
