"""The process that renews the lease, as the daemon knows it: no load of the node and nothing in the daemon delays it.

Threads would share the interpreter's lock, and whoever has it may have to wait for a processor. So the process shares
nothing: it has a connection to the store of its own, and comes before all ordinary programs
(:mod:`pannier.lease_keeper`). What it says are whole messages, of which the last one counts. They are read by whoever
decides, at that moment, so that no delay of the event loop makes them old.

It must not speak for a daemon that does nothing any more. So it hears from the daemon's event loop all the time, and
renews nothing when it has not heard for :data:`SILENCE_SECONDS`, or for :data:`STARVED_SECONDS` where the daemon
would speak if it had a processor. When the daemon ends, so does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from pannier.agent.renewal import Held, Keeper
from pannier.core.errors import Unavailable
from pannier.core.lease import Terms
from pannier.host.threads import in_own_thread

SILENCE_SECONDS: Final = 3.0
"""A daemon that has said nothing for so long, and did not want a processor meanwhile, stands still. Each second of it makes the
takeover from such a daemon later."""
STARVED_SECONDS: Final = 10.0
"""The same for one that wants a processor: the machine may have none for it. One that computes for ever is not told from that."""
SAY_SECONDS: Final = 0.5
"""Between two times at which the daemon says that it works."""
MESSAGE_BYTES: Final = 1 << 16
"""The longest message. One has an error's text or a lease's id."""
_END_SECONDS: Final = 2.0
"""How long the process may take to end; it has nothing to finish."""


@dataclass(frozen=True, slots=True)
class KeeperWish:
    """What the daemon says to the process.

    Attributes:
        withheld: why nothing is to be renewed; empty where it is.
    """

    withheld: str


def keeper_command(
    store: str, *, credentials: Path, node: str, boot_id: str, terms: Terms
) -> tuple[str, ...]:
    """What starts the process. ``store`` is an address, ``credentials`` the directory with the node's."""
    program = (sys.executable, "-P", "-m", "pannier.lease_keeper")
    return (*program, store, str(credentials), node, boot_id, str(terms.ttl))


class KeeperProcess(Keeper):
    """Keeps the lease in a process of its own. For one thread.

    Args:
        command: starts the process, as :func:`keeper_command` does; its standard input is the connection.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held = Held()
        self._withheld = ""

    def start(self) -> None:
        """Start the process, which takes some tenths of a second to be ready. It does nothing before :meth:`run`."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(self._command, stdin=theirs.fileno())

    def held(self) -> Held:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # nothing more is there, or the process has ended
                while message := self._connection.recv(MESSAGE_BYTES):
                    self._held = msgspec.msgpack.decode(message, type=Held)
        return self._held

    def withhold(self, why: str) -> None:
        self._withheld = why
        self._say()

    async def run(self) -> None:
        """See :class:`Keeper`.

        Raises:
            Unavailable: the process has ended.
        """
        if self._process is None:
            raise RuntimeError("it was not started")
        try:
            while self._process.poll() is None:
                self._say()
                await asyncio.sleep(SAY_SECONDS)
        finally:
            await self.end()
        raise Unavailable(
            f"the process that renews the lease has ended (status {self._process.returncode})",
            remedy="look at what it has written to the log",
        )

    async def end(self) -> None:
        """End the process, and wait until it has ended. May be repeated."""
        self.held()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            await in_own_thread(partial(_wait, self._process))

    def _say(self) -> None:
        # Where it cannot be said now, it is soon said again; a process that has ended is noticed.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(msgspec.msgpack.encode(KeeperWish(self._withheld)))


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
