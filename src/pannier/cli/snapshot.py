"""`pannier volume snapshot`: generations of a volume with a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.parameters import read_duration_if_any, read_pairs
from pannier.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pannier.contract.views import SnapshotView


@click.group(cls=CommandGroup)
def snapshot() -> None:
    """Snapshots of a volume: states of it that stay until you remove them.

    A snapshot is on every node that keeps a copy of the volume, goes with it when it moves, and takes what was
    changed since.
    """


def keeping_options(command: Callable[..., object]) -> Callable[..., object]:
    """The options of whatever makes snapshots: how long they stay, and their labels."""
    for option in (
        click.option(
            "--label",
            "labels",
            multiple=True,
            metavar="KEY=VALUE",
            callback=read_pairs,
            help="A label; may be repeated.",
        ),
        click.option(
            "--keep",
            "keep_seconds",
            metavar="DURATION",
            callback=read_duration_if_any,
            help="Remove it by itself after this time, such as 30d; without it, never.",
        ),
    ):
        command = option(command)
    return command


@snapshot.command(
    "create",
    examples=(
        "pannier volume snapshot create jenkins_home before-upgrade",
        "pannier volume snapshot create jenkins_home nightly-0612 --keep 30d --label by=cron",
    ),
)
@click.argument("volume")
@click.argument("name")
@keeping_options
@output_options()
@pass_session
def create_snapshot(
    session: Session, volume: str, name: str, keep_seconds: float | None, labels: dict[str, str]
) -> None:
    """Make a snapshot NAME of a volume, also of one that is in use.

    It is what a disk has after a power cut: programs find what they had synced. The hooks of the containers that use
    the volume run around it: their labels pannier.hook.pre-snapshot and pannier.hook.post-snapshot. The command ends
    when each copy in sync has it, or after a minute.
    """
    made = session.ask(
        lambda client: client.create_snapshot(
            volume, name, keep_seconds=keep_seconds, labels=labels
        )
    )
    session.show(made, line=f"snapshot: {volume} {name} on {output.show_names(made.on or [])}")
    hint_at_rest(session, [made])


def hint_at_rest(session: Session, made: Sequence[SnapshotView]) -> None:
    """Say where new snapshots are missing, and what hooks said."""
    for each in made:
        if missing := [*(each.not_on or []), *(each.silent or [])]:
            session.hint(
                f"{each.volume}: not known to be on {', '.join(missing)} yet; it is sent there by itself"
            )
    for failure in sorted({failure for each in made for failure in each.hook_failures}):
        session.hint(failure)


@snapshot.command("ls", examples=("pannier volume snapshot ls jenkins_home",))
@click.argument("volume")
@output_options()
@pass_session
def list_snapshots(session: Session, volume: str) -> None:
    """List the snapshots of a volume."""
    found = session.ask(lambda client: client.snapshots(volume))
    session.show(found, table=_table(found))


@snapshot.command("show", examples=("pannier volume snapshot show jenkins_home before-upgrade",))
@click.argument("volume")
@click.argument("name")
@output_options()
@pass_session
def show_snapshot(session: Session, volume: str, name: str) -> None:
    """Show a snapshot, with the nodes that have it.

    `pannier volume mount VOLUME@NAME --at DIRECTORY`, on one of them, shows what is in it; `pannier volume cp` copies files
    out of it.
    """
    found = session.ask(lambda client: client.snapshot(volume, name))
    session.show_details(found, _details(found))


@snapshot.command("rm", examples=("pannier volume snapshot rm jenkins_home before-upgrade",))
@click.argument("volume")
@click.argument("name")
@output_options()
@pass_session
def remove_snapshot(session: Session, volume: str, name: str) -> None:
    """Remove a snapshot for ever."""
    gone = session.ask(lambda client: client.remove_snapshot(volume, name))
    session.show(gone, line=f"removed: {volume} {name}")


def _table(found: list[SnapshotView]) -> output.Table:
    return output.Table(
        ("NAME", "GENERATION", "MADE", "KEPT UNTIL", "LABELS"),
        [
            (
                each.name,
                each.generation,
                each.made_at,
                each.keep_until or ("its schedule" if each.by_schedule else output.NOTHING),
                _labels(each) or output.NOTHING,
            )
            for each in found
        ],
        empty="no snapshots",
    )


def _labels(found: SnapshotView) -> str:
    return " ".join(f"{key}={text}" for key, text in found.labels.items())


def _who_removes(found: SnapshotView) -> str:
    return "its schedule removes it" if found.by_schedule else "it is removed"


def _details(found: SnapshotView) -> list[tuple[str, str]]:
    return [
        ("volume", found.volume),
        ("name", found.name),
        ("generation", found.generation),
        ("made", found.made_at),
        ("kept until", found.keep_until or _who_removes(found)),
        ("labels", _labels(found) or output.NOTHING),
        ("on", output.show_names(found.on or [])),
        *([("not on", output.show_names(found.not_on))] if found.not_on else []),
        *([("did not say", output.show_names(found.silent))] if found.silent else []),
    ]
