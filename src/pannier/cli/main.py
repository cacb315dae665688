"""The program's entry point and the options that come before the command's name."""

from __future__ import annotations

from typing import NoReturn

import click

from pannier.cli.backup import backup
from pannier.cli.cert import cert
from pannier.cli.command import Lazy, Root, output_options
from pannier.cli.key import key
from pannier.cli.node import node
from pannier.cli.schedule import schedule
from pannier.cli.service import service
from pannier.cli.session import DEFAULT_SOCKET, Session, pass_session
from pannier.cli.setup import ca, init, join, pool, runtime
from pannier.cli.status import doctor, events, status
from pannier.cli.token import token
from pannier.cli.trash import trash
from pannier.cli.volume import volume


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from pannier import __version__

        click.echo(f"pannier, version {__version__}")
        context.exit()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--socket",
    envvar="PANNIER_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    metavar="PATH",
    help="The local daemon's socket.  [env: PANNIER_SOCKET]",
)
@click.option(
    "--host",
    envvar="PANNIER_HOST",
    metavar="URL",
    help="https://ADDRESS:PORT of a daemon elsewhere, instead of the socket.  [env: PANNIER_HOST]",
)
@click.option(
    "--certificates",
    envvar="PANNIER_CERTIFICATES",
    metavar="DIRECTORY",
    help="For --host: has ca.crt, user.crt and user.key.  [env: PANNIER_CERTIFICATES]",
)
@output_options()
@click.option(
    "--version",
    is_flag=True,
    callback=_show_version,
    expose_value=False,
    is_eager=True,
    help="Show the version and exit.",
)
@pass_session
def cli(session: Session, socket: str, host: str | None, certificates: str | None) -> None:
    """Docker volumes that follow their containers between hosts.

    Commands ask the daemon on this machine, as root, or one elsewhere with --host. Each command has
    its own --help with examples, and each takes -o json (volume create: --format json).
    """
    session.socket = socket
    session.host = host
    session.certificates = certificates


for _command in (
    *(
        init,
        join,
        token,
        ca,
        cert,
        pool,
        runtime,
        status,
        doctor,
        events,
        node,
        volume,
        schedule,
        backup,
        key,
        trash,
        service,
    ),
    Lazy(
        "deploy",
        module="pannier.cli.deploy",
        help="Make a Docker Swarm with Pannier of fresh Debian hosts, or bring one up to date.",
    ),
    Lazy(
        "stack",
        module="pannier.cli.stack",
        help="Ready stacks for Docker Swarm: Jenkins, a registry, Postgres.",
    ),
    Lazy(
        "lab",
        module="pannier.lab.cli",
        help="Real machines on this machine, to try Pannier and to break things.",
        in_reference=False,
    ),
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run ``pannier``."""
    cli.main(prog_name="pannier")
    raise AssertionError("click ends the program")


if __name__ == "__main__":
    main()
