"""`pannier status`, `doctor` and `events`: how it is, what is wrong, and what happens."""

from __future__ import annotations

import asyncio

import click

from pannier.cli import output
from pannier.cli.command import Command, output_options
from pannier.cli.node import nodes_table
from pannier.cli.session import Session, pass_session
from pannier.contract.views import EventView, FindingView, StatusView
from pannier.contract.words import Level

UNHEALTHY = 10
"""Exit status of a doctor that has found a problem: none of the errors' own."""


@click.command(cls=Command, examples=("pannier status", "pannier status -o json"))
@output_options()
@pass_session
def status(session: Session) -> None:
    """Show the cluster at a glance."""
    found = session.ask(lambda client: client.status())
    if session.json:
        session.show(found)
        return
    output.print_details(
        [
            ("cluster", found.cluster),
            ("node", f"{found.node} (version {found.version})"),
            ("store", _store(found)),
            ("volumes", str(found.volumes)),
        ]
    )
    click.echo()
    output.print_table(nodes_table(found.nodes))
    for problem in found.problems:
        output.print_line(f"problem: {problem}")
    for warning in found.warnings:
        output.print_line(f"warning: {warning}")


def _store(found: StatusView) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in found.store.items())
    return f"{facts} ({'ok' if found.store_ok else 'does not answer'})"


@click.command(cls=Command, examples=("pannier doctor", "pannier doctor jenkins_home"))
@click.argument("volume", required=False)
@output_options()
@pass_session
@click.pass_context
def doctor(context: click.Context, session: Session, volume: str | None) -> None:
    """Check everything, or one VOLUME, and say what to do about what is wrong.

    The exit status is 10 when there is a problem.
    """

    async def examine() -> list[FindingView]:
        async with session.client() as client:
            if volume is None:
                return await client.doctor()
            found = await client.explain_volume(volume)
            others = [f for f in await client.doctor() if f.level is not Level.OK]
            return found + [f for f in others if volume in f.subject.split() and f not in found]

    findings = asyncio.run(examine())
    session.show(findings, table=_findings_table(findings))
    if any(each.level is Level.PROBLEM for each in findings):
        context.exit(UNHEALTHY)


def _findings_table(findings: list[FindingView]) -> output.Table:
    return output.Table(
        ("LEVEL", "SUBJECT", "WHAT", "REMEDY"),
        [(each.level, each.subject, each.what, each.remedy) for each in findings],
        empty="nothing was found",
    )


@click.command(cls=Command, examples=("pannier events", "pannier events -f -o json"))
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@output_options()
@pass_session
def events(session: Session, follow: bool) -> None:
    """Show what happened in the cluster, oldest first; as JSON, one event per line."""

    async def watch() -> None:
        async with session.client() as client:
            async for event in client.events(follow=follow):
                if session.json:
                    output.print_json_line(event)
                else:
                    click.echo(output.printable(event_line(event)))

    asyncio.run(watch())


def event_line(event: EventView) -> str:
    """One event: fixed columns, so that lines which come one by one stay aligned."""
    line = (
        f"{event.at:<20}  {event.kind:<18}  {event.subject:<24}  {event.node:<12}  {event.detail}"
    )
    return line.rstrip()
