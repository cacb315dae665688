"""`pannier trash`: removed volumes, and giving them up for ever."""

from __future__ import annotations

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.session import Session, pass_session
from pannier.contract.views import TrashView


@click.group(cls=CommandGroup)
def trash() -> None:
    """Removed volumes, which can be restored for a time."""


@trash.command("ls", examples=("pannier trash ls",))
@output_options()
@pass_session
def list_trash(session: Session) -> None:
    """List the removed volumes that can still be restored, as 'pannier volume trash' does."""
    show_trash(session)


@trash.command("rm", examples=("pannier trash rm jenkins_home",))
@click.argument("name_or_id", metavar="NAME")
@output_options()
@pass_session
def purge_volume(session: Session, name_or_id: str) -> None:
    """Give up a removed volume for ever, and free its room on every node.

    NAME may be an id, where several of one name are there.
    """
    gone = session.ask(lambda client: client.purge_volume(name_or_id))
    session.show(gone, line=f"given up: {gone.name}")


@trash.command("empty", examples=("pannier trash empty",))
@output_options()
@pass_session
def empty_trash(session: Session) -> None:
    """Give up all removed volumes for ever, and free their room on every node."""
    gone = session.ask(lambda client: client.empty_trash())
    session.show(gone, table=_table(gone, empty="the trash was empty"))


def show_trash(session: Session) -> None:
    """Show what is in the trash."""
    found = session.ask(lambda client: client.trash())
    session.show(found, table=_table(found, empty="the trash is empty"))


def _table(found: list[TrashView], *, empty: str) -> output.Table:
    return output.Table(
        ("NAME", "ID", "HOLDER", "REMOVED", "KEPT UNTIL"),
        [(each.name, each.id, each.holder, each.removed_at, each.expires_at) for each in found],
        empty=empty,
    )
