"""The process that renews a node's lease: see :mod:`pannier.agent.keeper`.

``python -m pannier.lease_keeper STORE CREDENTIALS NODE BOOT_ID SECONDS``, with the connection to the daemon as standard
input. It ends when the daemon does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from pannier.agent.keeper import MESSAGE_BYTES, SILENCE_SECONDS, STARVED_SECONDS, KeeperWish
from pannier.agent.renewal import Held, Renewal
from pannier.core.lease import Terms
from pannier.host.clock import machine_clock
from pannier.host.logs import log_to_journal
from pannier.host.processors import ProcessorDemand
from pannier.pki.credentials import Credentials, store_credentials
from pannier.pki.own import OwnCertificate, follow
from pannier.store.address import open_store
from pannier.store.base import Store

log = structlog.get_logger(__name__)

_STARVED_SHARE = 0.5
"""Who wants a processor for so much of the time is kept from speaking by having none. A process that waits for something
else wants a few hundredths."""
_NICE = -20
"""Where the real-time class is refused, as in a control group of version 1 that has no share of it."""


class OtherEnd:
    """The daemon, at the other end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setblocking(False)
        self._now = machine_clock().now
        self._heard_at = self._now()
        self._demand = ProcessorDemand(os.getppid())
        self.heard = asyncio.Event()

    def listen(self, renewal: Renewal) -> None:
        """Let ``renewal`` do what the daemon wishes."""
        asyncio.get_running_loop().add_reader(self._connection, self._hear, renewal)

    def _hear(self, renewal: Renewal) -> None:
        try:
            message = self._connection.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            os._exit(0)  # the daemon has ended, and a lease is nobody's that is renewed after it
        renewal.withhold(msgspec.msgpack.decode(message, type=KeeperWish).withheld)
        self._heard_at = self._now()
        self.heard.set()

    def works(self) -> bool:
        """Whether it has said so lately, or would have if it had a processor."""
        is_starved = self._demand.share() > _STARVED_SHARE
        return self._now() - self._heard_at < (STARVED_SECONDS if is_starved else SILENCE_SECONDS)

    def tell(self, held: Held) -> None:
        """Say what is held. Where the daemon does not read, it does not hear of it, and goes by what it knew."""
        try:
            self._connection.send(msgspec.msgpack.encode(held))
        except OSError as error:
            log.warning("lease.not-told", error=str(error))


async def keep(
    store: Store,
    connection: socket.socket,
    *,
    own: OwnCertificate,
    node: str,
    boot_id: str,
    terms: Terms,
) -> None:
    """Renew for ever, from the daemon's first word on."""
    daemon = OtherEnd(connection)
    renewal = Renewal(
        store,
        node=node,
        boot_id=boot_id,
        terms=terms,
        clock=machine_clock(),
        wanted=daemon.works,
        publish=daemon.tell,
    )
    daemon.listen(renewal)
    await daemon.heard.wait()
    async with store.session(), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(own))
        tasks.create_task(renewal.run())


def come_first() -> None:
    """Have this process run before all ordinary ones. It has little to do, so it takes nothing from them."""
    try:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except PermissionError:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except OSError as error:
        log.warning("lease.ordinary-priority", error=str(error))


def main() -> NoReturn:
    """See the module."""
    log_to_journal()
    address, credentials, node, boot_id, seconds = sys.argv[1:]
    mine = store_credentials(Credentials.load(Path(credentials)))
    store = open_store(address, tls=mine.client_context())
    come_first()
    connection = socket.socket(fileno=0)
    own, terms = OwnCertificate(mine), Terms(float(seconds))
    asyncio.run(keep(store, connection, own=own, node=node, boot_id=boot_id, terms=terms))
    raise AssertionError("it renews for ever")


if __name__ == "__main__":
    main()
