"""What the tests of the transport of records run in: two nodes, and a gate that keeps records in memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from transport_world import MemoryDriver, OpenGate, Proxy, node_credentials, node_record

from pannier.core.generation import Generation
from pannier.core.line import Buffer, Data, LinePlace, LineRecord
from pannier.core.node import Node
from pannier.pki.authority import Authority
from pannier.transport.base import Parcel
from pannier.transport.channel import TransportTiming
from pannier.transport.record_sender import RecordSender
from pannier.transport.record_server import RecordServer
from pannier.transport.server import CheckPeer, TransportServer

GENERATION = Generation(3, 7, "0f3a94c1")
BLOCK = 4096
MEBIBYTE = 1 << 20


def record(number: int, *, volume: str = "v1", size: int = BLOCK) -> LineRecord:
    """A record with random content in ranges of a block each, with gaps between."""
    place = LinePlace(
        volume=volume,
        epoch=3,
        run="0123456789abcdef",
        number=number,
        generation=GENERATION,
        included=0,
    )
    starts = range(0, 2 * size, 2 * BLOCK)
    ranges = tuple(Data(start, os.urandom(BLOCK)) for start in starts)
    return LineRecord(place=place, size=4 * size, ranges=ranges)


def bulk(number: int, *, volume: str = "v1", size: int = 4 * MEBIBYTE) -> LineRecord:
    """A record with one long range."""
    one = record(number, volume=volume)
    return LineRecord(place=one.place, size=size, ranges=(Data(0, os.urandom(size)),))


class Shelf:
    """A gate that keeps records in memory.

    Attributes:
        refusals: what is raised for a volume's records instead.
        open: what is at the gate waits until this is set,
        passing: except the records of these volumes.
        taken: whatever was kept, as volume, number and bytes, in the order in which it was.
        peers: who sent something.
    """

    def __init__(self) -> None:
        self.refusals: dict[str, Exception] = {}
        self.open = threading.Event()
        self.open.set()
        self.passing: set[str] = set()
        self.taken: list[tuple[str, int, bytes]] = []
        self.peers: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self.inside = 0
        """How many records are at the gate now."""

    def take(self, place: LinePlace, encoded: Buffer, *, volume_name: str, peer: str) -> None:
        with self._lock:
            self.inside += 1
        try:
            if place.volume not in self.passing:
                self.open.wait()
            if place.volume in self.refusals:
                raise self.refusals[place.volume]
            with self._lock:
                self.peers.add((peer, volume_name))
                self.taken.append((place.volume, place.number, bytes(encoded)))
        finally:
            with self._lock:
                self.inside -= 1

    def numbers(self, volume: str = "v1") -> list[int]:
        """Which records of a volume were kept, in that order."""
        return [number for its, number, _ in self.taken if its == volume]


class RecordsWorld:
    """Alder sends records to birch, directly or through a proxy."""

    def __init__(
        self,
        directory: Path,
        *,
        timing: TransportTiming | None = None,
        check_peer: CheckPeer | None = None,
    ) -> None:
        self.timing = timing or TransportTiming()
        self.authority = Authority.create(directory / "ca", cluster="c1")
        self.alder = node_credentials(self.authority, directory / "alder", name="alder")
        self.birch = node_credentials(self.authority, directory / "birch", name="birch")
        self.shelf = Shelf()
        self.sender = RecordSender(self.alder, timing=self.timing)
        self.check_peer = check_peer
        self.server = self.new_server()
        self.proxy: Proxy | None = None
        self._port = 0

    def new_server(self, *, port: int = 0, records: bool = True) -> TransportServer:
        """Birch's server; an older version's takes no records."""
        return TransportServer(
            self.birch,
            OpenGate(MemoryDriver()),
            host="127.0.0.1",
            port=port,
            timing=self.timing,
            check_peer=self.check_peer,
            records=RecordServer(self.shelf, timing=self.timing) if records else None,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RecordsWorld]:
        """Birch listens behind a proxy; at the end nothing is left of either node."""
        before = descriptors()
        async with self.server:
            self.proxy = Proxy(self.server.port)
            async with self.proxy.listening() as self._port:
                try:
                    yield self
                finally:
                    self.shelf.open.set()
                    await self.sender.close()
                    await self.server.close()
        assert not list(threads_of_records())
        await until(lambda: descriptors() <= before)

    def birch_at(self, port: int | None = None) -> Node:
        """The receiver's record; behind the proxy if no port is given."""
        return node_record(self.birch, port=port or self._port)

    async def send(self, one: LineRecord, *, port: int | None = None) -> None:
        """Send a record from alder to birch."""
        name = f"name-{one.place.volume}"
        await self.sender.send(Parcel.of(one), to=self.birch_at(port), volume_name=name)

    def begin(self, one: LineRecord, *, port: int | None = None) -> asyncio.Task[None]:
        """Begin to send a record."""
        return asyncio.create_task(self.send(one, port=port))


async def until(what: Callable[[], object]) -> None:
    """Wait until something is so; the test's time limit ends it."""
    while not what():
        await asyncio.sleep(0.005)


async def failures(tasks: list[asyncio.Task[None]]) -> list[type[BaseException] | None]:
    """How tasks ended: None where they succeeded."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [None if result is None else type(result) for result in results]


def threads_of_records() -> Iterator[str]:
    """Names of the threads that connections for records have."""
    for thread in threading.enumerate():
        if thread.name.startswith("records-"):
            yield thread.name


def descriptors() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
