"""The clients against the real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gzip
import os
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from pannier.api import connection
from pannier.api.caller import Caller, LocalCaller, NodeCaller
from pannier.api.client import ApiClient, PeerClient
from pannier.api.connection import ApiConnection, TlsEndpoint, UnixEndpoint
from pannier.api.listen import serve_unix
from pannier.api.server import build_application
from pannier.contract.bodies import MOST_BLOCKS, BlockSum, JoinOrder
from pannier.contract.operations import Operations
from pannier.contract.peers import Peer
from pannier.contract.views import EventView
from pannier.contract.words import EventKind
from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    Denied,
    ForeignData,
    InvalidInput,
    NotFound,
    NotHolder,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    StoreUnavailable,
    VolumeInUse,
    VolumeNotFound,
)
from pannier.core.hooks import Moment
from pannier.testing.api import FakeCluster, NotedCall


def identify(request: web.Request) -> Caller:
    return NodeCaller("node2") if request.path.startswith("/v1/peer") else LocalCaller()


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def endpoint(cluster: FakeCluster, tmp_path: Path) -> AsyncIterator[UnixEndpoint]:
    path = tmp_path / "api.sock"
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify, keepalive_seconds=0.02
    )
    async with serve_unix(application, path=path):
        yield UnixEndpoint(path)


@pytest.fixture
async def client(endpoint: UnixEndpoint) -> AsyncIterator[Operations]:
    async with ApiClient(endpoint) as client:
        yield client


@pytest.fixture
async def peer(endpoint: UnixEndpoint) -> AsyncIterator[Peer]:
    async with PeerClient(endpoint) as peer:
        yield peer


async def test_services_and_their_hooks(client: Operations, peer: Peer) -> None:
    assert [service.name for service in await client.services()] == ["web"]
    steps = client.move_service("web", "node2", now=True, stay=False, timeout_seconds=60)
    assert [step.phase async for step in steps] == ["copying", "done"]
    views = [view async for view in peer.peer_hook("web", hook=Moment.BEFORE)]
    assert [(view.hook, view.ended, view.abort) for view in views] == [
        ("pre-move", False, True),
        ("pre-move", True, True),
    ]
    with pytest.raises(NotFound, match="no container of service shop"):
        async for _ in peer.peer_hook("shop", hook=Moment.AFTER):
            pass


async def test_as_many_blocks_as_may_be_asked_for_at_once_arrive(peer: Peer) -> None:
    wanted = [BlockSum((1 << 62) - 4096 * number, (1 << 32) - 1) for number in range(MOST_BLOCKS)]
    found = await peer.peer_blocks("data", generation="3.17-0f3a94c1", blocks=wanted)
    assert [(block.start, len(block.content)) for block in found.blocks] == [
        (block.start, 4096) for block in wanted
    ]
    with pytest.raises(InvalidInput):
        await peer.peer_blocks("data", generation="3.17-0f3a94c1", blocks=[*wanted, wanted[0]])


async def test_clones(client: Operations, peer: Peer, cluster: FakeCluster) -> None:
    await client.create_volume("data", {"size": "1G"})
    await client.create_snapshot("data", "first", keep_seconds=None, labels={})
    options = {"copies": "1"}
    made = await client.clone_volume("data", new="test", snapshot="first", options=options)
    assert made == cluster.volumes_by_name["test"]
    assert (made.cloned_from, made.options) == ("data@first", {"size": "1G", "copies": "1"})
    made = await peer.peer_clone("data", new="now", snapshot=None, options={}, actor="anna")
    assert made == cluster.volumes_by_name["now"]
    assert made.cloned_from == "data"
    assert cluster.calls[-1] == NotedCall("clone_volume", "data", "anna")
    for new, snapshot in (("../x", None), ("x1", "../first")):
        with pytest.raises(InvalidInput):
            await client.clone_volume("data", new=new, snapshot=snapshot, options={})


async def test_client_stands_in_for_the_use_cases(client: Operations, cluster: FakeCluster) -> None:
    volume = await client.create_volume("data", {"size": "1G"})
    assert volume == cluster.volumes_by_name["data"]
    assert await client.volumes() == [volume]
    assert (await client.volume("data")).used_bytes == 4096
    phases = [
        progress.phase async for progress in client.move_volume("data", "node2", wait_seconds=1)
    ]
    assert phases == ["copying", "copying", "switching", "done"]
    assert [event.kind for event in await client.history("data")] == [
        "volume.created",
        "volume.moved",
    ]
    trashed = await client.remove_volume("data")
    assert await client.trash() == [trashed]
    assert (await client.restore_volume(trashed.id)).name == "data"
    made = await client.create_snapshot("data", "first", keep_seconds=60.0, labels={"a": "b"})
    assert (made.name, made.labels, made.on) == ("first", {"a": "b"}, ["node2"])
    assert [each.name for each in await client.snapshots("data")] == ["first"]
    assert (await client.snapshot("data", "first")).generation == made.generation
    assert (await client.roll_back_volume("data", "first")).name.startswith("before-rollback-")
    assert (await client.remove_snapshot("data", "first")).name == "first"
    together = await client.create_service_snapshot(
        "web", snapshot="second", keep_seconds=None, labels={}
    )
    assert [(each.volume, each.name) for each in together] == [("data", "second")]
    steps = client.convert_volume("data", {"layout": "tree"}, stop_service=True)
    assert [step.phase async for step in steps] == ["copying", "done"]
    await client.clean_volume("data", paths=["old"])
    assert [each.volume for each in await client.room_use()] == ["data"]
    assert len((await client.volume_usage("data")).samples) == 4
    taken = client.take_out("data", tree="first", path="file", to="/root")
    assert [progress.to async for progress in taken] == ["", "/root/file"]
    trashed = await client.remove_volume("data")
    assert await client.purge_volume("data") == trashed
    assert await client.empty_trash() == []
    await client.create_volume("data", {})
    assert (await client.status()).volumes == 1
    assert await client.nodes() == list(cluster.nodes_by_name.values())
    assert (await client.node("node2")).name == "node2"
    assert (await client.drain_node("node2", drained=True)).state == "drained"
    await client.remove_node("node3", lost=False)
    token = await client.create_token(ttl_seconds=60, uses=3)
    request = JoinOrder(token=token.token, name="n4", address="::1", csr="x", version="1")
    assert (await client.join(request)).cluster == "test"
    assert await client.doctor() == []
    assert len([event async for event in client.events(follow=False)]) == 6
    assert [
        step.phase
        async for step in client.import_volume(
            "taken", source="local:old", options={}, switch_service=None, wait_seconds=1
        )
    ] == ["copying", "done"]


async def test_peer_client(peer: Peer, cluster: FakeCluster) -> None:
    await peer.peer_create("data", {}, actor="anna")
    assert (await peer.peer_node()).name == "node1"
    assert (await peer.peer_volume("data")).generation == "1.1"
    moved = [each async for each in peer.peer_move("data", "node3", wait_seconds=1, actor="anna")]
    assert moved[-1].phase == "done"
    assert len(await peer.peer_usage("data")) == 4
    steps = peer.peer_convert("data", {"layout": "tree"}, waits=True, actor="anna")
    assert [each.former async for each in steps] == ["", "data.1"]
    with pytest.raises(NotHolder):
        await peer.peer_volume("data")
    assert (await peer.peer_handover("data", epoch=2)).state == "given"
    await peer.peer_remove("data", volume_id="id-data", actor="anna")
    assert NotedCall("peer_remove", "data", "anna", "node2") in cluster.calls


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("etcd is away", remedy="wait"),
        VolumeInUse("volume data is used by web", remedy="stop it"),
        VolumeNotFound("no volume data"),
        PannierError("odd"),
    ],
    ids=lambda error: error.code,
)
async def test_errors_come_back_as_their_class(
    client: Operations, cluster: FakeCluster, error: PannierError
) -> None:
    cluster.failing["volume"] = error
    with pytest.raises(type(error)) as caught:
        await client.volume("data")
    assert type(caught.value) is type(error)
    assert (caught.value.message, caught.value.remedy) == (error.message, error.remedy)


async def test_failed_move_is_a_value_not_an_exception(
    client: Operations, cluster: FakeCluster
) -> None:
    await client.create_volume("data", {})
    cluster.in_use["data"] = ["web"]
    lines = [line async for line in client.move_volume("data", "node2", wait_seconds=0)]
    assert [line.phase for line in lines][-2:] == ["waiting", "failed"]
    assert lines[-1].code == "volume-in-use"


async def test_names_cannot_escape_their_place_in_the_path(client: Operations) -> None:
    for name in ("../status", "a/../../nodes", "a?follow=true", "a#b", "%2e%2e"):
        with pytest.raises((InvalidInput, VolumeNotFound)):
            await client.volume(name)


async def test_events_follow_past_keepalives(client: Operations, cluster: FakeCluster) -> None:
    events = client.events(follow=True)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.1)  # several keepalives of 0.02 s
    event = EventView(at="now", kind=EventKind.NODE_DOWN, subject="node2", node="node1")
    await cluster.more_events.put(event)
    assert await waiting == event
    await cluster.more_events.put(None)
    assert [event async for event in events] == []


# The socket


async def test_socket_is_for_its_owner_only(endpoint: UnixEndpoint) -> None:
    assert stat.S_IMODE(endpoint.path.stat().st_mode) == 0o600


async def test_second_server_is_refused_and_harms_nothing(
    endpoint: UnixEndpoint, client: Operations, cluster: FakeCluster
) -> None:
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    with pytest.raises(Conflict, match="another daemon"):
        async with serve_unix(application, path=endpoint.path):
            pass
    assert (await client.status()).cluster == "test"


async def test_socket_of_a_dead_server_is_replaced(cluster: FakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    dead = await asyncio.start_unix_server(lambda *_: None, path)
    dead.close()
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    async with serve_unix(application, path=path), ApiClient(UnixEndpoint(path)) as client:
        assert (await client.status()).cluster == "test"
    assert not path.exists()


async def test_what_is_no_socket_is_left_alone(cluster: FakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    with pytest.raises(ForeignData):
        async with serve_unix(application, path=path):
            pass
    assert path.read_text() == "precious"


# Servers that are not there, or misbehave


async def test_no_daemon(tmp_path: Path) -> None:
    async with ApiClient(UnixEndpoint(tmp_path / "none")) as client:
        with pytest.raises(PeerUnavailable) as caught:
            await client.remove_volume("data")
    assert "No such file" in caught.value.message
    assert "systemctl status pannierd" in caught.value.remedy
    assert caught.value.__cause__ is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
async def test_no_permission(endpoint: UnixEndpoint, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        async with ApiClient(endpoint) as client:
            with pytest.raises((Denied, PeerUnavailable)) as caught:
                await client.status()
    finally:
        os.seteuid(0)
    assert isinstance(caught.value, Denied)
    assert "sudo" in caught.value.remedy


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LINE = b'{"phase":"copying","volume":"data","source":"a","target":"b"}\n'


@asynccontextmanager
async def misbehaving(path: Path, answer: bytes, *, hang: bool = False) -> AsyncIterator[list[int]]:
    """A server that reads a request, sends ``answer``, and closes or falls silent."""
    requests: list[int] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        requests.append(1)
        writer.write(answer)
        await writer.drain()
        if hang:
            await done.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield requests
    finally:
        done.set()
        server.close()


async def test_change_that_gets_no_answer_has_an_unknown_outcome_and_is_sent_once(
    tmp_path: Path,
) -> None:
    """aiohttp repeats a DELETE on its own, which would turn a success into "not found"."""
    path = tmp_path / "api.sock"
    async with misbehaving(path, b"") as requests, ApiClient(UnixEndpoint(path)) as client:
        with pytest.raises(OutcomeUnknown, match="no answer came"):
            await client.remove_volume("data")
    assert len(requests) == 1


async def test_read_that_gets_no_answer_changed_nothing(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with misbehaving(path, b""), ApiClient(UnixEndpoint(path)) as client:
        with pytest.raises(PeerUnavailable, match="broke off"):
            await client.volumes()


async def test_time_limits(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with misbehaving(path, b"", hang=True), ApiConnection(UnixEndpoint(path)) as client:
        with pytest.raises(DeadlineExceeded):
            await client.ask("GET", "/v1/nodes", answer=list[str], timeout_seconds=0.05)
        with pytest.raises(OutcomeUnknown):
            await client.ask("POST", "/v1/nodes", answer=list[str], timeout_seconds=0.05)


async def test_another_service_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    async with misbehaving(path, page), ApiClient(UnixEndpoint(path)) as client:
        with pytest.raises(PeerUnavailable, match="does not answer as a pannierd"):
            await client.nodes()
        with pytest.raises(OutcomeUnknown):
            await client.create_token(ttl_seconds=1, uses=1)


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"%x\r\n%s\r\n" % (len(LINE), LINE),
        HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(LINE), LINE),
    ],
    ids=["cut off", "ended too early"],
)
async def test_move_that_stops_reporting_has_an_unknown_outcome(
    tmp_path: Path, answer: bytes
) -> None:
    path = tmp_path / "api.sock"
    async with misbehaving(path, answer), ApiClient(UnixEndpoint(path)) as client:
        moving = client.move_volume("data", "b", wait_seconds=1)
        assert (await anext(moving)).phase == "copying"
        with pytest.raises(OutcomeUnknown):
            await anext(moving)


async def test_an_answer_that_is_too_long_is_not_taken_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_LIMIT_BYTES", 1000)
    path = tmp_path / "api.sock"
    for status in (b"200 OK", b"404 Not Found"):
        answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 1048576\r\n\r\n" + b" " * 100_000
        async with misbehaving(path, answer, hang=True), ApiClient(UnixEndpoint(path)) as client:
            with pytest.raises(PeerUnavailable, match="more than 1000 bytes"):
                await client.volumes()
        path.unlink()


async def test_a_compressed_answer_is_not_inflated(tmp_path: Path) -> None:
    body = gzip.compress(b" " * (1 << 20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    path = tmp_path / "api.sock"
    async with (
        misbehaving(path, head.encode() + body),
        ApiClient(UnixEndpoint(path)) as client,
    ):
        with pytest.raises(PeerUnavailable, match="does not answer as a pannierd does"):
            await client.volumes()


async def test_silent_stream_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.05)
    path = tmp_path / "api.sock"
    async with misbehaving(path, HEAD, hang=True), ApiClient(UnixEndpoint(path)) as client:
        with pytest.raises(DeadlineExceeded):
            await anext(client.events(follow=True))


def test_endpoints_in_words() -> None:

    context = ssl.create_default_context()
    assert str(UnixEndpoint(Path("/run/x"))) == "/run/x"
    assert str(TlsEndpoint(address="10.0.0.1", context=context)) == "https://10.0.0.1:7400"
    named = TlsEndpoint(address="fe80::1", port=1, context=context, node="node2")
    assert str(named) == "node2 (https://[fe80::1]:1)"
