"""`pannier volume cp`: files out of a volume, without touching it."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from pannier.cli import output
from pannier.cli.command import Command, output_options
from pannier.cli.move import Line
from pannier.cli.session import Session, pass_session
from pannier.core.errors import InvalidInput


@click.command(
    "cp",
    cls=Command,
    examples=(
        "pannier volume cp jenkins_home@before-upgrade:jobs/site/config.xml /root/back",
        "pannier volume cp jenkins_home:secrets /root/back",
    ),
)
@click.argument("what", metavar="NAME[@SNAPSHOT]:PATH")
@click.argument("directory")
@output_options()
@pass_session
def take_out(session: Session, what: str, directory: str) -> None:
    """Copy a file or directory out of a volume into a DIRECTORY of this node.

    From a snapshot (or a generation), on any node that has it; without one, from what the volume is now, on its holder. The
    volume is not touched, and containers go on. Owners, permissions, times and extended attributes are kept. PATH is in the
    volume, from its root; a symbolic link is copied as a link, and none is followed. Nothing is overwritten. As JSON, each
    step is one line.
    """
    name, tree, path = _read(what)

    async def copy() -> None:
        async with session.client() as client:
            with Line(live=not session.json and sys.stderr.isatty()) as line:
                async for progress in client.take_out(
                    name, tree=tree, path=path, to=os.path.abspath(directory)
                ):
                    size = output.show_size(progress.copied_bytes)
                    if session.json:
                        output.print_json_line(progress)
                    elif progress.ended:
                        line.clear()
                        output.print_line(f"copied: {progress.to}, {size}")
                    else:
                        line.show(f"copying {what}: {size}", key=("copying",))

    asyncio.run(copy())


def _read(what: str) -> tuple[str, str | None, str]:
    """The volume, the state (None: as it is now), and the path.

    Raises:
        InvalidInput: one of them is missing.
    """
    volume, colon, path = what.partition(":")
    name, at, tree = volume.partition("@")
    if not colon or not path or not name or (at and not tree):
        raise InvalidInput(
            f"{what!r} does not say what to copy",
            remedy="write NAME:PATH, or NAME@SNAPSHOT:PATH; NAME:/ is all of it",
        )
    return name, tree or None, path
