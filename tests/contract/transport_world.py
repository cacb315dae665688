"""What the transport's tests run in: two nodes with certificates, a driver in memory, a bad network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pannier.core.errors import Corrupt, PannierError, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.node import Node
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.storage.base import Capacity, Driver, LocalCopy, RootAttributes
from pannier.transport.base import Offer, Sent
from pannier.transport.channel import TransportTiming
from pannier.transport.client import TransportClient
from pannier.transport.server import TransportServer

PATIENCE_SECONDS = 60.0
"""A bound for tests that hang; nothing is concluded from it."""
HEAD = b"pannier-test-stream\n"


def node_credentials(authority: Authority, directory: Path, *, name: str) -> Credentials:
    """A node's credentials, in a directory of their own."""
    request = new_request(name)
    issued = authority.issue_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
    return Credentials.save(
        directory, ca=authority.certificate_pem, certificate=issued, key=request.key_pem
    )


def node_record(credentials: Credentials, *, port: int) -> Node:
    """The store's record of the node that listens on loopback."""
    return Node(
        name=credentials.identity.name,
        address="127.0.0.1",
        drivers=("memory",),
        version="0",
        joined_at=0.0,
        certificate=credentials.fingerprints.certificate,
        key=credentials.fingerprints.key,
        transport_port=port,
    )


def offer_of(volume: str, generation: str) -> Offer:
    """An offer of the epoch that the generation is of."""
    parsed = Generation.parse(generation)
    return Offer(
        volume_id=volume,
        volume_name=f"name-{volume}",
        driver="memory",
        epoch=parsed.epoch,
        generation=parsed,
    )


