"""Whatever breaks while records are under way, their senders learn it, and the next record finds a way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from records_world import (
    MEBIBYTE,
    RecordsWorld,
    bulk,
    descriptors,
    failures,
    record,
    threads_of_records,
    until,
)
from transport_world import PATIENCE_SECONDS, Proxy

from pannier.core.errors import PeerUnavailable, Stale
from pannier.core.line import encode
from pannier.transport import record_frames, record_link, record_server
from pannier.transport.channel import TransportTiming
from pannier.transport.record_frames import HEAD, RECORD_BYTES, RECORDS_PROTOCOL, RecordKind

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
RECEIVER = Path(__file__).with_name("records_receiver.py")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RecordsWorld]:
    async with RecordsWorld(tmp_path).running() as world:
        yield world


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[RecordsWorld]:
    """A world in which silence of half a second means death."""
    world = RecordsWorld(tmp_path, timing=TransportTiming(stall=0.5))
    async with world.running():
        yield world


def proxy_of(world: RecordsWorld) -> Proxy:
    assert world.proxy is not None
    return world.proxy


async def send_until_it_works(world: RecordsWorld, number: int, *, port: int | None = None) -> int:
    """Send a record again and again; returns how often that failed."""
    for failed in range(10_000):
        try:
            await world.send(record(number), port=port)
        except PeerUnavailable:
            await asyncio.sleep(0.005)
        else:
            return failed
    raise AssertionError("it never worked")


@pytest.mark.parametrize("cut_after_bytes", [100, 3_000, 300_000, 5_000_000])
async def test_a_connection_that_is_cut_fails_what_is_under_way_and_is_replaced(
    world: RecordsWorld, cut_after_bytes: int
) -> None:
    proxy_of(world)._cut_after_bytes = cut_after_bytes
    tasks = [world.begin(bulk(n)) for n in range(1, 6)]
    ends = await failures(tasks)
    assert PeerUnavailable in ends
    assert ends == sorted(ends, key=lambda end: end is not None)
    assert set(ends) <= {None, PeerUnavailable}
    kept = world.shelf.numbers()
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= ends.count(None)
    await send_until_it_works(world, 9)


async def test_a_connection_that_is_cut_while_the_gate_works_is_replaced_at_once(
    world: RecordsWorld,
) -> None:
    await world.send(record(1))
    world.shelf.open.clear()
    tasks = [world.begin(record(n)) for n in (2, 3)]
    await until(lambda: world.shelf.inside == 1)
    proxy_of(world).cut()
    assert await failures(tasks) == [PeerUnavailable] * 2
    world.shelf.open.set()
    await world.send(record(4))
    assert proxy_of(world).connections == 2


async def test_a_network_that_swallows_everything_is_noticed(impatient: RecordsWorld) -> None:
    await impatient.send(record(1))
    proxy_of(impatient).clog()
    with pytest.raises(PeerUnavailable, match="silent"):
        await impatient.send(record(2))
    await until(lambda: not list(threads_of_records()))
    proxy_of(impatient).cut()


async def test_a_network_that_swallows_everything_in_the_middle_of_much_is_noticed(
    impatient: RecordsWorld,
) -> None:
    tasks = [impatient.begin(bulk(n)) for n in range(1, 11)]
    await proxy_of(impatient).busy.wait()
    proxy_of(impatient).clog()
    assert PeerUnavailable in await failures(tasks)
    await until(lambda: not list(threads_of_records()))
    proxy_of(impatient).cut()


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders that do not keep to the limits, so that those of the receiver count."""
    monkeypatch.setattr(record_link, "_MOST_UNANSWERED", 1_000_000)
    monkeypatch.setattr(record_link, "_MOST_UNANSWERED_BYTES", 1 << 40)


@pytest.mark.usefixtures("greedy")
async def test_a_gate_that_is_slow_is_waited_for(impatient: RecordsWorld) -> None:
    """Its node is alive and says so, even when no more records fit in."""
    impatient.shelf.open.clear()
    tasks = [impatient.begin(bulk(n, volume=f"v{n}")) for n in range(1, 9)]
    tasks += [impatient.begin(record(1, volume=f"w{n}")) for n in range(60)]
    await until(lambda: impatient.shelf.inside >= 3)
    await asyncio.sleep(3 * impatient.timing.stall)
    assert not any(task.done() for task in tasks)
    impatient.shelf.open.set()
    await asyncio.gather(*tasks)
    assert proxy_of(impatient).connections == 1


