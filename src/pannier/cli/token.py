"""`pannier token`: letting machines in."""

from __future__ import annotations

import click

from pannier.cli.command import CommandGroup, output_options
from pannier.cli.parameters import read_duration
from pannier.cli.session import Session, pass_session


@click.group(cls=CommandGroup)
def token() -> None:
    """Tokens with which machines join the cluster."""


@token.command(
    "create",
    examples=(
        "pannier token create",
        "pannier token create --ttl 10m --uses 3",
        "pannier token create -o json",
    ),
)
@click.option(
    "--ttl",
    "ttl_seconds",
    default="1h",
    show_default=True,
    metavar="DURATION",
    callback=read_duration,
    help="How long the token is good.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many machines may join with it.",
)
@output_options()
@pass_session
def create_token(session: Session, ttl_seconds: float, uses: int) -> None:
    """Make a join token. It is shown once; whoever has it can join the cluster."""
    made = session.ask(lambda client: client.create_token(ttl_seconds=ttl_seconds, uses=uses))
    session.show(made, line=made.token)
    session.hint(
        f"good until {made.expires_at}, uses: {made.uses}; on the new machine, as root:\n"
        "pannier join ADDRESS --token TOKEN, with the address of any node"
    )
