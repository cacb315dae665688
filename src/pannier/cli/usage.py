"""`pannier volume df`: what volumes take of the pools, now and over time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.command import Command, output_options
from pannier.cli.parameters import read_duration_if_any
from pannier.cli.session import Session, pass_session
from pannier.core.errors import InvalidInput

if TYPE_CHECKING:
    from pannier.contract.usage import UsageSampleView, VolumeUsageView
    from pannier.contract.views import RoomUseView

_ROWS = 24
"""So many times are shown, evenly: what fits a screen. JSON has all."""


@click.command(
    "df",
    cls=Command,
    examples=(
        "pannier volume df",
        "pannier volume df jenkins_home --since 30d",
        "pannier volume df jenkins_home -o json",
    ),
)
@click.argument("name", required=False)
@click.option(
    "--since",
    metavar="DURATION",
    callback=read_duration_if_any,
    help="Of NAME, what it took in this time until now, such as 30d; without it in all that is known: three months at most.",
)
@output_options()
@pass_session
def show_use(session: Session, name: str | None, since: float | None) -> None:
    """Show what each volume takes of each node's pool, those in the trash among them; or with NAME what it took over time.

    FILES is the volume itself, or on a copy its newest generation; GENERATIONS is what others keep of it for copies and moves, and goes by
    itself; SNAPSHOTS is what only snapshots keep, and is there until they are removed. What two of them have in common counts once.

    Over time, each node samples once an hour what it has. The samples become fewer with their age. COPIES is what all other nodes
    had together. By how much the files grow is said when they were sampled for six hours.
    """
    if name is not None:
        _show_over_time(session, name, since)
    elif since is not None:
        raise InvalidInput("--since is about one volume", remedy="pannier volume df NAME --since")
    else:
        _show_now(session)


def _show_now(session: Session) -> None:
    with output.waiting("measuring"):
        found = session.ask(lambda client: client.room_use())
    session.show(found, table=_table_of_now([each for each in found if each.volume]))
    for silent in (each for each in found if not each.volume):
        session.hint(f"{silent.node} did not say anything: {silent.error}")


def _table_of_now(found: list[RoomUseView]) -> output.Table:
    return output.Table(
        ("VOLUME", "NODE", "IS", "FILES", "GENERATIONS", "SNAPSHOTS", "WHY"),
        [
            (
                each.volume,
                each.node,
                ("holder" if each.holds else "copy") + (", in the trash" if each.removed else ""),
                output.show_size(each.files_bytes),
                output.show_size(each.generations_bytes),
                output.show_size(each.snapshots_bytes),
                each.error,
            )
            for each in found
        ],
        right=frozenset({"FILES", "GENERATIONS", "SNAPSHOTS"}),
        empty="no volumes",
    )


def _show_over_time(session: Session, name: str, since: float | None) -> None:
    found = session.ask(lambda client: client.volume_usage(name))
    if since is not None:
        found = found.since(time.time() - since)
    session.show(found, table=_table_over_time(found))
    if said := describe_growth(found):
        session.hint(said)
    for silent in found.silent:
        session.hint(f"{silent} did not say anything")


def _table_over_time(found: VolumeUsageView) -> output.Table:
    return output.Table(
        ("TIME", "NODE", "FILES", "GENERATIONS", "SNAPSHOTS", "COPIES"),
        [
            (
                time.strftime("%Y-%m-%d %H:%M", time.localtime(each.at)),
                each.node,
                output.show_size(each.files_bytes),
                output.show_size(each.generations_bytes),
                output.show_size(each.snapshots_bytes),
                output.show_size(found.copies_at(each)),
            )
            for each in evenly(found.held)
        ],
        right=frozenset({"FILES", "GENERATIONS", "SNAPSHOTS", "COPIES"}),
        empty="no samples yet: each node takes one an hour",
    )


def evenly(samples: list[UsageSampleView]) -> list[UsageSampleView]:
    """At most :data:`_ROWS` of the samples, about as far from one another, the last one among them."""
    step = max(1, -(-len(samples) // _ROWS))
    return samples[::-1][::step][::-1]


def describe_growth(found: VolumeUsageView) -> str:
    """What is said of the days to come, in words; empty where nothing is."""
    growth = found.growth_bytes_per_day
    if growth is None:
        return ""
    if abs(growth) < 1 << 20:
        return "its files do not grow"
    if growth < 0:
        return f"its files become smaller by {output.show_size(int(-growth))} a day"
    said = f"its files grow by {output.show_size(int(growth))} a day"
    if found.full_in_days is None:
        return said
    return f"{said}; of its size of {output.show_size(found.size_bytes)}, all is full in about {found.full_in_days:.0f} days"