@pytest.mark.usefixtures("greedy")
async def test_what_a_slow_gate_does_not_take_stays_with_the_sender(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    tasks = [world.begin(bulk(n, volume=f"v{n}")) for n in range(1, 41)]
    await until(lambda: world.shelf.inside >= 3)
    still = -1
    while still != proxy_of(world).carried_bytes:
        still = proxy_of(world).carried_bytes
        await asyncio.sleep(0.2)
    assert world.shelf.inside <= 4
    world.shelf.open.set()
    await asyncio.gather(*tasks)


async def test_closing_the_server_fails_what_is_under_way(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    task = world.begin(record(1))
    await until(lambda: world.shelf.inside == 1)
    closing = asyncio.create_task(world.server.close())
    with pytest.raises(PeerUnavailable):
        await task
    world.shelf.open.set()
    await closing
    assert not list(threads_of_records())


async def test_a_gate_that_hangs_does_not_keep_the_server_from_closing(
    world: RecordsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer must not keep the daemon from ending."""
    monkeypatch.setattr(record_server, "_LEAVE_SECONDS", 0.1)
    world.shelf.open.clear()
    task = world.begin(record(1))
    await until(lambda: world.shelf.inside == 1)
    await world.server.close()
    assert await failures([task]) == [PeerUnavailable]
    assert world.shelf.inside == 1
    world.shelf.open.set()
    await until(lambda: not list(threads_of_records()))


async def test_the_receivers_event_loop_is_not_waited_for(world: RecordsWorld) -> None:
    """It may be busy for long, and a sync call waits for the record."""
    context = world.alder.client_context()
    context.set_alpn_protocols([RECORDS_PROTOCOL])
    connected, answered = asyncio.Event(), threading.Event()
    loop, port = asyncio.get_running_loop(), world.server.port
    blocked = threading.Event()

    def ask() -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            context.wrap_socket(raw, server_hostname="birch") as tls,
        ):
            for when in (None, blocked):
                if when is not None:
                    when.wait()
                tls.sendall(_WHOLE)
                assert tls.recv(HEAD.size) == record_frames.taken_frame(1)
                loop.call_soon_threadsafe(connected.set)
            answered.set()

    asking = asyncio.create_task(asyncio.to_thread(ask))
    await connected.wait()
    blocked.set()
    assert answered.wait(PATIENCE_SECONDS / 2)  # the loop does nothing meanwhile
    await asking


async def test_a_server_that_restarted_is_found_again(world: RecordsWorld) -> None:
    port = world.server.port
    await world.send(record(1), port=port)
    await world.server.close()
    await until(lambda: not list(threads_of_records()))
    with pytest.raises(PeerUnavailable, match="does not answer"):
        await world.send(record(2), port=port)
    world.server = world.new_server(port=port)
    async with world.server:
        await send_until_it_works(world, 3, port=port)
        await world.sender.close()
    assert world.shelf.numbers() == [1, 3]


async def test_an_older_node_is_told_apart_and_not_asked_again_and_again(
    world: RecordsWorld,
) -> None:
    older = world.new_server(records=False)
    async with older:
        proxy = Proxy(older.port)
        async with proxy.listening() as port:
            for _ in range(200):
                with pytest.raises(PeerUnavailable, match="does not take records"):
                    await world.send(record(1), port=port)
            assert (
                proxy.connections <= 20
            )  # of 200: it is asked again after a pause, and a busy machine is slow
            proxy._target_port = world.server.port  # it was updated
            await send_until_it_works(world, 1, port=port)
            assert world.shelf.numbers() == [1]


async def test_a_node_that_drops_every_connection_is_not_asked_again_and_again(
    world: RecordsWorld,
) -> None:
    proxy = Proxy(world.server.port, cut_after_bytes=6_000)
    async with proxy.listening() as port:
        for _ in range(200):
            proxy._cut_after_bytes = proxy.carried_bytes + 3_000
            with pytest.raises(PeerUnavailable):
                await world.send(bulk(1), port=port)
        assert (
            proxy.connections <= 20
        )  # of 200: it is asked again after a pause, and a busy machine is slow


async def _converse(world: RecordsWorld, said: bytes) -> bytes:
    """What the server answers to something said by alder."""
    context = world.alder.client_context()
    context.set_alpn_protocols([RECORDS_PROTOCOL])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.server.port, ssl=context, server_hostname="birch"
    )
    answer = b""
    try:
        writer.write(said)
        while data := await reader.read(65536):
            answer += data
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.transport.abort()
    return answer


_WHOLE = b"".join(record_frames.record_frame(1, "name-v1", encode(record(1))))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        HEAD.pack(RecordKind.RECORD, RECORD_BYTES + 1, 1),
        HEAD.pack(RecordKind.RECORD, (1 << 32) - 1, 1),
        HEAD.pack(RecordKind.RECORD, 0, 1),
        HEAD.pack(RecordKind.RECORD, 3, 1) + b"\xffab",
        HEAD.pack(RecordKind.RECORD, 8, 1) + b"\x07../../x",
        HEAD.pack(RecordKind.TAKEN, 0, 1),
        HEAD.pack(RecordKind.KEEPALIVE, 1, 0) + b"x",
        HEAD.pack(RecordKind.FAILED, 2, 0) + b"{}",
    ],
    ids=range(9),
)
async def test_a_node_that_talks_nonsense_gets_an_error_and_is_not_listened_to(
    world: RecordsWorld, garbage: bytes
) -> None:
    answer = await _converse(world, garbage + _WHOLE)
    head = record_frames.parse_head(answer[: HEAD.size])
    assert (head.kind, head.number) == (RecordKind.FAILED, 0)
    assert b"invalid-input" in answer
    assert not world.shelf.taken
    await world.send(record(1))


async def test_bytes_that_are_no_record_are_refused_alone(world: RecordsWorld) -> None:
    body = b"\x07name-v1" + os.urandom(500)
    bad = HEAD.pack(RecordKind.RECORD, len(body), 7) + body
    answer = await _converse(world, bad + _WHOLE + b"\xff" * HEAD.size)
    assert world.shelf.numbers() == [1]
    first = record_frames.parse_head(answer[: HEAD.size])
    assert (first.kind, first.number) == (RecordKind.FAILED, 7)
    assert b"corrupt" in answer


async def test_half_a_record_is_never_taken(impatient: RecordsWorld) -> None:
    await _converse(impatient, _WHOLE[:-1])
    assert not impatient.shelf.taken


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 100,
        HEAD.pack(RecordKind.RECORD, 10, 1) + bytes(10),
        HEAD.pack(RecordKind.FAILED, 3, 1) + b"[1]",
        HEAD.pack(RecordKind.FAILED, record_frames.FAILED_BYTES + 1, 1),
        record_frames.failed_frame(0, Stale("you may not")),
    ],
    ids=range(5),
)
async def test_a_receiver_that_talks_nonsense_fails_the_records(
    world: RecordsWorld, answer: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await reader.read()
        writer.transport.abort()

    context = world.birch.server_context(client_certificate_required=True)
    context.set_alpn_protocols([RECORDS_PROTOCOL])
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tasks = [world.begin(record(n), port=port) for n in (1, 2)]
        ends = await failures(tasks)
        assert ends[0] is ends[1] is not None


async def test_answers_that_were_not_due_are_ignored(world: RecordsWorld) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for number in (77, 2, 2, 1):
            writer.write(record_frames.taken_frame(number))
        await reader.read()
        writer.transport.abort()

    context = world.birch.server_context(client_certificate_required=True)
    context.set_alpn_protocols([RECORDS_PROTOCOL])
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tasks = [world.begin(record(n), port=port) for n in (1, 2)]
        assert await failures(tasks) == [None, None]
        await world.sender.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_receiver_that_is_killed_or_stands_still_in_the_middle(
    tmp_path: Path, how: signal.Signals
) -> None:
    world = RecordsWorld(tmp_path, timing=TransportTiming(stall=4.0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, RECEIVER, world.birch.directory, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        await world.send(record(1), port=port)
        tasks = [world.begin(bulk(n, size=MEBIBYTE), port=port) for n in range(2, 100)]
        await tasks[3]
        process.send_signal(how)
        ends = await failures(tasks)
        assert set(ends) == {None, PeerUnavailable}
        assert ends == sorted(ends, key=lambda end: end is not None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await world.sender.close()
    assert not list(threads_of_records())


async def test_a_flood_of_refusals_that_nobody_hears_is_not_kept(world: RecordsWorld) -> None:
    """A sender that reads no answers must not make the receiver keep ever more of them."""
    world.shelf.refusals["v1"] = Stale("x" * 4000)
    context = world.alder.client_context()
    context.set_alpn_protocols([RECORDS_PROTOCOL])

    def flood() -> int:
        sent = 0
        with (
            socket.create_connection(("127.0.0.1", world.server.port)) as raw,
            context.wrap_socket(raw, server_hostname="birch") as tls,
        ):
            tls.settimeout(1.0)
            try:
                while sent < 30_000:
                    tls.sendall(_WHOLE)
                    sent += 1
            except OSError:
                pass
        return sent

    before = descriptors()
    assert await asyncio.to_thread(flood) < 30_000
    await until(lambda: not list(threads_of_records()))
    await until(lambda: descriptors() <= before)
