"""`pannier volume import`: a volume out of files that are there already."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.command import Command, output_options
from pannier.cli.move import Line
from pannier.cli.parameters import read_duration, read_pairs
from pannier.cli.session import Session, pass_session
from pannier.contract.words import ImportPhase

if TYPE_CHECKING:
    from pannier.contract.views import ImportProgress


@click.command(
    "import",
    cls=Command,
    examples=(
        "pannier volume import data --from local:old_data",
        "pannier volume import data --from local:old_data -o copies=2 --switch-service db",
        "pannier volume import data --from dir:/srv/nfs/data -o size=20G --wait 10m",
    ),
)
@click.argument("name")
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SOURCE",
    help="local:VOLUME for a local volume of Docker's, or dir:/PATH, on the node that is asked.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A volume option, as with 'docker volume create'; may be repeated.",
)
@click.option(
    "--switch-service",
    metavar="SERVICE",
    help="Stop this Swarm service for the last pass, and start it with the new volume; back, if it does not come up.",
)
@click.option(
    "--wait",
    "wait_seconds",
    default="100s",
    show_default=True,
    metavar="DURATION",
    callback=read_duration,
    help="How long to wait for those who use the source to stop.",
)
@output_options("--output")
@pass_session
def import_volume(
    session: Session,
    name: str,
    source: str,
    options: dict[str, str],
    switch_service: str | None,
    wait_seconds: float,
) -> None:
    """Make a volume NAME of files that are on this node.

    They are copied while they are in use. Then the command waits until nobody uses them any more, copies what has changed since,
    and compares the checksums of all files. Only then there is a volume. If anything fails, or with Ctrl-C, nothing of it
    is left. The source stays as it is.
    """

    async def run() -> None:
        async with session.client() as client:
            steps = client.import_volume(
                name,
                source=source,
                options=options,
                switch_service=switch_service,
                wait_seconds=wait_seconds,
            )
            await _follow(steps, json=session.json)

    asyncio.run(run())


async def _follow(stream: AsyncIterator[ImportProgress], *, json: bool) -> None:
    with Line(live=not json and sys.stderr.isatty()) as line:
        async for progress in stream:
            if json:
                output.print_json_line(progress)
            elif progress.phase is ImportPhase.DONE:
                line.clear()
                output.print_line(describe_import(progress))
            else:
                line.show(
                    describe_import(progress), key=(progress.phase, tuple(progress.in_use_by))
                )


def describe_import(progress: ImportProgress) -> str:
    """One step, as a sentence."""
    what = f"{progress.source} to {progress.volume}, {output.show_size(progress.used_bytes)}"
    match progress.phase:
        case ImportPhase.COPYING:
            return f"copying {what}"
        case ImportPhase.WAITING:
            users = output.show_names(progress.in_use_by or [f"service {progress.service}"])
            return f"copied {what}; waiting for {users} on {progress.node} to stop"
        case ImportPhase.REST:
            return f"copying the rest of {what}"
        case ImportPhase.COMPARING:
            return f"comparing {what}"
        case ImportPhase.SWITCHING:
            return f"starting service {progress.service} with {progress.volume}"
        case ImportPhase.DONE:
            facts = [f"imported: {progress.volume} on {progress.node}"]
            if progress.pause_seconds is not None:
                facts.append(f"pause {progress.pause_seconds:.1f} s")
            if progress.service is not None:
                facts.append(f"service {progress.service} has it")
            return ", ".join(facts)
        case other:
            return f"{other}: {what}"
