"""`pannier node`: the machines of the cluster."""

from __future__ import annotations

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.session import Session, pass_session
from pannier.contract.views import JournalView, NodeView


@click.group(cls=CommandGroup)
def node() -> None:
    """The machines of the cluster."""


@node.command("ls", examples=("pannier node ls", "pannier node ls -o json"))
@output_options()
@pass_session
def list_nodes(session: Session) -> None:
    """List all nodes."""
    nodes = session.ask(lambda client: client.nodes())
    session.show(nodes, table=nodes_table(nodes))


@node.command("show", examples=("pannier node show node2", "pannier node show node2 -o json"))
@click.argument("name")
@output_options()
@pass_session
def show_node(session: Session, name: str) -> None:
    """Show one node.

    Its journal keeps what sync calls of other nodes' volumes have written, until the next generation of the volume comes.
    """
    found = session.ask(lambda client: client.node(name))
    session.show_details(
        found,
        [
            ("name", found.name),
            ("state", found.state),
            ("address", found.address),
            ("drivers", output.show_names(found.drivers)),
            ("volumes", str(found.volumes)),
            ("pool", found.disk_error or _pool(found)),
            ("journal", _journal(found.journal)),
            *[("damaged", each) for each in (found.journal.damaged if found.journal else [])],
            ("version", found.version),
            ("joined", found.joined_at),
        ],
    )


@node.command("drain", examples=("pannier node drain node2", "pannier node drain node2 --undo"))
@click.argument("name")
@click.option("--undo", is_flag=True, help="Put the node back into use.")
@output_options()
@pass_session
def drain_node(session: Session, name: str, undo: bool) -> None:
    """Take a node out of use: no new volume is placed there, and idle ones leave by themselves.

    A volume that a container uses stays until that has stopped.
    """
    found = session.ask(lambda client: client.drain_node(name, drained=not undo))
    session.show(found, line=f"{found.name} is {found.state}")
    if not undo and found.volumes:
        session.hint(f"it still holds volumes: {found.volumes}; see 'pannier volume ls'")


@node.command("rm", examples=("pannier node rm node3", "pannier node rm node3 --lost"))
@click.argument("name")
@click.option(
    "--lost",
    is_flag=True,
    help="It is down and will not come back: its volumes go to the trash, and their names are free.",
)
@output_options()
@pass_session
def remove_node(session: Session, name: str, lost: bool) -> None:
    """Remove a node from the cluster; refused while it holds volumes."""
    session.ask(lambda client: client.remove_node(name, lost=lost))
    session.show({"removed": name}, line=f"removed: {name}")


def nodes_table(nodes: list[NodeView]) -> output.Table:
    """All nodes, one per line."""
    return output.Table(
        ("NAME", "STATE", "ADDRESS", "DRIVERS", "VOLUMES", "POOL", "VERSION"),
        [
            (
                each.name,
                each.state,
                each.address,
                output.show_names(each.drivers),
                str(each.volumes),
                _pool(each),
                each.version,
            )
            for each in nodes
        ],
        right=frozenset({"VOLUMES"}),
        empty="no nodes",
    )


def _journal(found: JournalView | None) -> str:
    if found is None:
        return output.NOTHING
    if found.total_bytes is None:
        return f"none: {found.trouble}"
    live = f"{output.show_size(found.live_bytes)} of {output.show_size(found.most_bytes)} needed"
    kept = ", ".join(
        f"{name} {output.show_size(size)}" for name, size in sorted(found.volumes.items())
    )
    return live + (f" ({kept})" if kept else "") + (f"; {found.trouble}" if found.trouble else "")


def _pool(found: NodeView) -> str:
    if found.pool_total_bytes is None or found.pool_free_bytes is None:
        return output.NOTHING
    free = output.show_size(found.pool_free_bytes)
    return f"{free} of {output.show_size(found.pool_total_bytes)} free"
