"""What all commands share: where the daemon is, and in which form the answer is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from pannier.cli import output
from pannier.core.errors import InvalidInput
from pannier.core.node import API_PORT

if TYPE_CHECKING:
    # The HTTP client takes longer to load than all the rest; `pannier --help` does without it.
    from pannier.api.connection import TlsEndpoint
    from pannier.contract.operations import Operations
    from pannier.pki.credentials import Credentials

DEFAULT_SOCKET = "/run/pannier/api.sock"
Value = TypeVar("Value")


@dataclass(slots=True)
class Session:
    """The options that are common to all commands, and what they lead to.

    Attributes:
        format: ``table`` or ``json``.
        socket: the local daemon's.
        host: ``https://ADDRESS[:PORT]`` of a daemon elsewhere, instead of the socket.
        certificates: directory with ``ca.crt``, ``user.crt`` and ``user.key`` (or ``node.crt`` and
            ``node.key``).
    """

    format: str = "table"
    socket: str = DEFAULT_SOCKET
    host: str | None = None
    certificates: str | None = None

    @property
    def json(self) -> bool:
        """Whether the output is for programs."""
        return self.format == "json"

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Operations, None]:
        """A client of the daemon that was chosen. A user's certificate is renewed after its use, if it is time."""
        from pannier.api.client import ApiClient

        if self.host is None:
            from pannier.api.connection import UnixEndpoint

            async with ApiClient(UnixEndpoint(Path(self.socket))) as client:
                yield client
            return
        from pannier.cli.own_certificate import check_not_ended, renew_if_due

        endpoint, credentials = self._remote(self.host)
        check_not_ended(credentials)
        async with ApiClient(endpoint) as client:
            yield client
            if trouble := await renew_if_due(client, credentials):
                output.print_hint(trouble)

    def ask(self, question: Callable[[Operations], Awaitable[Value]]) -> Value:
        """Run ``question`` with a client and return its answer."""

        async def run() -> Value:
            async with self.client() as client:
                return await question(client)

        return asyncio.run(run())

    def show(self, value: Any, *, table: output.Table | None = None, line: str = "") -> None:
        """Print ``value`` as JSON, or else ``table`` or ``line``."""
        if self.json:
            output.print_json(value)
        elif table is not None:
            output.print_table(table)
        else:
            output.print_line(line)

    def show_details(self, value: Any, details: Sequence[tuple[str, str]]) -> None:
        """Print ``value`` as JSON, or else ``details`` as label and text, line by line."""
        if self.json:
            output.print_json(value)
        else:
            output.print_details(details)

    def hint(self, text: str) -> None:
        """Tell people what comes next; on stderr, so that the output stays what was asked for."""
        if not self.json:
            output.print_hint(text)

    def _remote(self, host: str) -> tuple[TlsEndpoint, Credentials]:
        from pannier.api.connection import TlsEndpoint

        address, port = parse_host(host)
        if self.certificates is None:
            raise InvalidInput(
                "--host needs a certificate to show",
                remedy="add --certificates DIRECTORY, with ca.crt, user.crt and user.key in it",
            )
        from pannier.pki.credentials import Credentials

        directory = Path(self.certificates)
        kind = "node" if (directory / "node.crt").exists() else "user"
        if (directory / "user.crt").exists():
            kind = "user"
        credentials = Credentials.load(directory, kind=kind)
        context = credentials.client_context()
        return TlsEndpoint(address=address, port=port, context=context), credentials


def parse_host(host: str) -> tuple[str, int]:
    """Read ``https://ADDRESS[:PORT]``.

    Raises:
        InvalidInput: it has another form.
    """
    try:
        parts = urlsplit(host)
        address, port = parts.hostname, parts.port
    except ValueError:
        address, port = None, None
    else:
        if parts.scheme != "https" or parts.path not in ("", "/") or parts.username:
            address = None
    if not address:
        raise InvalidInput(
            f"--host {host} is not an address", remedy=f"write https://ADDRESS:{API_PORT}"
        )
    return address, API_PORT if port is None else port


def current(context: click.Context | None = None) -> Session:
    """The session of the command that runs."""
    context = context or click.get_current_context()
    return context.find_root().ensure_object(Session)


pass_session = click.make_pass_decorator(Session, ensure=True)
