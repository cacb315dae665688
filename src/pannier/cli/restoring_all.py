"""`pannier backup restore-all`: every volume of a repository comes back, as after the loss of all machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from pannier.cli import output
from pannier.cli.backup_progress import follow_work
from pannier.cli.command import Command, output_options
from pannier.cli.parameters import read_pairs
from pannier.cli.session import Session, pass_session
from pannier.core.errors import AlreadyExists, BackupFailed, PannierError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pannier.contract.views import BackupView


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of a volume. ``backup``: the id of its newest one; ``why``: of one that failed, for people."""

    volume: str
    backup: str
    state: Literal["restored", "there already", "failed"]
    why: str = ""


@click.command(
    "restore-all",
    cls=Command,
    examples=(
        "pannier backup restore-all offsite",
        "pannier backup restore-all offsite -o copies=2 -o backup=offsite:daily:30 --format json",
    ),
)
@click.argument("name", metavar="TARGET")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="An option that shall be other than it was, for all volumes; may be repeated.",
)
@output_options("--output")
@pass_session
def restore_all(session: Session, name: str, options: dict[str, str]) -> None:
    """Bring back the newest backup of each volume at TARGET, under its own name, one after the other.

    A volume that is there already is left as it is. So the same command goes on where it was interrupted. They are made on the node that is
    asked. Here -o gives a volume option; use --format json for JSON.
    """
    chosen = newest_of_each(session.ask(lambda client: client.backups(name)))
    done = []
    for number, each in enumerate(chosen, start=1):
        what = f"{number} of {len(chosen)}: {each.volume}, of {each.made_at}"
        done.append(_bring_back(session, each, options, what))
    session.show(done, table=_table(done))
    if failed := [each.volume for each in done if each.state == "failed"]:
        raise BackupFailed(
            f"{len(failed)} of {len(done)} volumes were not brought back: {', '.join(failed)}",
            remedy="see above why; the same command tries them again",
        )


def newest_of_each(backups: Iterable[BackupView]) -> list[BackupView]:
    """The newest backup of each volume's name, by name."""
    newest = {each.volume: each for each in sorted(backups, key=lambda each: each.made_at)}
    return [newest[volume] for volume in sorted(newest)]


def _bring_back(
    session: Session, chosen: BackupView, options: dict[str, str], what: str
) -> Brought:
    try:
        follow_work(
            session,
            what,
            lambda client: client.restore_backup(
                chosen.target,
                volume=chosen.volume,
                backup=chosen.id,
                new=chosen.volume,
                options=options,
            ),
        )
    except AlreadyExists:
        return Brought(chosen.volume, chosen.id, "there already")
    except PannierError as error:
        return Brought(chosen.volume, chosen.id, "failed", str(error))
    return Brought(chosen.volume, chosen.id, "restored")


def _table(done: list[Brought]) -> output.Table:
    return output.Table(
        ("VOLUME", "BACKUP", "STATE", "WHY"),
        [(each.volume, each.backup, each.state, each.why or output.NOTHING) for each in done],
        empty="no backups",
    )
