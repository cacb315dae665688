"""`pannier volume export`: the files of a volume as a tar archive or a directory, on the machine on which it is given."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from pannier.cli import output
from pannier.cli.command import Command, output_options
from pannier.cli.session import Session, pass_session
from pannier.core.errors import AlreadyExists, InvalidInput, NotFound


@dataclass(frozen=True, slots=True)
class Target:
    """Where an export goes: an archive at a path, or to stdout (None), or a directory."""

    path: Path | None
    directory: bool

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read what was typed.

        Raises:
            InvalidInput: it is nothing of the kind.
        """
        if text in ("-", "tar:-"):
            return cls(None, directory=False)
        kind, colon, path = text.partition(":")
        if not colon or not path or kind not in ("tar", "dir"):
            raise InvalidInput(
                f"{text!r} is no place for an export",
                remedy="write tar:FILE, tar:- for stdout, or dir:DIRECTORY",
            )
        return cls(Path(path).absolute(), directory=kind == "dir")

    def check_free(self) -> None:
        """Refuse to write over anything.

        Raises:
            AlreadyExists: something is there. NotFound: the directory to put it in is not.
        """
        if self.path is None:
            if sys.stdout.isatty():
                raise InvalidInput(
                    "an archive on a terminal can be read by nobody",
                    remedy="send it into a file or a program, or write tar:FILE",
                )
            return
        if not self.path.parent.is_dir():
            raise NotFound(
                f"there is no directory {self.path.parent}", remedy=f"mkdir -p {self.path.parent}"
            )
        is_empty = self.directory and self.path.is_dir() and not os.listdir(self.path)
        if os.path.lexists(self.path) and not is_empty:
            raise AlreadyExists(
                f"{self.path} is there already; nothing was exported",
                remedy="name something new" + (", or an empty directory" if self.directory else ""),
            )


@click.command(
    "export",
    cls=Command,
    examples=(
        "pannier volume export data --to tar:/backup/data.tar",
        "pannier volume export data --to tar:- | zstd >data.tar.zst",
        "pannier volume export data --to dir:/srv/data",
    ),
)
@click.argument("name")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="TARGET",
    help="tar:FILE, tar:- for stdout, or dir:DIRECTORY; nothing is written over.",
)
@output_options()
@pass_session
def export_volume(session: Session, name: str, target: str) -> None:
    """Write the files of a volume into an archive or a directory, on this machine.

    It is the state of one moment, and containers go on. The command is given on a node with a copy of the volume. An archive
    has no sockets, and no flags of chattr. To have back all that it has: tar -x --xattrs --xattrs-include='*' --acls --numeric-owner.
    """
    if session.host is not None:
        raise InvalidInput(
            "an export is written on the machine on which it is given",
            remedy="give the command on a node with a copy of the volume, without --host",
        )
    where = Target.parse(target)
    where.check_free()
    from pannier.cli.export_work import export  # takes longer to load than all the rest

    written = asyncio.run(export(session, name, where))
    shown = {"volume": name, "to": target, "bytes": written}
    if where.path is None:
        session.hint(f"exported: {name}, {output.show_size(written)}")
    else:
        session.show(shown, line=f"exported: {name} to {where.path}")
