"""A receiver of records in a process of its own, which a test may kill. Usage: CREDENTIALS_DIRECTORY."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from records_world import Shelf
from transport_world import MemoryDriver, OpenGate

from pannier.pki.credentials import Credentials
from pannier.transport.record_server import RecordServer
from pannier.transport.server import TransportServer


async def receive(directory: Path) -> None:
    """Print the port, and take records until the end."""
    server = TransportServer(
        Credentials.load(directory),
        OpenGate(MemoryDriver()),
        host="127.0.0.1",
        port=0,
        records=RecordServer(Shelf()),
    )
    async with server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(receive(Path(sys.argv[1])))