@dataclass
class Trouble:
    """What shall go wrong in a driver, and what a test may wait for."""

    send_error: PannierError | None = None
    """Raised by the sending driver's exit, after half of the stream."""
    receive_error: PannierError | None = None
    """The receiving driver closes its pipe at once and raises this from its exit."""
    send_hangs: bool = False
    """The sending driver gives nothing."""
    take: threading.Event | None = None
    """The receiving driver reads nothing before this is set."""
    verify: asyncio.Event | None = None
    """The receiving driver's exit waits for this."""
    send_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    receiving: asyncio.Event = field(default_factory=asyncio.Event)
    discarded: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryDriver(Driver):
    """Keeps generations as bytes. Its streams name their base, and are checked against it."""

    name = "memory"
    pool = Path("/nowhere")
    generations_in_use = True

    def __init__(self) -> None:
        self.copies: dict[str, dict[Generation, bytes]] = {}
        self.trouble = Trouble()
        self.sends = 0
        self.bases: list[Generation | None] = []

    def add(self, volume: str, generation: str, content: bytes) -> None:
        """Have a generation."""
        self.copies.setdefault(volume, {})[Generation.parse(generation)] = content

    def content(self, volume: str, generation: str) -> bytes | None:
        """A generation's bytes; None where it is not here."""
        return self.copies.get(volume, {}).get(Generation.parse(generation))

    async def quarantined(self) -> Mapping[str, StorageError]:
        return {}

    async def inspect(self, volume: str) -> LocalCopy:
        return LocalCopy(generations=tuple(sorted(self.copies.get(volume, {}))))

    @asynccontextmanager
    async def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        self.sends += 1
        stream = HEAD + f"{base}\n".encode() + self.copies[volume][generation]
        if self.trouble.send_error:
            stream = stream[: len(stream) // 2]
        read_end, write_end = os.pipe()
        hold = threading.Event()
        writer = threading.Thread(
            target=_write_all, args=(write_end, stream, hold, self.trouble.send_hangs)
        )
        writer.start()
        try:
            yield read_end
        except asyncio.CancelledError:
            self.trouble.send_cancelled.set()
            raise
        finally:
            hold.set()
            os.close(read_end)
            await asyncio.to_thread(writer.join)
        if self.trouble.send_error:
            raise self.trouble.send_error

    @asynccontextmanager
    async def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        read_end, write_end = os.pipe()
        taken = bytearray()
        reader = threading.Thread(target=_read_all, args=(read_end, taken, self.trouble))
        reader.start()
        self.trouble.receiving.set()
        self.bases.append(base)
        try:
            try:
                yield write_end
            finally:
                os.close(write_end)
                if self.trouble.take:
                    self.trouble.take.set()
                await asyncio.to_thread(reader.join)
            if self.trouble.verify:
                await self.trouble.verify.wait()
            if self.trouble.receive_error:
                raise self.trouble.receive_error
            head = HEAD + f"{base}\n".encode()
            if not taken.startswith(head):
                raise Corrupt("the stream does not fit its base")
        except BaseException:
            self.trouble.discarded.set()
            raise
        self.copies.setdefault(volume, {})[generation] = bytes(taken[len(head) :])

    async def open(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def volumes(self) -> tuple[str, ...]:
        raise NotImplementedError

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        raise NotImplementedError

    def data_path(self, volume: str, epoch: int) -> Path:
        raise NotImplementedError

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        raise NotImplementedError

    async def attached(self) -> frozenset[str]:
        return frozenset()

    async def detach(self, volume: str, *, epoch: int) -> None:
        raise NotImplementedError

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        raise NotImplementedError

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        raise NotImplementedError

    async def unseal(self, volume: str, *, epoch: int) -> None:
        raise NotImplementedError

    async def promote(
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        raise NotImplementedError

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        raise NotImplementedError

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        raise NotImplementedError

    async def delete(self, volume: str) -> None:
        raise NotImplementedError

    async def used_bytes(self, volume: str) -> int:
        raise NotImplementedError

    async def capacity(self) -> Capacity:
        raise NotImplementedError

    async def check_disk(self, *, by_writing: bool = False) -> None:
        raise NotImplementedError

    def writes_done(self) -> int | None:
        return None


def _write_all(pipe: int, stream: bytes, hold: threading.Event, hangs: bool) -> None:
    try:
        if hangs:
            hold.wait()
            return
        view = memoryview(stream)
        while view:
            view = view[os.write(pipe, view) :]
    except BrokenPipeError:
        return
    finally:
        os.close(pipe)


def _read_all(pipe: int, taken: bytearray, trouble: Trouble) -> None:
    try:
        if trouble.receive_error:
            return
        if trouble.take:
            trouble.take.wait()
        while piece := os.read(pipe, 1 << 20):
            taken += piece
    finally:
        os.close(pipe)


class OpenGate:
    """Admits everything, or refuses with a given error; remembers who asked.

    Attributes:
        refusal: raised for each offer.
        unconfirmed: raised instead of each confirmation.
        confirmed: who asked for a confirmation, and for which offer.
    """

    def __init__(self, driver: Driver, *, refusal: PannierError | None = None) -> None:
        self.driver = driver
        self.refusal = refusal
        self.unconfirmed: PannierError | None = None
        self.asked: list[tuple[str, Offer]] = []
        self.confirmed: list[tuple[str, Offer]] = []

    async def admit(self, offer: Offer, *, peer: str) -> Driver:
        self.asked.append((peer, offer))
        if self.refusal:
            raise self.refusal
        return self.driver

    async def confirm(self, offer: Offer, *, peer: str) -> None:
        self.confirmed.append((peer, offer))
        if self.unconfirmed:
            raise self.unconfirmed


class Proxy:
    """A TCP connection's way, which can be cut or clogged in the middle of a stream."""

    def __init__(self, target_port: int, *, cut_after_bytes: int | None = None) -> None:
        self._target_port = target_port
        self._cut_after_bytes = cut_after_bytes
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.carried_bytes = 0
        self.connections = 0
        """Connections that were opened through it, ever."""
        self.busy = asyncio.Event()
        """Set once some of a stream has passed."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Listen; gives the port."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            self.cut()

    def clog(self) -> None:
        """Carry nothing any more, in either direction, and tell nobody."""
        self._open.clear()

    def unclog(self) -> None:
        """Carry again, and first what waited."""
        self._open.set()

    def cut_at_next_byte(self) -> None:
        """Break the connections off as soon as anything comes."""
        self._cut_after_bytes = self.carried_bytes

    def cut(self) -> None:
        """Break the connections off."""
        self._cut_after_bytes = None
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += [writer, back]
        ways = [(reader, back), (there, writer)]
        for source, sink in ways:
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._open.wait()
                self.carried_bytes += len(data)
                if self.carried_bytes > 200_000:
                    self.busy.set()
                if self._cut_after_bytes is not None and self.carried_bytes > self._cut_after_bytes:
                    self.cut()
                # No drain: who waits for a full buffer does not hear that the other end was reset.
                sink.write(data)
        sink.transport.abort()


class World:
    """Two nodes, alder that sends and birch that receives, over real TLS on loopback."""

    def __init__(self, directory: Path, *, timing: TransportTiming | None = None) -> None:
        self.directory = directory
        self.timing = timing or TransportTiming()
        self.authority = Authority.create(directory / "ca", cluster="c1")
        self.alder = node_credentials(self.authority, directory / "alder", name="alder")
        self.birch = node_credentials(self.authority, directory / "birch", name="birch")
        self.ours = MemoryDriver()
        self.theirs = MemoryDriver()
        self.gate = OpenGate(self.theirs)
        self.client = TransportClient(self.alder, timing=self.timing)
        self.server = TransportServer(
            self.birch, self.gate, host="127.0.0.1", port=0, timing=self.timing
        )

    def birch_at(self, port: int | None = None) -> Node:
        """The receiver's record, behind another port where a proxy stands."""
        return node_record(self.birch, port=port or self.server.port)

    async def send(
        self, volume: str, generation: str, *, port: int | None = None, epoch: int | None = None
    ) -> Sent:
        """Send one generation from alder to birch."""
        offer = offer_of(volume, generation)
        if epoch is not None:
            offer = replace(offer, epoch=epoch)
        return await self.client.send(offer, to=self.birch_at(port), driver=self.ours)


def threads_of_transfers() -> Iterator[str]:
    """Names of the threads that transfers left behind."""
    for thread in threading.enumerate():
        if thread.name.startswith(("send-", "receive-")):
            yield thread.name
