"""`pannier key`: the key that encrypts volumes and the secrets of backup targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pannier.cli.command import CommandGroup, output_options
from pannier.cli.secret_files import read_secret
from pannier.cli.session import Session, pass_session
from pannier.core.encryption import check_passphrase
from pannier.core.errors import InvalidInput

if TYPE_CHECKING:
    from pannier.contract.views import ClusterKeyView


@click.group(cls=CommandGroup)
def key() -> None:
    """The cluster's key. It encrypts the keys of volumes, and the secrets of backup targets.

    Nodes have it, and the store does not.
    """


@key.command("show", examples=("pannier key show",))
@output_options()
@pass_session
def show(session: Session) -> None:
    """Show which key there is, how it is kept, and whether this node has it."""
    _show(session, session.ask(lambda client: client.cluster_key()))


@key.command(
    "rotate",
    examples=(
        "pannier key rotate",
        "pannier key rotate --passphrase-file passphrase",
        "pannier key rotate --in-files",
    ),
)
@click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Has a passphrase in one line, which locks the keys: no node has them on its disk any more. - is stdin.",
)
@click.option(
    "--in-files",
    is_flag=True,
    help="Each node keeps the keys in a file: needed where they are locked, and shall not be any more.",
)
@output_options()
@pass_session
def rotate(session: Session, passphrase_file: str | None, in_files: bool) -> None:
    """Put another key in the place of the cluster's.

    The keys of all volumes are encrypted with it then. Their files are not written anew.
    """
    from pannier.contract.bodies import RotateOrder

    passphrase = None if passphrase_file is None else read_secret(passphrase_file).rstrip("\r\n")
    if passphrase is not None:
        if in_files:
            raise InvalidInput(
                "--passphrase-file and --in-files: keys are kept in one of two ways",
                remedy="leave one of them out",
            )
        check_passphrase(passphrase)
    order = RotateOrder(passphrase="" if in_files else passphrase)
    _show(session, session.ask(lambda client: client.rotate_key(order)))
    if passphrase:
        session.hint("keep the passphrase: after a power cut of all nodes, volumes wait for it")


@key.command("unlock", examples=("pannier key unlock --passphrase-file passphrase",))
@click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Has the passphrase in one line. - is stdin. Without this it is asked for.",
)
@output_options()
@pass_session
def unlock(session: Session, passphrase_file: str | None) -> None:
    """Give this node the keys that are locked with a passphrase. The others ask it for them."""
    from pannier.contract.bodies import UnlockOrder

    if passphrase_file is None:
        passphrase: str = click.prompt("Passphrase", hide_input=True, err=True)
    else:
        passphrase = read_secret(passphrase_file).rstrip("\r\n")
    order = UnlockOrder(passphrase=passphrase)
    _show(session, session.ask(lambda client: client.unlock_key(order)))


def _show(session: Session, found: ClusterKeyView) -> None:
    lacks = ", ".join(each[:8] for each in found.missing)
    details = [
        ("key", _named(found)),
        (f"node {found.node}", f"lacks {lacks}" if lacks else "has all keys"),
        ("encrypted volumes", str(found.volumes)),
    ]
    if found.earlier:
        details.append(("still sealed with an earlier key", ", ".join(found.earlier)))
    session.show_details(found, details)


def _named(found: ClusterKeyView) -> str:
    if found.id is None:
        return "the store does not answer" if found.locked else "none yet: what needs one makes it"
    kept = "locked with a passphrase" if found.locked else "in a file of each node"
    return f"{found.id[:8]}, {kept}"
