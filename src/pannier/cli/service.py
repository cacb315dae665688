"""`pannier service`: Swarm services, and where their data is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.move import Line, describe
from pannier.cli.parameters import read_duration
from pannier.cli.service_data import backup_service, clone_service
from pannier.cli.session import Session, pass_session
from pannier.cli.snapshot import hint_at_rest, keeping_options
from pannier.contract.views import ServiceMoveProgress, ServiceView, SnapshotView
from pannier.contract.words import ServicePhase


@click.group(cls=CommandGroup)
def service() -> None:
    """Swarm services with their volumes."""


@service.command("ls", examples=("pannier service ls", "pannier service ls -o json"))
@output_options()
@pass_session
def list_services(session: Session) -> None:
    """List the Swarm's services that have volumes of Pannier. Asked on a Swarm manager."""
    found = session.ask(lambda client: client.services())
    session.show(found, table=_services_table(found))


@service.command(
    "move",
    examples=(
        "pannier service move jenkins_controller node2",
        "pannier service move jenkins_controller node2 --now",
        "pannier service move shop_db node3 --stay --timeout 3h",
    ),
)
@click.argument("name", metavar="SERVICE")
@click.argument("node")
@click.option("--now", is_flag=True, help="Do not run the container's pre-move hook.")
@click.option(
    "--stay",
    is_flag=True,
    help="Tie the service to NODE for good: it does not start elsewhere when NODE is lost.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    default="1h",
    show_default=True,
    metavar="DURATION",
    callback=read_duration,
    help="How long the copying may take, and then the new container's start.",
)
@output_options()
@pass_session
def move_service(
    session: Session, name: str, node: str, now: bool, stay: bool, timeout_seconds: float
) -> None:
    """Move a Swarm service and the data of all its volumes to another NODE.

    On a Swarm manager. First everything is checked, and then the volumes are copied, while the
    service runs; its container's pre-move hook is run; Swarm ends the container and starts it on
    NODE, with the rest of the data; its post-move hook is run there. The hooks are the labels
    pannier.hook.pre-move and pannier.hook.post-move of the container.

    Interrupt it before Swarm is told, and nothing was changed; after that it goes on by itself. The
    same command, given again, goes on where it was. As JSON, each step is one line.
    """

    async def move() -> None:
        async with session.client() as client:
            progress = client.move_service(
                name, node, now=now, stay=stay, timeout_seconds=timeout_seconds
            )
            await _follow(progress, json=session.json)

    asyncio.run(move())


@service.command(
    "snapshot",
    examples=(
        "pannier service snapshot jenkins_controller",
        "pannier service snapshot shop_db before-upgrade --keep 30d --label by=me",
    ),
)
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", required=False)
@keeping_options
@output_options()
@pass_session
def snapshot_service(
    session: Session,
    service_name: str,
    name: str | None,
    keep_seconds: float | None,
    labels: dict[str, str],
) -> None:
    """Make snapshots NAME of all volumes of a Swarm service, at one moment. On a Swarm manager.

    All volumes stand still until each has its snapshot: writes wait for that, ten seconds at most. All snapshots are made, or
    none. The containers' hooks run around it, as with `pannier volume snapshot create`. Without NAME, the snapshots are called
    by the service and the time.
    """
    made = session.ask(
        lambda client: client.create_service_snapshot(
            service_name, snapshot=name, keep_seconds=keep_seconds, labels=labels
        )
    )
    session.show(made, table=_snapshots_table(made))
    hint_at_rest(session, made)


service.add_command(clone_service)
service.add_command(backup_service)


async def _follow(stream: AsyncIterator[ServiceMoveProgress], *, json: bool) -> None:
    """Show what has happened, line by line, and below it how far the volumes' copies are."""
    shown = 0
    with Line(live=not json and sys.stderr.isatty()) as line:
        async for progress in stream:
            if json:
                output.print_json_line(progress)
                continue
            for step in progress.steps[shown:]:
                line.clear()
                output.print_line(f"{step.seconds:7.1f} s  {step.what}")
            shown = len(progress.steps)
            if progress.phase is ServicePhase.DONE:
                line.clear()
                output.print_line(_summary(progress))
            else:
                line.show(_state(progress), key=(progress.phase,))


def _state(progress: ServiceMoveProgress) -> str:
    if progress.phase is ServicePhase.COPYING and progress.volumes:
        return "; ".join(describe(volume) for volume in progress.volumes)
    return f"{progress.phase}: {progress.service} → {progress.target}"


def _summary(progress: ServiceMoveProgress) -> str:
    if not progress.steps:
        return f"{progress.service} runs on {progress.target} already"
    pause = progress.pause_seconds
    told = "" if pause is None else f", pause {pause:.1f} s"
    return (
        f"moved: {progress.service}: {progress.source or output.NOTHING} → {progress.target}{told}"
    )


def _services_table(services: list[ServiceView]) -> output.Table:
    return output.Table(
        ("SERVICE", "RUNS ON", "VOLUMES", "COPIES ON", "TIED BY A MOVE"),
        [
            (
                each.name,
                output.show_names(each.nodes),
                output.show_names(each.volumes),
                output.show_names(each.copies_on),
                each.tied_to or output.NOTHING,
            )
            for each in services
        ],
        empty="no service has a volume of Pannier",
    )


def _snapshots_table(made: list[SnapshotView]) -> output.Table:
    return output.Table(
        ("VOLUME", "SNAPSHOT", "ON"),
        [(each.volume, each.name, output.show_names(each.on or [])) for each in made],
        empty="no snapshots",
    )
