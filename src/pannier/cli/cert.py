"""`pannier cert`: the certificates of nodes, users, the authorities and etcd."""

from __future__ import annotations

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.session import Session, pass_session
from pannier.contract.views import CertificateView


@click.group(cls=CommandGroup)
def cert() -> None:
    """Certificates: how long they last. Nodes', users' and etcd's are renewed by themselves."""


@cert.command("ls", examples=("pannier cert ls", "pannier cert ls -o json"))
@output_options()
@pass_session
def list_certificates(session: Session) -> None:
    """List all certificates.

    Those of users are the newest that the authority gave out. Each member of etcd is asked for what it shows; one without a
    node shows what no node keeps and renews.
    """
    found = session.ask(lambda client: client.certificates())
    session.show(found, table=_table(found))


@cert.command(
    "renew", examples=("pannier cert renew", "pannier cert renew --address 10.0.0.1 -o json")
)
@click.option(
    "--address",
    help="The node to ask, if this one remembers none that answers: any other node of the cluster.",
)
@output_options()
@pass_session
def renew(session: Session, address: str | None) -> None:
    """Renew this node's certificates now, also after their end: its own, and those for etcd. No restart is needed.

    It happens by itself, four months before the end: this is for a node whose certificate has ended meanwhile.
    """
    found = session.ask(lambda client: client.renew_own_certificate(address=address))
    session.show(found, line=f"the certificate of {found.name} is good until {found.valid_until}")


def _table(found: list[CertificateView]) -> output.Table:
    return output.Table(
        ("NAME", "KIND", "STATE", "FROM", "UNTIL", "NODE", "WHERE", "SERIAL", "SUBJECT"),
        [
            (
                each.name,
                each.kind,
                each.error or each.state,
                each.valid_from or output.NOTHING,
                each.valid_until or output.NOTHING,
                each.node or output.NOTHING,
                each.where or output.NOTHING,
                each.serial or output.NOTHING,
                each.subject or output.NOTHING,
            )
            for each in found
        ],
        empty="no certificates",
    )
